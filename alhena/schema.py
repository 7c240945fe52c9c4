"""JSON parsed as frozen dataclasses: each field of its declared type, none missing, none unknown.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Size:
...     width: int
...     height: int = 1
>>> parsed(Size, {"width": 3}, Path("size.json"))
Size(width=3, height=1)
>>> parsed(Size, {"width": "3"}, Path("size.json"))
Traceback (most recent call last):
ValueError: size.json: width: input should be a valid integer, not '3'
>>> parsed(Size, {"width": 3, "depth": 1}, Path("size.json"))
Traceback (most recent call last):
ValueError: size.json: depth: unexpected field; no field of this name is known
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@cache
def _adapter(kind: Any) -> Any:
    """Building one takes longer than reading a small value."""
    return TypeAdapter(kind)


def _first_default(value: Any, out: Any, where: str = "") -> str | None:
    """Name of the first field of a dataclass that is absent from the JSON value, or None."""
    if not is_dataclass(out) or not isinstance(value, Mapping):
        return None
    for field in fields(out):
        name = f"{where}.{field.name}" if where else field.name
        if field.name not in value:
            return name
        if found := _first_default(value[field.name], getattr(out, field.name), name):
            return found
    return None


def parsed_whole(kind: type[T], value: Any, path: Path, field: str = "") -> T:
    """:func:`parsed` for files that this package writes: no field may be absent, since its default may have changed."""
    out = parsed(kind, value, path, field)
    if name := _first_default(value, out, field):
        raise ValueError(f"{path}: {name}: missing")
    return out


def parsed(kind: type[T] | GenericAlias, value: Any, path: Path, field: str = "") -> T:
    """A JSON value as a ``kind``. Raises ValueError that names the file and the field (``field`` is where the value stands)."""
    try:
        return _adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(filter(None, (field, *map(str, first["loc"]))))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            message = "unexpected field; no field of this name is known"
        elif first["type"] in ("missing", "missing_argument"):
            message = "missing"
        elif first["type"] == "value_error":
            message = str(first["ctx"]["error"])
        else:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {shown(first['input'])}"
        raise ValueError(": ".join(filter(None, (str(path), where, message)))) from None
    except (RecursionError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {field or 'its content'} cannot be read ({error})") from None


def shown(value: Any) -> str:
    """A value as an error message shows it: at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:
        # An integer of more digits than Python writes.
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "…"


def bounded(owner: object, **limits: Any) -> None:
    """Raises ValueError for a field outside its limits (inclusive); None passes."""
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        # NaN is outside any limits.
        if value is not None and not low <= value <= high:
            raise ValueError(f"{type(owner).__name__}.{name} is {shown(value)}; {low:,} to {high:,} can be read")
