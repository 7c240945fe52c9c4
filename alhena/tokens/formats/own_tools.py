"""Tools in our own prompt format: declarations as signatures, calls and results in the notation of Gemma 4 (tool_format.py).

    <tool> weather(city: string "a place", unit?: "C" | "F", days?: [integer]) The weather of a city. <end>
    <call> call:weather{city:"Bern",days:[1,2]} <call_end>                       in model turns, any number of them
    <result> response:weather{temp:21} image… <end>                              one for each result, after the model turn

A model turn is ``<model> (text | image | call)* <end>``. What a call may be, token by token (the quotation marks of strings are the
control token <quote>, written ``"`` here; the texts between control tokens are *runs*):

    call    = <call> "call:" NAME object <call_end>            NAME  = [\\w.:-]{1,256}
    object  = "{" [ KEY ":" value { "," KEY ":" value } ] "}"  KEY   = a run without any of : , { } [ ]; sorted, case ignored
    array   = "[" [ value { "," value } ] "]"
    value   = <quote> TEXT <quote> | NUMBER | "true" | "false" | "null" | object | array

NUMBER is that of JSON. TEXT is any text, without escapes: no text ends a string, because none becomes a control token. A key may be
quoted too when it is read. Nothing has spaces around it, but each run is encoded as every text is: its first token begins with the
space that SentencePiece adds and that decoding removes. So a string is written with the very tokens that it has in running text,
and copying a value is copying tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from alhena.content import Document, Tool, ToolCall
from alhena.schema import parsed, shown
from alhena.tokens.formats.tool_format import MAX_DEPTH, named, read_call


def declared_tools(document: Document) -> list[Tool]:
    """The tools that ``facts`` of a document declare."""
    tools = document.facts.get("tools", [])
    return [] if tools == [] else parsed(list[Tool], tools, Path(document.id), "facts.tools")


# ── declarations ───────────────────────────────────────────────────────────────────────────────────────────


def signature(tool: Tool) -> str:
    """The declaration of a tool. Raises ValueError that names the field of its schema that cannot be declared.

    >>> signature(Tool("roll", "Rolls dice.", {"type": "object", "properties": {"sides": {"type": "integer"}}}))
    'roll(sides?: integer) Rolls dice.'
    """
    schema = {"type": "object"} | dict(tool.parameters)
    where = f"tool {tool.name}: parameters"
    if str(schema["type"]).lower() != "object":
        raise ValueError(f"{where}.type is {shown(schema['type'])}; the parameters of a tool are an object")
    text = f"{named(tool.name)}({_properties(schema, where, 0)})"
    return f"{text} {tool.description}" if tool.description else text


def _properties(schema: Mapping[str, Any], where: str, depth: int) -> str:
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        raise ValueError(f"{where}: properties must be an object, and required a list of names")
    return ", ".join(
        f"{name}{'' if name in required else '?'}: {_described(value, f'{where}.{name}', depth + 1)}"
        for name, value in properties.items()
    )


def _described(schema: Any, where: str, depth: int) -> str:
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where} is {shown(schema)}; it must be an object")
    description = schema.get("description")
    return f'{_type(schema, where, depth)} "{description}"' if description else _type(schema, where, depth)


def _type(schema: Mapping[str, Any], where: str, depth: int) -> str:
    """The type; bounds, formats and defaults of a JSON schema are not declared."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: a schema of more than {MAX_DEPTH} levels cannot be declared")
    if schema.get("enum"):
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list | tuple):
            return " | ".join(_described(one, f"{where}.{key}", depth + 1) for one in schema[key])
    stated = schema.get("type")
    types = [stated] if isinstance(stated, str) else stated
    if not types or not isinstance(types, list | tuple) or not all(isinstance(name, str) for name in types):
        raise ValueError(f"{where}.type is {shown(stated)}; it must be a JSON type: other schemas cannot be declared")
    names = [_one_type(name.lower(), schema, where, depth) for name in types]
    return " | ".join([*names, "null"] if schema.get("nullable") and "null" not in names else names)


def _one_type(name: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
    if name == "array":
        return f"[{_described(schema['items'], f'{where}.items', depth + 1) if schema.get('items') else ''}]"
    if name == "object":
        return f"{{{_properties(schema, where, depth)}}}"
    if name not in ("string", "integer", "number", "boolean", "null"):
        raise ValueError(f"{where}.type is {shown(name)}, which is no JSON type")
    return name


# ── tokens ─────────────────────────────────────────────────────────────────────────────────────────────────


def encoded(pieces: Iterable[str | int], encode: Callable[[str], list[int]]) -> Iterator[int]:
    """Tokens of texts and control tokens; adjacent texts are one run."""
    for is_text, run in groupby(pieces, key=lambda piece: isinstance(piece, str)):
        if is_text:
            yield from encode("".join(map(str, run)))
        else:
            yield from (int(token) for token in run)


def runs_of(tokens: Iterable[int], quote: int) -> list[list[int]]:
    """The runs between quotation marks."""
    runs: list[list[int]] = [[]]
    for token in tokens:
        if token == quote:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs


def call_of(tokens: Sequence[int], quote: int, decode: Callable[[list[int]], str]) -> ToolCall | str:
    """The call that the tokens between <call> and <call_end> write; their text where it is none of the notation."""
    texts = [decode(run) for run in runs_of(tokens, quote)]
    return read_call(texts) or '"'.join(texts)
