"""The grammar of tool calls: JSON schemas of parameters to rules of llguidance's dialect of Lark.

    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}  ─►  <call> call:weather{city:"Bern"} <call_end>

Gemma 4's format and our own share the notation (alhena/tokens/formats/tool_format.py): keys are sorted, and the quotation marks of strings
are a control token. In our own format each run of text between control tokens begins with the space that SentencePiece adds.
What the notation or a regular expression cannot carry is refused by its name and place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from alhena.content import Tool
from alhena.schema import shown
from alhena.serve.structured.formats import PATTERNS
from alhena.serve.structured.json_schema import MAX_NUMBER, TYPES, json_schema
from alhena.tokens.formats.tool_format import named, write_value

# Levels of a value that no schema describes.
FREE_DEPTH = 6
FREE_KEY = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
# Digits that can be read back; an exponent of two digits is finite.
INTEGER = r"/-?(0|[1-9][0-9]{0,17})/"
NUMBER = r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+\-]?[0-9]{1,2})?/"
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OF_TYPE = {
    "null": set[str](),
    "boolean": set[str](),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "string": {"minLength", "maxLength", "pattern", "format"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_SUPPORTED = {"type", "enum", "anyOf", "oneOf", "$ref", "$defs"}.union(*_OF_TYPE.values())


@dataclass(frozen=True)
class CallMarks:
    """Ids of the control tokens of calls, and what each run of text begins with."""

    call: int
    call_end: int
    quote: int
    run: str = ""


def literal(text: str) -> str:
    """A text as a string of the grammar."""
    return json.dumps(text)


def call_rules(tools: Sequence[Tool], marks: CallMarks) -> list[str]:
    """The rules of ``call``: one call of one of the tools. Raises ValueError that names the tool and what is not supported."""
    rules = _Rules(marks)
    rules.lines.append("call: " + " | ".join(rules.call(tool, number) for number, tool in enumerate(tools)))
    return rules.lines


class _Rules:
    """Rules under construction; equal bodies share a rule."""

    def __init__(self, marks: CallMarks) -> None:
        self._marks, self.lines, self._named = marks, list[str](), dict[str, str]()
        self._quote, self._run = f"<[{marks.quote}]>", literal(marks.run) if marks.run else ""
        self._definitions = ""

    def _rule(self, body: str, kind: str = "r") -> str:
        """The name of the rule of a body; terminals have names in capitals."""
        if body not in self._named:
            self._named[body] = f"{kind}{len(self._named)}"
            self.lines.append(f"{self._named[body]}: {body}")
        return self._named[body]

    def call(self, tool: Tool, number: int) -> str:
        """One call of a tool."""
        where, self._definitions = f"tool {tool.name[:64]}: parameters", f"t{number}_"
        schema = json_schema(dict(tool.parameters) or {"type": "object"}, where)
        if "$ref" not in schema and schema.setdefault("type", "object") != "object":
            raise ValueError(f"{where}.type is {shown(schema['type'])}; the parameters of a tool are an object")
        if "properties" not in schema and "$ref" not in schema:
            schema.setdefault("additionalProperties", False)
        for name, definition in schema.get("$defs", {}).items():
            self.lines.append(f"{self._definitions}{name}: {self._value(definition, f'{where}.$defs.{name}')}")
        arguments = self._value(schema, where)
        head = literal(f"{self._marks.run}call:{named(tool.name)}")
        return self._rule(f"<[{self._marks.call}]> {head} {arguments} <[{self._marks.call_end}]>")

    def _value(self, schema: Any, where: str) -> str:
        """The rule of the values of a schema."""
        if unsupported := [name for name in schema if name not in _SUPPORTED]:
            raise ValueError(f"{where}.{unsupported[0]} is not supported in calls of tools")
        if "$ref" in schema:
            return self._definitions + schema["$ref"].removeprefix("#/$defs/")
        types = schema.get("type", TYPES)
        types = [types] if isinstance(types, str) else types
        for name in ("enum", "anyOf", "oneOf"):
            if name in schema:
                self._check_alone(schema, name, where)
                if name == "enum":
                    return self._rule(" | ".join(self._constant(value, where) for value in schema[name]))
                typed = [
                    b if "$ref" in b or "type" in b or "type" not in schema else {"type": types} | b
                    for b in schema[name]
                ]
                return self._rule(" | ".join(self._value(b, f"{where}.{name}[{i}]") for i, b in enumerate(typed)))
        if schema.keys() <= {"$defs"}:
            return self._free(0)
        return self._rule(" | ".join(dict.fromkeys(self._of_type(kind, schema, where) for kind in types)))

    def _check_alone(self, schema: Mapping[str, Any], name: str, where: str) -> None:
        """Raises ValueError for what constrains a value a second time."""
        if others := sorted(schema.keys() - {name, "type", "$defs"}):
            raise ValueError(f"{where}.{others[0]} beside {name} is not supported in calls of tools")

    def _of_type(self, kind: str, schema: Mapping[str, Any], where: str) -> str:
        """An expression of the values of one type."""
        if kind == "null":
            return '"null"'
        if kind == "boolean":
            return '"true" | "false"'
        if kind in ("integer", "number"):
            return self._number(kind, schema)
        if kind == "string":
            return self._string(schema, where)
        return self._array(schema, where) if kind == "array" else self._object(schema, where)

    def _number(self, kind: str, schema: Mapping[str, Any]) -> str:
        bounds = {name: schema[name] for name in _BOUNDS if name in schema}
        if not bounds:
            return INTEGER if kind == "integer" else NUMBER
        # More digits than an integer may have could not be read back.
        if not bounds.keys() & {"minimum", "exclusiveMinimum"}:
            bounds["minimum"] = -MAX_NUMBER
        if not bounds.keys() & {"maximum", "exclusiveMaximum"}:
            bounds["maximum"] = MAX_NUMBER
        return self._rule(
            f"%json {json.dumps({'type': kind} | bounds | {'x-guidance': {'whitespace_flexible': False}})}"
        )

    # ── strings ────────────────────────────────────────────────────────────────────────────────────────────

    def _string(self, schema: Mapping[str, Any], where: str) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        texts = [f"/(?s:.{{{least},{'' if most is None else most}}})/"] if least or most is not None else []
        if "pattern" in schema:
            texts.append(f"/{_searched(schema['pattern'], f'{where}.pattern')}/")
        if "format" in schema:
            if schema["format"] not in PATTERNS:
                raise ValueError(
                    f"{where}.format is {shown(schema['format'])}, which is not supported in calls of tools"
                )
            texts.append(f"/{PATTERNS[schema['format']]}/")
        text = self._rule(" & ".join(texts) or "/(?s:.*)/", "T")
        # An empty text has no token at all.
        empty = (
            f" | {self._quoted('')}" if self._run and not least and not {"pattern", "format"} & schema.keys() else ""
        )
        return self._rule(f"{self._quote} {self._run} {text} {self._quote} {self._run}{empty}")

    def _quoted(self, text: str) -> str:
        inside = literal(self._marks.run + text) if text else ""
        return f"{self._quote} {inside} {self._quote} {self._run}"

    def _constant(self, value: Any, where: str) -> str:
        """One value of an enum."""
        out, after_mark = list[str](), False
        try:
            for piece in write_value(value, self._marks.quote):
                if isinstance(piece, int):
                    out.append(self._quote)
                elif piece:
                    out.append(literal((self._marks.run if after_mark else "") + piece))
                after_mark = isinstance(piece, int) or (after_mark and not piece)
        except ValueError as error:
            raise ValueError(f"{where}.enum: {error}") from None
        return " ".join([*out, self._run] if after_mark else out)

    # ── arrays and objects ─────────────────────────────────────────────────────────────────────────────────

    def _array(self, schema: Mapping[str, Any], where: str) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        items = schema.get("items", {})
        if items is False:
            most = 0
        if most is not None and least > most:
            raise ValueError(f"{where}.minItems is greater than maxItems")
        if most == 0:
            return '"[" "]"'
        item = self._value(items, f"{where}.items")
        more = item if most == 1 else f'{item} ("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" {more} "]"' if least else f'"[" ({more})? "]"'

    def _object(self, schema: Mapping[str, Any], where: str) -> str:
        others = schema.get("additionalProperties", {})
        properties = dict(schema.get("properties", {}))
        required = schema.get("required", [])
        for name in required:
            if name not in properties and others is False:
                raise ValueError(f"{where}.required has {shown(name)}, which is none of the properties")
            properties.setdefault(name, others)
        fields = [
            (
                f"{self._key(name, where)} {self._value(properties[name], f'{where}.properties.{name[:64]}')}",
                name in required,
            )
            for name in sorted(properties, key=str.lower)
        ]
        first, next_ = "", ""
        if others is not False:
            field = f'{self._free_key(properties)} ":" {self._value(others, f"{where}.additionalProperties")}'
            next_ = self._rule(f'("," {field})*')
            first = self._rule(f"| {field} {next_}")
        for field, is_required in reversed(fields):
            # What may follow where nothing is written yet, and after a property.
            first, next_ = (
                self._rule(f"{field} {next_}" + ("" if is_required else f" | {first}")),
                self._rule(f'"," {field} {next_}' + ("" if is_required else f" | {next_}")),
            )
        return f'"{{" {first} "}}"'

    def _key(self, name: str, where: str) -> str:
        if not name:
            raise ValueError(f"{where}.properties: a name must not be empty")
        if re.fullmatch(r"[^:,{}\[\]\s]+", name):
            return literal(f"{name}:")
        return f'{self._quoted(name)} ":"'

    def _free_key(self, declared: Iterable[str]) -> str:
        taken = [name for name in declared if re.fullmatch(FREE_KEY, name)]
        return self._rule(f"/{FREE_KEY}/" + (f" & ~/{'|'.join(taken)}/" if taken else ""), "T")

    def _free(self, depth: int) -> str:
        """Any value of a few levels."""
        scalars = ["null", "boolean", "number", "string"]
        out = [self._of_type(kind, {}, "") for kind in scalars]
        if depth < FREE_DEPTH:
            value = self._free(depth + 1)
            field = f'{self._free_key(())} ":" {value}'
            out += [f'"[" ({value} ("," {value})*)? "]"', f'"{{" ({field} ("," {field})*)? "}}"']
        return self._rule(" | ".join(out))


def _searched(pattern: str, where: str) -> str:
    """A pattern that is looked for anywhere in a text, as a regular expression of the whole text."""
    inner = pattern.removeprefix("^")
    is_end = inner.endswith("$") and (len(inner) - len(inner[:-1].rstrip("\\"))) % 2 == 1
    inner = inner[:-1] if is_end else inner
    anchors = re.sub(r"\\.|\[(\\.|[^\]])*\]", "", inner)
    if re.search(r"[\^$]|\\b|\\B", anchors) or "(?" in anchors.replace("(?:", ""):
        raise ValueError(
            f"{where} is {shown(pattern)}; ^ and $ at its ends, and no look-around, are supported in calls"
        )
    if _alternates(anchors) and (pattern.startswith("^") or is_end):
        raise ValueError(f"{where} is {shown(pattern)}; alternatives beside ^ and $ must be in parentheses")
    before, after = "" if pattern.startswith("^") else "(?s:.*)", "" if is_end else "(?s:.*)"
    return f"{before}({regex_to_lark(inner, 'dw')}){after}"


def _alternates(pattern: str) -> bool:
    """Whether there is a | outside of all parentheses."""
    depth = 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            return True
    return False
