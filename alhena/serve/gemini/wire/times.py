"""Times and durations of the wire format."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

from alhena.serve.gemini.wire.fields import Fields, WireError, path, read_string

# Seconds that a resource may be asked to live.
MAX_TTL = 366 * 24 * 3600.0


def timestamp(seconds: float) -> str:
    """Seconds since 1970 in the API's format.

    >>> timestamp(1.5)
    '1970-01-01T00:00:01.500000Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read_duration(value: Any, where: str) -> float:
    """Seconds of a duration such as ``300s``. Raises WireError.

    >>> read_duration("1.5s", "ttl")
    1.5
    """
    text = read_string(value, where, 32)
    if not re.fullmatch(r"\d{1,12}(\.\d{1,9})?s", text):
        raise WireError(400, f"{where} is {text!r}; it must be seconds, as in 300s")
    return float(text[:-1])


def read_time(value: Any, where: str) -> float:
    """Seconds since 1970 of a time such as ``2026-11-26T10:00:00Z``. Raises WireError."""
    text = read_string(value, where, 64)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise WireError(400, f"{where} is {text!r}; it must be a time, as in 2026-11-26T10:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def read_expiry(fields: Fields, where: str, default: float | None) -> float | None:
    """When a resource expires, by ``ttl`` or ``expireTime``; after ``default`` seconds where it has neither. Raises WireError."""
    now = time.time()
    if "ttl" in fields and "expireTime" in fields:
        raise WireError(400, f"{path(where, 'ttl')} and expireTime exclude each other")
    if "expireTime" in fields:
        name, expires = "expireTime", read_time(fields["expireTime"], path(where, "expireTime"))
    elif "ttl" in fields:
        name, expires = "ttl", now + read_duration(fields["ttl"], path(where, "ttl"))
    else:
        return None if default is None else now + default
    if not now < expires <= now + MAX_TTL:
        raise WireError(400, f"{path(where, name)} must be in the future, within a year")
    return expires
