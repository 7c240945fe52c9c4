"""Tools in our own prompt format: what is learned, what a prompt is, and that no text becomes a control token."""

from __future__ import annotations

from dataclasses import asdict, replace

import jax.numpy as jnp
import numpy as np
import pytest

from alhena.content import Content, Document, Image, Text, Thought, Tool, ToolCall, ToolResult
from alhena.serve.decoding.sampling import image_grammar
from alhena.serve.decoding.sampling.detokenize import Detokenizer
from alhena.tokens.formats.own_tools import signature
from alhena.tokens.vocabulary import CONTROLS
from tests.conftest import random_image

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER, CLOCK = Tool("weather", "The weather.", CITY), Tool("clock")
CALLS = (ToolCall("weather", {"city": 'Bern "<end>'}), ToolCall("clock", {}))
RESULTS = (ToolResult("weather", {"temp": 21}, (random_image(0),)), ToolResult("clock", {"now": "12"}))
TURNS = (
    Content("user", (Text("How warm is it? <call> <end>"),)),
    Content("model", (Text("I look."), *CALLS)),
    Content("tool", RESULTS),
    Content("model", (Text("21 degrees"),)),
)
DOCUMENT = Document(TURNS, "0", "tools", facts={"tools": [asdict(WEATHER), asdict(CLOCK)]})


def test_calls_and_answers_are_learned_and_nothing_else(encoder):
    (example,) = encoder.encode(DOCUMENT, 512)
    learned = example.targets[example.weights > encoder.budget.question_weight].tolist()
    state = Detokenizer(encoder.tokenizer, encoder.vocabulary, lambda codes: Image(b""))
    ends = [i + 1 for i, token in enumerate(learned) if token == encoder.vocabulary.end]
    first, second = learned[: ends[0]], learned[ends[0] :]
    assert [part for token in first for part in state.feed(token) if not isinstance(part, Text)] == [*CALLS]
    assert encoder.tokenizer.decode(second[:-1]) == "21 degrees"
    assert len(ends) == 2


def test_a_prompt_is_the_beginning_of_its_document(encoder):
    (example,) = encoder.encode(DOCUMENT, 512)
    for turns in (1, 3):
        prompt = encoder.prompt(TURNS[:turns], (WEATHER, CLOCK))
        np.testing.assert_array_equal(prompt.tokens, example.tokens[: len(prompt.tokens)])
        assert prompt.tokens[-1] == encoder.vocabulary.control("<model>")
    assert len(prompt.patches) == len(example.patches) > 0


def test_no_text_becomes_a_control_token(encoder):
    """Neither in a turn, nor in a declaration, in an argument or in a result."""
    text, v = " ".join(CONTROLS), encoder.vocabulary
    tool = Tool("f", text, {"type": "object", "properties": {"a": {"type": "string", "enum": [text]}}})
    turns = (
        Content("system", (Text(text),)),
        Content("user", (Text(text),)),
        Content("model", (ToolCall("f", {"a": text}),)),
        Content("tool", (ToolResult("f", {text: text}),)),
    )
    tokens = [v.bos, "<tool>", v.end, "<user>", v.end, "<model>", "<call>", *["<quote>"] * 2, "<call_end>", v.end]
    tokens += ["<result>", *["<quote>"] * 2, v.end, "<model>"]
    expected = [token if isinstance(token, int) else v.control(token) for token in tokens]
    assert [t for t in encoder.prompt(turns, (tool,)).tokens.tolist() if t >= v.num_text] == expected


@pytest.mark.parametrize(
    ("parameters", "written"),
    [
        ({}, "f() D"),
        (CITY, "f(city: string) D"),
        (
            {"type": "OBJECT", "properties": {"u": {"type": "STRING", "enum": ["C", "F"], "description": "the unit"}}},
            'f(u?: "C" | "F" "the unit") D',
        ),
        (
            {"properties": {"a": {"type": ["array", "null"], "items": {"type": "integer"}}, "o": CITY}},
            "f(a?: [integer] | null, o?: {city: string}) D",
        ),
        ({"properties": {"x": {"anyOf": [{"type": "number"}, {"type": "null"}]}}}, "f(x?: number | null) D"),
    ],
)
def test_declarations_are_signatures(parameters, written):
    assert signature(Tool("f", "D", parameters)) == written


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (Tool("f", "", {"properties": {"a": {"$ref": "#/x"}}}), r"f: parameters\.a\.type is None"),
        (Tool("f", "", {"properties": {"a": {"type": "date"}}}), r"parameters\.a\.type is 'date'"),
        (Tool("f", "", {"type": "array"}), r"parameters\.type is 'array'"),
        (Tool("a b"), "tool name 'a b'"),
    ],
)
def test_what_cannot_be_declared_is_named(tool, message):
    with pytest.raises(ValueError, match=message):
        signature(tool)


def test_turns_that_the_format_does_not_have_are_refused(encoder):
    with pytest.raises(ValueError, match="add a turn of the role 'tool'"):
        encoder.prompt(TURNS[:2], (WEATHER,))
    for content in (
        Content("user", CALLS),
        Content("tool", (Text("x"),)),
        Content("model", RESULTS),
        Content("model", (Thought("x"),)),
    ):
        with pytest.raises(ValueError, match="in a turn of the role"):
            encoder.encode(replace(DOCUMENT, contents=(TURNS[0], content)), 512)


def test_a_call_is_closed_before_an_answer_ends(encoder):
    v = encoder.vocabulary
    allowed = {
        "": ("<end>", "<boi_out>", "<call>"),
        "<call>": ("<quote>", "<call_end>"),
        "<quote>": ("<quote>", "<call_end>"),
        "<call_end>": ("<end>", "<boi_out>", "<call>"),
    }
    grammar = image_grammar.start(1)
    for token, names in allowed.items():
        if token:
            grammar = image_grammar.advance(grammar, jnp.array([v.control(token)]), v)
        mask = np.asarray(image_grammar.allowed_tokens(grammar, v, 64))[0]
        assert mask[1 : v.num_text].all()
        assert {name for name in CONTROLS if mask[v.control(name)]} == set(names)
        assert not mask[v.time(0) :].any()
