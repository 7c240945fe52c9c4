"""Tools in Gemma 4's notation: declarations and results written, calls written and read.

    declaration:weather{description:"…",parameters:{properties:{city:{type:"STRING"}},required:["city"],type:"OBJECT"}}
    call:weather{city:"Bern",days:3,deep:{a:[true,null]}}          response:weather{temp:21}

There are no spaces, and keys are sorted. The quotation mark is a control token, so no text can end a string. What is written is a
sequence of texts and quotation marks; ``quote`` is the id of that token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alhena.content import Tool, ToolCall, ToolResult
from alhena.schema import shown

Pieces = Iterator[str | int]
# Of arguments, responses and schemas.
MAX_DEPTH = 64
NAME = re.compile(r"[\w.:-]{1,256}")


def _string(text: str, quote: int) -> Pieces:
    yield quote
    yield text
    yield quote


def _list(items: Sequence[Any], quote: int, quoted_keys: bool, depth: int) -> Pieces:
    yield "["
    for number, item in enumerate(items):
        yield "," if number else ""
        yield from _value(item, quote, quoted_keys, depth)
    yield "]"


def _sorted(items: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Items by their keys; the case of letters does not matter."""
    if not all(isinstance(key, str) for key in items):
        raise ValueError(f"the keys of {shown(items)} must be strings")
    return sorted(items.items(), key=lambda item: item[0].lower())


def _pairs(items: Mapping[str, Any], quote: int, quoted_keys: bool, depth: int) -> Pieces:
    yield "{"
    for number, (key, value) in enumerate(_sorted(items)):
        yield "," if number else ""
        yield from _string(key, quote) if quoted_keys else (key,)
        yield ":"
        yield from _value(value, quote, quoted_keys, depth)
    yield "}"


def _value(value: Any, quote: int, quoted_keys: bool = False, depth: int = 0) -> Pieces:
    """A JSON value."""
    if depth > MAX_DEPTH:
        raise ValueError(f"JSON values of more than {MAX_DEPTH} levels cannot be written")
    if isinstance(value, str):
        yield from _string(value, quote)
    elif isinstance(value, Mapping):
        yield from _pairs(value, quote, quoted_keys, depth + 1)
    elif isinstance(value, list | tuple):
        yield from _list(value, quote, quoted_keys, depth + 1)
    elif value is None or isinstance(value, bool):
        yield json.dumps(value)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield str(value)
    else:
        raise ValueError(f"{shown(value)} is no JSON value")


def named(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"the tool name {shown(name)} must be letters, digits and . : _ - only")
    return name


def write_value(value: Any, quote: int) -> Pieces:
    """A JSON value as an argument of a call."""
    yield from _value(value, quote)


def write_call(call: ToolCall, quote: int) -> Pieces:
    yield f"call:{named(call.name)}"
    yield from _value(dict(call.arguments), quote)


def write_result(result: ToolResult, quote: int) -> Pieces:
    """The JSON part of a result."""
    yield f"response:{named(result.name)}"
    yield from _value(dict(result.response), quote)


# ── declarations ───────────────────────────────────────────────────────────────────────────────────────────


def _type(schema: Mapping[str, Any], where: str) -> tuple[str, bool]:
    """The type in upper case, and whether null is allowed too."""
    stated = schema.get("type")
    types = [stated] if isinstance(stated, str) else stated
    if not isinstance(types, list | tuple) or not all(isinstance(name, str) for name in types):
        raise ValueError(f"{where}.type is {shown(stated)}; it must be a JSON type: other schemas cannot be declared")
    upper = [name.upper() for name in types]
    proper = [name for name in upper if name != "NULL"] or upper
    if len(proper) != 1:
        raise ValueError(f"{where}.type is {shown(stated)}; one type, and null beside it, can be declared")
    return proper[0], bool(schema.get("nullable")) or (proper != upper)


def _joined(groups: Iterable[Pieces]) -> Pieces:
    for number, group in enumerate(groups):
        yield "," if number else ""
        yield from group


def _field(name: str, pieces: Iterable[str | int]) -> Pieces:
    yield f"{name}:"
    yield from pieces


def _object(schema: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where} is {shown(schema)}; it must be an object")
    return schema


def _items(schema: Mapping[str, Any], where: str, quote: int, depth: int) -> Pieces:
    """The schema of the items of an array: its fields in the order of their names."""

    def field(name: str, value: Any) -> Pieces:
        if name == "properties":
            return _field(name, _properties(_object(value, f"{where}.{name}"), f"{where}.{name}", quote, depth))
        if name == "required":
            return _field(name, _list(value, quote, False, depth))
        return _field(name, _string(_type(schema, where)[0], quote) if name == "type" else _value(value, quote, True))

    yield "{"
    yield from _joined(field(name, value) for name, value in _sorted(schema) if value is not None)
    yield "}"


def _property(schema: Mapping[str, Any], where: str, quote: int, depth: int) -> Pieces:
    """One property. Only these fields are part of the notation; bounds, formats and defaults of a JSON schema are not."""
    kind, nullable = _type(schema, where)
    fields: list[Pieces] = []
    if schema.get("description"):
        fields.append(_field("description", _string(str(schema["description"]), quote)))
    if kind == "STRING" and schema.get("enum"):
        fields.append(_field("enum", _value(schema["enum"], quote)))
    if kind == "ARRAY" and schema.get("items"):
        items = _object(schema["items"], f"{where}.items")
        fields.append(_field("items", _items(items, f"{where}.items", quote, depth)))
    if nullable:
        fields.append(iter(("nullable:true",)))
    if kind == "OBJECT":
        properties = _object(schema.get("properties", {}), f"{where}.properties")
        fields.append(_field("properties", _properties(properties, where, quote, depth)))
        if schema.get("required"):
            fields.append(_field("required", _list(schema["required"], quote, False, depth)))
    yield "{"
    yield from _joined((*fields, _field("type", _string(kind, quote))))
    yield "}"


