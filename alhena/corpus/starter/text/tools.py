"""Tools: declared functions, requests, calls with arguments, results, and answers in words; JSON extraction by a schema.

    declared  get_weather(city: string), set_timer(minutes: integer)
    user      How warm is it in Bern?              tools/call    the right call with its arguments, or two of them
    model     get_weather{"city": "Bern"}          tools/answer  the answer in words, after the result
    tool      {"temperature": 21, "sky": "sunny"}  tools/none    requests that no declared tool answers, or that need none
    model     21 degrees and sunny in Bern         tools/json    values in a sentence, as JSON (json_extraction.py)

``facts["tools"]`` holds the declarations. The test split asks for combinations of a tool and a value that are absent from training
(splits.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alhena.content import Content, Document, Part, Text, Tool, ToolCall, ToolResult
from alhena.corpus.starter.items import ItemSpec, pick, sample
from alhena.corpus.starter.splits import split_of
from alhena.corpus.starter.text import json_extraction
from alhena.corpus.starter.text.retrieval import KEYS
from alhena.corpus.starter.text.tool_intents import (
    DAYS,
    INTEGER,
    INTENTS,
    PEOPLE,
    STRING,
    VALUES_OF,
    Intent,
    Parameter,
    or_coined,
    words,
)

KINDS = ("call", "none", "json")
SHARES = (0.45, 0.33, 0.22)
# Of training conversations, by the number of further tools that are declared: short ones teach most for their tokens.
FURTHER_SHARES = (0.5, 0.3, 0.2)
# A request for a tool that is not declared.
NO_TOOL = "i have no tool for that"
SMALL_TALK = {
    "Hello!": "hello", "Hi": "hello", "Good morning.": "good morning", "How are you?": "i am fine", "Thank you!": "you are welcome",
    "Thanks.": "you are welcome", "Who are you?": "i am alhena, a small model", "What is your name?": "alhena", "Bye.": "goodbye",
}  # fmt: skip
SYSTEM = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "Use the tools when they help.",
    "You help with daily tasks.",
)


@dataclass(frozen=True)
class Request:
    """An intent with the names under which its tool and parameters are declared, and the values that are asked for."""

    intent: Intent
    name: str
    # By the keys of the parameters: the name of each that is declared, and the value of each that the request states.
    names: Mapping[str, str]
    values: Mapping[str, Any]
    template: str

    @cached_property
    def slots(self) -> dict[str, str]:
        return {key: _said(self.intent.parameters[key].kind, value) for key, value in self.values.items()}

    @property
    def call(self) -> ToolCall:
        return ToolCall(self.name, {self.names[key]: value for key, value in self.values.items()})

    def tool(self, rng: np.random.Generator) -> Tool:
        """The declaration; most descriptions are left out."""
        properties: dict[str, Any] = {}
        for key, name in self.names.items():
            parameter = self.intent.parameters[key]
            description = {"description": parameter.description} if rng.random() < 0.1 else {}
            properties[name] = parameter.schema | description
        required = [name for key, name in self.names.items() if self.intent.parameters[key].required]
        schema = {"type": "object", "properties": properties, "required": required}
        return Tool(self.name, self.intent.description if rng.random() < 0.4 else "", schema)


def _said(kind: str, value: Any) -> str:
    """A value as a request says it."""
    if kind == "switch":
        return "on" if value else "off"
    return f"on {value}" if kind == "day" and value in DAYS[:7] else str(value)


def _invented(rng: np.random.Generator) -> Intent:
    """A tool that no one has seen: only its declaration tells its names."""
    name, keys = "_".join(sample(rng, KEYS, 2)), sample(rng, KEYS, int(rng.integers(1, 3)))
    kinds = {key: pick(rng, ("person", "count", "text")) for key in keys}
    parameters = {
        key: Parameter((key,), kind, INTEGER if kind == "count" else STRING, f"the {key}")
        for key, kind in kinds.items()
    }
    said = ", ".join(f"{key} {{{key}}}" for key in keys)
    requests = tuple(f"{verb} {name} with {said}." for verb in ("Call", "Run", "Use", "Please call"))
    done = {pick(rng, ("status", "value")): pick(rng, PEOPLE)}
    return Intent((name,), f"The {name.replace('_', ' ')}.", parameters, requests, lambda rng, values: done, "done")


def _value(rng: np.random.Generator, kind: str, in_test: bool) -> Any:
    value = VALUES_OF[kind](rng)
    return value if in_test else or_coined(rng, value)


def _request(rng: np.random.Generator, in_test: bool) -> Request:
    """A request whose tool and first value, together, are held out for the test or are not."""
    while True:
        key = pick(rng, (*INTENTS, *["invented"] * 4))
        intent = INTENTS[key] if key in INTENTS else _invented(rng)
        template = pick(rng, intent.requests)
        asked = [name for name in intent.parameters if f"{{{name}}}" in template]
        values = {name: _value(rng, intent.parameters[name].kind, in_test) for name in asked}
        if len({str(value) for value in values.values()}) < len(values):
            continue
        first = next(iter(intent.parameters))
        held_out = (intent.names[0], values[first]) if key in INTENTS else (intent.names[0],)
        if (split_of("tools", *held_out) == "test") != in_test:
            continue
        optional = [n for n in intent.parameters if n not in asked and not intent.parameters[n].required]
        declared = [n for n in intent.parameters if n not in optional or rng.random() < 0.4]
        names = {name: pick(rng, intent.parameters[name].names) for name in declared}
        if len(set(names.values())) == len(names):
            return Request(intent, pick(rng, intent.names), names, values, template)


def _twice(rng: np.random.Generator, request: Request, in_test: bool) -> tuple[str, list[ToolCall]] | None:
    """A request for two calls of the same tool, where its intent has one."""
    first = next(iter(request.names))
    if request.intent.twice is None or set(request.values) != {first}:
        return None
    kind = request.intent.parameters[first].kind
    others = [value for value in (_value(rng, kind, in_test) for _ in range(30)) if value != request.values[first]]
    is_held_out = [split_of("tools", request.intent.names[0], value) == "test" for value in others]
    other = next((value for value, held_out in zip(others, is_held_out, strict=True) if held_out == in_test), None)
    if other is None:
        return None
    calls = [request.call, ToolCall(request.name, {request.names[first]: other})]
    return request.intent.twice.format(request.values[first], other), calls


def _declared(spec: ItemSpec, request: Request, exclude: tuple[str, ...] = ()) -> list[Tool]:
    """The tool of the request among up to two others, in random order; in training mostly fewer."""
    rng = spec.rng
    tools, taken = {request.name: request.tool(rng)}, {request.intent.names[0], *exclude}
    shares = None if spec.split == "test" else FURTHER_SHARES
    for _ in range(int(rng.choice(len(FURTHER_SHARES), p=shares))):
        other = _request(rng, False)
        if other.intent.names[0] not in taken and other.name not in tools:
            taken.add(other.intent.names[0])
            tools[other.name] = other.tool(rng)
    return sample(rng, list(tools.values()), len(tools))


def _chat(spec: ItemSpec, turns: list[Content], tools: list[Tool], **facts: Any) -> Document:
    if spec.rng.random() < 0.1:
        turns = [Content("system", (Text(pick(spec.rng, SYSTEM)),)), *turns]
    facts = {"task": spec.task, **({"tools": [asdict(tool) for tool in tools]} if tools else {}), **facts}
    return Document(tuple(turns), spec.id, spec.source, "en", facts)


def _user(text: str) -> Content:
    return Content("user", (Text(text),))


def _model(*parts: Part) -> Content:
    return Content("model", parts)


def _calls(spec: ItemSpec, task: str) -> Document:
    """A request, its call; with results and the answer in training and for ``tools/answer``."""
    rng, in_test = spec.rng, spec.split == "test"
    request = _request(rng, in_test)
    twice = _twice(rng, request, in_test) if task == "call" and rng.random() < 0.5 else None
    tools = _declared(spec, request)
    pairs = [[request.intent.names[0], call_value] for call_value in map(str, request.values.values())]
    if twice is not None:
        return _chat(spec, [_user(twice[0]), _model(*twice[1])], tools, pairs=pairs)
    turns = [_user(request.template.format(**request.slots)), _model(request.call)]
    if task == "answer":
        result = request.intent.result(rng, request.values)
        slots = request.slots | {key: str(value) for key, value in result.items()}
        turns += [Content("tool", (ToolResult(request.name, result),))]
        turns += [_model(Text(request.intent.answer.format(**slots)))]
    return _chat(spec, turns, tools, pairs=pairs)


def _repeated(rng: np.random.Generator, in_test: bool) -> str:
    text = words(rng, 2, 4)
    return text if in_test else " ".join(or_coined(rng, word) for word in text.split())


def _none(spec: ItemSpec) -> Document:
    """Small talk, words to repeat, or a request whose tool is not declared."""
    rng, in_test = spec.rng, spec.split == "test"
    request = _request(rng, in_test)
    kind = rng.random()
    if kind < (0.4 if in_test else 0.6):
        tools = _declared(spec, _request(rng, False), (request.intent.names[0],))
        if all(tool.name not in request.intent.names for tool in tools):
            return _chat(spec, [_user(request.template.format(**request.slots)), _model(Text(NO_TOOL))], tools)
    tools = _declared(spec, request) if rng.random() < (0.6 if in_test else 0.3) else []
    if kind < 0.85 or in_test:
        text = _repeated(rng, in_test)
        while (split_of("repeat", text) == "test") != in_test:
            text = _repeated(rng, in_test)
        question = pick(rng, ("Repeat: {}", "Say {}.", "Repeat the words {}.", "Write {}.")).format(text)
        return _chat(spec, [_user(question), _model(Text(text))], tools)
    question = pick(rng, [*SMALL_TALK])
    return _chat(spec, [_user(question), _model(Text(SMALL_TALK[question]))], tools)


def make(spec: ItemSpec) -> Document:
    """One conversation; in training of any kind."""
    task = spec.task.partition("/")[2]
    if spec.split == "train":
        task = KINDS[int(spec.rng.choice(len(KINDS), p=SHARES))]
        task = "answer" if task == "call" and spec.rng.random() < 0.5 else task
    if task == "json":
        return json_extraction.make(spec)
    return _none(spec) if task == "none" else _calls(spec, task)
