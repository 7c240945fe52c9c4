"""Strict parsing of JSON bodies: sizes are bounded, and an unknown field is refused by name.

camelCase and snake_case may be mixed in one body, as the official SDK does; ``null`` is the same as absent; an integer may
arrive as ``4``, ``4.0`` or ``"4"``, as Google's JSON mapping allows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from alhena.serve.answer import Overloaded, ServingError, Unavailable

# Brackets, braces, colons and commas of one body.
MAX_STRUCTURE = 1 << 19
MAX_NUMBER_LENGTH = 64
MAX_MESSAGE_LENGTH = 1000
# After which an overloaded server may be asked again.
RETRY_SECONDS = 1
Fields = Mapping[str, Any]


class WireError(Exception):
    """An error in the format of Google's APIs: HTTP code, message, status."""

    def __init__(self, code: int, message: str, status: str = "INVALID_ARGUMENT") -> None:
        message = message.encode("utf-8", "backslashreplace").decode()
        self.message = message if len(message) <= MAX_MESSAGE_LENGTH else message[:MAX_MESSAGE_LENGTH] + " …"
        super().__init__(self.message)
        self.code, self.status = code, status

    def body(self) -> dict[str, Any]:
        error = {"code": self.code, "message": self.message, "status": self.status}
        if self.headers:
            delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{RETRY_SECONDS}s"}
            return {"error": {**error, "details": [delay]}}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, where that helps."""
        return {"Retry-After": str(RETRY_SECONDS)} if self.code in (429, 503) else {}


def overloaded(message: str) -> WireError:
    """429: too many requests at a time; try again later."""
    return WireError(429, f"{message}; try again later", "RESOURCE_EXHAUSTED")


def unavailable(message: str) -> WireError:
    """503: the server is starting or ending; try again later."""
    return WireError(503, f"{message}; try again later", "UNAVAILABLE")


def wire_error(error: ServingError | ValueError) -> WireError:
    """The error of a generation in the format of the API."""
    if isinstance(error, Overloaded):
        return overloaded(str(error))
    if isinstance(error, Unavailable):
        return unavailable(str(error))
    return WireError(400, str(error)) if isinstance(error, ValueError) else WireError(500, str(error), "INTERNAL")


def not_offered(where: str, remedy: str = "") -> WireError:
    """400: a known field whose feature this server does not have."""
    return WireError(400, f"{where} is not offered by this server{remedy}")


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise WireError(400, f"the field {duplicate!r} is repeated")
    return fields


def _number(text: str) -> int | float:
    if len(text) > MAX_NUMBER_LENGTH:
        raise WireError(
            400, f"the number {text[:20]}… has {len(text):,} characters; at most {MAX_NUMBER_LENGTH} are read"
        )
    value = float(text)
    if not math.isfinite(value):
        raise WireError(400, f"the number {text} is out of range")
    return int(text) if text.lstrip("-").isdigit() else value


def _constant(text: str) -> Any:
    raise WireError(400, f"the request is not JSON: {text} is not a number")


def parse_json(data: bytes | bytearray) -> Any:
    """The value of a JSON body, whose size is bounded before it is parsed. Raises WireError."""
    if sum(data.count(mark) for mark in b"[{:,") > MAX_STRUCTURE:
        raise WireError(400, f"the request has more than {MAX_STRUCTURE:,} fields, items, commas and colons")
    try:
        return json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_constant,
        )
    except RecursionError:
        raise WireError(400, "the request is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WireError(400, f"the request is not JSON: {error}") from None


# ── Fields ────────────────────────────────────────────────────────────────────────────────────────────────────


def camel(name: str) -> str:
    """
    >>> camel("inline_data"), camel("inlineData")
    ('inlineData', 'inlineData')
    """
    return re.sub(r"_([a-z0-9])", lambda m: m.group(1).upper(), name)


def path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def read_object(value: Any, where: str, known: Collection[str], rename: Callable[[str], str] = camel) -> Fields:
    """Fields of an object, renamed to camelCase, nulls left out. Raises WireError for a field that is not in ``known``."""
    what = where or "the request"
    if not isinstance(value, Mapping):
        raise WireError(400, f"{what} must be an object")
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = rename(key)
        if name not in known:
            raise WireError(400, f"{what} has an unknown field {key!r}; known are {', '.join(known)}")
        if item is None:
            continue
        if name in out:
            raise WireError(400, f"{path(where, name)} is repeated")
        out[name] = item
    return out


def refuse(fields: Fields, where: str, names: Collection[str]) -> None:
    """Raises WireError for a field of an unsupported feature, unless its value is empty, zero or false."""
    for name in names:
        if fields.get(name):
            raise not_offered(path(where, name))


def read_list(value: Any, where: str, max_length: int) -> Sequence[Any]:
    """A list; a single object or string is read as a list of one."""
    value = [value] if isinstance(value, Mapping | str) else value
    if not isinstance(value, list) or len(value) > max_length:
        raise WireError(400, f"{where} must be a list of at most {max_length} items")
    return value


def read_string(value: Any, where: str, max_length: int) -> str:
    if not isinstance(value, str) or len(value) > max_length:
        raise WireError(400, f"{where} must be a string of at most {max_length:,} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WireError(400, f"{where} holds half of a surrogate pair, which is not a character") from None
    return value


def read_number(fields: Fields, where: str, name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(400, f"{path(where, name)} must be a number")
    return float(value)


def read_integer(fields: Fields, where: str, name: str, default: int) -> int:
    value = read_number(fields, where, name, default)
    if not value.is_integer() or abs(value) >= 1 << 63:
        raise WireError(400, f"{path(where, name)} must be an integer of 64 bits")
    return int(value)


def read_flag(fields: Fields, where: str, name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise WireError(400, f"{path(where, name)} must be true or false")
    return value