def _properties(properties: Mapping[str, Any], where: str, quote: int, depth: int) -> Pieces:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: a schema of more than {MAX_DEPTH} levels cannot be declared")
    named = ((name, _object(schema, f"{where}.{name}")) for name, schema in _sorted(properties))
    yield "{"
    yield from _joined(_field(name, _property(s, f"{where}.{name}", quote, depth + 1)) for name, s in named)
    yield "}"


def write_declaration(tool: Tool, quote: int) -> Pieces:
    """Raises ValueError that names the tool and the field of its schema that cannot be declared."""
    yield f"declaration:{named(tool.name)}{{"
    fields = [_field("description", _string(tool.description, quote))]
    if tool.parameters:
        fields.append(_field("parameters", _parameters(tool.parameters, f"tool {tool.name}: parameters", quote)))
    yield from _joined(fields)
    yield "}"


def _parameters(schema: Mapping[str, Any], where: str, quote: int) -> Pieces:
    kind, _ = _type({"type": "object"} | dict(schema), where)
    if kind != "OBJECT":
        raise ValueError(f"{where}.type is {shown(schema['type'])}; the parameters of a tool are an object")
    fields: list[Pieces] = []
    if schema.get("properties"):
        fields.append(_field("properties", _properties(_object(schema["properties"], where), where, quote, 0)))
    if schema.get("required"):
        fields.append(_field("required", _list(schema["required"], quote, False, 0)))
    yield "{"
    yield from _joined((*fields, _field("type", _string(kind, quote))))
    yield "}"


# ── calls, read ────────────────────────────────────────────────────────────────────────────────────────────


class _String(str):
    """A text between two quotation marks."""


class _Unreadable(ValueError):
    pass


def read_call(texts: Sequence[str]) -> ToolCall | None:
    """A call that the model wrote, as the texts between quotation marks; None when it is not exactly of the notation."""
    # Between the first and the second mark is a string, between the second and the third is none, and so on.
    symbols: list[str] = []
    for number, text in enumerate(texts):
        symbols.extend([_String(text)] if number % 2 else text)
    head = texts[0].partition("{")[0]
    name = head.removeprefix("call:")
    if len(texts) % 2 == 0 or name == head or not NAME.fullmatch(name):
        return None
    reader = _Reader(symbols, len(head))
    try:
        arguments = reader.value(0)
        reader.end()
    except _Unreadable:
        return None
    return ToolCall(name, arguments) if isinstance(arguments, dict) else None


class _Reader:
    """A recursive descent parser over characters and strings."""

    def __init__(self, symbols: Sequence[str], position: int) -> None:
        self._symbols, self._position = symbols, position

    def _peek(self) -> str:
        """The next symbol that is no space."""
        while self._position < len(self._symbols):
            symbol = self._symbols[self._position]
            if isinstance(symbol, _String) or not symbol.isspace():
                return symbol
            self._position += 1
        raise _Unreadable

    def _next(self) -> str:
        symbol = self._peek()
        self._position += 1
        return symbol

    def _accept(self, character: str) -> bool:
        symbol = self._peek()
        found = symbol == character and not isinstance(symbol, _String)
        self._position += found
        return found

    def end(self) -> None:
        if any(isinstance(symbol, _String) or not symbol.isspace() for symbol in self._symbols[self._position :]):
            raise _Unreadable

    def _bare(self, ends: str) -> str:
        """Characters up to one of ``ends``."""
        out = ""
        while (symbol := self._symbols[self._position] if self._position < len(self._symbols) else "}") not in ends:
            if isinstance(symbol, _String):
                raise _Unreadable
            out += symbol
            self._position += 1
        return out.strip()

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _Unreadable
        symbol = self._peek()
        if isinstance(symbol, _String):
            self._position += 1
            return str(symbol)
        if self._accept("{"):
            return self._object(depth)
        if self._accept("["):
            return self._array(depth)
        return _literal(self._bare(",}]"))

    def _object(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self._accept("}"):
            return out
        while True:
            key = str(self._next()) if isinstance(self._peek(), _String) else self._bare(":,{}[]")
            # As in JSON, the last value of a repeated key is read.
            if not key or not self._accept(":"):
                raise _Unreadable
            out[key] = self.value(depth + 1)
            if self._accept("}"):
                return out
            if not self._accept(","):
                raise _Unreadable

    def _array(self, depth: int) -> list[Any]:
        out: list[Any] = []
        if self._accept("]"):
            return out
        while True:
            out.append(self.value(depth + 1))
            if self._accept("]"):
                return out
            if not self._accept(","):
                raise _Unreadable


def _literal(text: str) -> Any:
    """A number, true, false or null."""
    try:
        value = json.loads(text)
    # ValueError: also an integer of thousands of digits.
    except ValueError:
        raise _Unreadable from None
    if value is not None and not (isinstance(value, bool | int | float) and math.isfinite(value)):
        raise _Unreadable
    return value
