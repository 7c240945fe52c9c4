"""Schemas of answers and of function parameters, as JSON Schema that can be enforced token by token.

    Schema object of the Gemini API ─┐
    JSON Schema (2020-12) ───────────┴─ json_schema ─► JSON Schema of supported keywords, bounded in size and depth

Both dialects are read by one function: types in either case, ``nullable``, ``propertyOrdering``, names in camelCase or snake_case.
What cannot be enforced is refused by its name and place; only annotations, such as ``description``, are left out. An object with
declared properties has no others, unless it is composed or says so: such documents are valid, and what applications expect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from alhena.schema import shown
from alhena.serve.structured.finite_schema import check_finite
from alhena.serve.structured.formats import PATTERNS, repetitions

MAX_BYTES, MAX_DEPTH, MAX_SCHEMAS, MAX_PROPERTIES, MAX_ENUM = 1 << 18, 48, 4096, 512, 4096
# Of minItems and maxItems; of minLength and maxLength.
MAX_ITEMS, MAX_LENGTH, MAX_PATTERN = 4096, 1 << 14, 1024
# Integers beyond it are not exact in the numbers of JSON.
MAX_NUMBER = 2**53
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_INTEGERS = {"int32": 2**31, "int64": MAX_NUMBER}
ANNOTATIONS = frozenset(
    """
    title description default example examples deprecated readOnly writeOnly $comment discriminator contentMediaType contentEncoding
    """.split()
)
_AT_ROOT = frozenset(("$schema", "$id"))
_DEFINITIONS = ("$defs", "definitions", "defs")
_COUNTS = {
    "minItems": MAX_ITEMS, "maxItems": MAX_ITEMS, "minLength": MAX_LENGTH, "maxLength": MAX_LENGTH,
    "minProperties": MAX_PROPERTIES, "maxProperties": MAX_PROPERTIES,
}  # fmt: skip
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_CHOICES = ("anyOf", "oneOf", "allOf")
_OTHERS = (
    "type", "nullable", "enum", "const", "format", "pattern", "items", "prefixItems", "properties", "required", "additionalProperties",
    "patternProperties", "propertyOrdering", "$ref",
)  # fmt: skip
KEYWORDS = (*_OTHERS, *_COUNTS, *_NUMBERS, *_CHOICES)
_SNAKE = {"".join(f"_{c.lower()}" if c.isupper() else c for c in name): name for name in KEYWORDS}
ALIASES = {**_SNAKE, "ref": "$ref"}
# Beside these, a composition constrains the same value a second time.
_STRUCTURE = frozenset(("properties", "required", "additionalProperties", "patternProperties", "items", "prefixItems"))


def json_schema(schema: Any, where: str = "schema") -> dict[str, Any]:
    """A JSON Schema, or a Schema object of the Gemini API, as JSON Schema of what can be enforced.

    Properties are in the order that an answer has them. Raises ValueError that names the place of what is not supported.
    """
    try:
        size = len(json.dumps(schema))
    except (RecursionError, TypeError, ValueError):
        raise ValueError(f"{where} is no JSON value, or is nested too deeply") from None
    if size > MAX_BYTES:
        raise ValueError(f"{where} has {size:,} bytes; at most {MAX_BYTES:,} can be enforced")
    try:
        return _Reader(schema, where).whole()
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None


def enum_texts(schema: Any, where: str = "schema") -> tuple[str, ...]:
    """The texts of which an answer of the type ``text/x.enum`` is one."""
    values = json_schema(schema, where).get("enum", ())
    if not values or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{where}.enum must be a list of texts: the answer is to be one of them")
    return tuple(values)


class _Reader:
    """Reads one schema with its definitions."""

    def __init__(self, root: Any, where: str) -> None:
        self._root, self._where, self._count, self._is_recursive = root, where, 0, False
        self._is_composed = _is_composed(root)
        self._definitions: dict[str, Any] = {}
        for name in _DEFINITIONS if isinstance(root, Mapping) else ():
            self._definitions |= _object(root.get(name, {}), f"{where}.{name}")
        self._names = {name: f"d{number}" for number, name in enumerate(self._definitions)}

    def whole(self) -> dict[str, Any]:
        out = self.read(self._root, self._where)
        definitions = {
            self._names[name]: self.read(value, f"{self._where}.$defs.{name[:64]}", 1)
            for name, value in self._definitions.items()
        }
        if self._is_recursive:
            definitions["root"], out = out, {"$ref": "#/$defs/root"}
        check_finite(out, definitions, self._where)
        return out | {"$defs": definitions} if definitions else out

    def read(self, value: Any, where: str, depth: int = 0) -> dict[str, Any]:
        """One schema. Definitions and references become ``#/$defs/d0`` and so on."""
        if value is True:
            return {}
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_SCHEMAS:
            raise ValueError(f"{where}: a schema has at most {MAX_DEPTH} levels and {MAX_SCHEMAS} schemas in it")
        fields = _fields(_object(value, where), where, depth)
        is_nullable = fields.pop("nullable", False)
        if not isinstance(is_nullable, bool):
            raise ValueError(f"{where}.nullable is {shown(is_nullable)}; it must be true or false")
        out = self._reference(fields, where) if "$ref" in fields else self._plain(fields, where, depth)
        return {"anyOf": [out, {"type": "null"}]} if is_nullable and out else out

    def _plain(self, fields: dict[str, Any], where: str, depth: int) -> dict[str, Any]:
        if list(fields) == ["allOf"] and isinstance(fields["allOf"], list) and len(fields["allOf"]) == 1:
            return self.read(fields["allOf"][0], f"{where}.allOf[0]", depth + 1)
        types = _types(fields.get("type"), f"{where}.type")
        out: dict[str, Any] = {"type": types[0] if len(types) == 1 else types} if types else {}
        if values := _values(fields, types, where):
            out["enum"] = values
        out |= {
            name: _count(fields[name], f"{where}.{name}", limit) for name, limit in _COUNTS.items() if name in fields
        }
        out |= {name: _number(fields[name], f"{where}.{name}") for name in _NUMBERS if name in fields}
        if out.get("multipleOf", 1) <= 0:
            raise ValueError(f"{where}.multipleOf must be greater than 0")
        if "pattern" in fields:
            out["pattern"] = _pattern(fields["pattern"], f"{where}.pattern")
        _add_format(out, fields.get("format"), types, where)
        self._add_items(out, fields, where, depth)
        self._add_properties(out, fields, where, depth)
        for name in _CHOICES:
            if name in fields:
                branches = _list(fields[name], f"{where}.{name}")
                out[name] = [self._branch(b, name, f"{where}.{name}[{i}]", depth) for i, b in enumerate(branches)]
        return out

    def _branch(self, value: Any, name: str, where: str, depth: int) -> dict[str, Any]:
        """A branch of a composition; those of oneOf are not references, so that it can be seen whether they exclude each other."""
        out = self.read(value, where, depth + 1)
        if name != "oneOf" or "$ref" not in out or out["$ref"] == "#/$defs/root":
            return out
        target = next(n for n, short in self._names.items() if out["$ref"] == f"#/$defs/{short}")
        return self.read(self._definitions[target], where, depth + 1)

    def _reference(self, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
        if len(fields) > 1:
            other = next(name for name in fields if name != "$ref")
            raise ValueError(f"{where}.{other} beside a $ref is not supported")
        reference = fields["$ref"]
        if reference == "#":
            self._is_recursive = True
            return {"$ref": "#/$defs/root"}
        for prefix in (f"#/{name}/" for name in _DEFINITIONS):
            if isinstance(reference, str) and reference.startswith(prefix):
                name = unquote(reference.removeprefix(prefix)).replace("~1", "/").replace("~0", "~")
                if name in self._names:
                    return {"$ref": f"#/$defs/{self._names[name]}"}
        raise ValueError(f"{where}.$ref is {shown(reference)}; it must be # or name one of the root's $defs")

    def _add_items(self, out: dict[str, Any], fields: Mapping[str, Any], where: str, depth: int) -> None:
        if "prefixItems" in fields:
            first = _list(fields["prefixItems"], f"{where}.prefixItems")
            out["prefixItems"] = [self.read(s, f"{where}.prefixItems[{i}]", depth + 1) for i, s in enumerate(first)]
        if fields.get("items") is False:
            out["items"] = False
        elif "items" in fields:
            out["items"] = self.read(fields["items"], f"{where}.items", depth + 1)

    def _add_properties(self, out: dict[str, Any], fields: Mapping[str, Any], where: str, depth: int) -> None:
        declared = _object(fields.get("properties", {}), f"{where}.properties")
        if len(declared) > MAX_PROPERTIES:
            raise ValueError(f"{where}.properties has {len(declared):,}; at most {MAX_PROPERTIES} can be enforced")
        required = _names(fields.get("required", []), f"{where}.required")
        for name in _ordered(declared, fields, where):
            out.setdefault("properties", {})[name] = self.read(
                declared[name], f"{where}.properties.{name[:64]}", depth + 1
            )
        if required:
            out["required"] = required
        patterns = _object(fields.get("patternProperties", {}), f"{where}.patternProperties")
        for pattern, value in patterns.items():
            key = _pattern(pattern, f"{where}.patternProperties")
            out.setdefault("patternProperties", {})[key] = self.read(value, f"{where}.patternProperties", depth + 1)
        others = fields.get("additionalProperties")
        is_closed = bool(declared) and not patterns and not self._is_composed and set(required) <= declared.keys()
        if others is False or (others is None and is_closed):
            out["additionalProperties"] = False
        elif others is not None:
            out["additionalProperties"] = self.read(others, f"{where}.additionalProperties", depth + 1)
        # Names of other properties may repeat: their number is not the number of different ones.
        if out.get("minProperties", 0) > max(len(required), 1) and out.get("additionalProperties") is not False:
            raise ValueError(f"{where}.minProperties is not supported beside properties that are not declared")


def _is_composed(value: Any) -> bool:
    """Whether some value of the schema is constrained by two schemas at once: then no object is closed."""
    if isinstance(value, list):
        return any(map(_is_composed, value))
    if not isinstance(value, Mapping):
        return False
    names = {ALIASES.get(name, name) for name in value}
    both = value.get("allOf", value.get("all_of"))
    if isinstance(both, list) and (len(both) > 1 or names & _STRUCTURE):
        return True
    return bool(names & {"anyOf", "oneOf"} and names & _STRUCTURE) or any(map(_is_composed, value.values()))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {shown(value)}; it must be an object")
    if wrong := [name for name in value if not isinstance(name, str)]:
        raise ValueError(f"{where}: the name {shown(wrong[0])} must be a string")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value or len(value) > MAX_SCHEMAS:
        raise ValueError(f"{where} is {shown(value)}; it must be a list of 1 to {MAX_SCHEMAS}")
    return value


def _names(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(value) > MAX_PROPERTIES:
        raise ValueError(f"{where} is {shown(value)}; it must be a list of at most {MAX_PROPERTIES} names")
    return list(dict.fromkeys(value))


def _fields(value: Mapping[str, Any], where: str, depth: int) -> dict[str, Any]:
    """The assertions of a schema by the names of JSON Schema. Raises ValueError for a keyword that is not supported."""
    fields: dict[str, Any] = {}
    for name, field in value.items():
        known = ALIASES.get(name, name)
        if (
            name in ANNOTATIONS
            or (depth == 0 and name in (*_AT_ROOT, *_DEFINITIONS))
            or (field is None and known != "const")
        ):
            continue
        if known not in KEYWORDS:
            raise ValueError(f"{where}.{name[:64]} is not supported: it cannot be enforced")
        if known in fields:
            raise ValueError(f"{where}.{known} is stated twice")
        fields[known] = field
    return fields


def _ordered(declared: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> list[str]:
    """The names of properties in the order of an answer."""
    first = _names(fields.get("propertyOrdering", []), f"{where}.propertyOrdering")
    if unknown := [name for name in first if name not in declared]:
        raise ValueError(f"{where}.propertyOrdering has {shown(unknown[0])}, which is none of the properties")
    return list(dict.fromkeys((*first, *declared)))


def _types(value: Any, where: str) -> list[str]:
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{where} is {shown(value)}; it must be a type or a list of types")
    names = [name.lower() for name in values if name != "TYPE_UNSPECIFIED"]
    if unknown := [name for name in names if name not in TYPES]:
        raise ValueError(f"{where} is {shown(unknown[0])}; the types are {', '.join(TYPES)}")
    return list(dict.fromkeys(names))


def _is_of(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type."""
    if kind == "integer":
        return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    kinds: dict[str, type | tuple[type, ...]] = {"null": type(None), "boolean": bool, "string": str, "array": list}
    return isinstance(value, kinds.get(kind, dict))


def _values(fields: Mapping[str, Any], types: list[str], where: str) -> list[Any]:
    """The values of enum and const that are of the type; empty where there is neither."""
    if "enum" in fields and "const" in fields:
        raise ValueError(f"{where}.const beside an enum is not supported")
    name = "enum" if "enum" in fields else "const"
    if name not in fields:
        return []
    values = [fields["const"]] if name == "const" else _list(fields["enum"], f"{where}.enum")
    # The Gemini API writes the numbers of an enum as strings.
    if types and set(types) <= {"integer", "number"} and all(isinstance(value, str) for value in values):
        values = [_numeral(value, f"{where}.enum") for value in values]
    for value in values:
        _check_value(value, f"{where}.{name}")
    fitting = [value for value in values if not types or any(_is_of(value, kind) for kind in types)]
    if not fitting or len(values) > MAX_ENUM:
        raise ValueError(f"{where}.{name} must have 1 to {MAX_ENUM} values of the type {', '.join(types)}")
    return fitting


def _numeral(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{where} has {shown(text)}, which is no number") from None


def _check_value(value: Any, where: str) -> None:
    """Raises ValueError for numbers that JSON cannot carry exactly, and for half a surrogate pair."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        _number(value, where)
    elif isinstance(value, str):
        _check_text(value, where)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_value(inner, where)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} has a surrogate: no Unicode text") from None


def _number(value: Any, where: str) -> int | float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) > MAX_NUMBER:
        raise ValueError(f"{where} is {shown(value)}; it must be a number from -2^53 to 2^53")
    return value


def _count(value: Any, where: str, limit: int) -> int:
    """A number of items or characters; the Gemini API writes it as a string too."""
    is_numeral = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 8
    number = int(value) if is_numeral or (isinstance(value, float) and value.is_integer()) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= limit:
        raise ValueError(f"{where} is {shown(value)}; 0 to {limit:,} can be enforced")
    return number


def _pattern(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_PATTERN:
        raise ValueError(f"{where} is {shown(value)}; it must be a pattern of at most {MAX_PATTERN} characters")
    _check_text(value, where)
    if repetitions(value) > MAX_LENGTH:
        raise ValueError(
            f"{where} is {shown(value)}; nested repetitions of at most {MAX_LENGTH:,} in all can be enforced"
        )
    return value


def _add_format(out: dict[str, Any], name: Any, types: list[str], where: str) -> None:
    """The format of a string, or the bounds that the format of an integer stands for."""
    if name is None or name == "":
        return
    if name in _INTEGERS and ("integer" in types or "number" in types):
        limit = _INTEGERS[name]
        out["minimum"] = max(out.get("minimum", -limit), -limit)
        out["maximum"] = min(out.get("maximum", limit - 1), limit - 1)
    elif name in FORMATS and ("string" in types or not types):
        out["format"] = name
        # Some years have no 29 February.
        if name in ("date", "date-time"):
            out.setdefault("pattern", f"^{PATTERNS[name]}$")
    elif not ((name in ("float", "double") and "number" in types) or (name == "enum" and "enum" in out)):
        supported = "of strings " + ", ".join(FORMATS) + "; of numbers int32, int64, float, double"
        raise ValueError(f"{where}.format is {shown(name)}, which cannot be enforced; there are {supported}")
