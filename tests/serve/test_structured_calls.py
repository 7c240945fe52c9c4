"""Calls of tools that are enforced, texts beside them, thoughts before them: sampled under the masks, read back by each family's parser."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alhena.content import Content, Text, Thought, Tool, ToolCall
from alhena.serve.decoding.sampling.sampler import OutputFormat, Sampling
from alhena.serve.engine import Engine, Prompt
from alhena.serve.structured.json_schema import json_schema
from alhena.serve.structured.matcher import Compiler
from alhena.tokens.formats.answers import AnswerParser
from alhena.tokens.text.text_stream import join
from tests.serve.imported_models import write_imported
from tests.serve.structured_samples import (
    CALLING,
    HOSTILE,
    OBJECTS,
    answer,
    bools,
    check,
    compiler_of,
    document,
    encoder_of,
    parts_of,
    sampled,
    whole,
)  # fmt: skip

# ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────

WEATHER = Tool(
    "get.weather",
    "",
    {
        "type": "OBJECT",
        "properties": {
            "city": {"type": "STRING", "minLength": 1},
            "days": {"type": "INTEGER", "minimum": 1, "maximum": 14},
            "unit": {"type": "STRING", "enum": ["C", "F"]},
            "a: b": {"type": "NUMBER", "nullable": True},
        },
        "required": ["city", "days"],
    },
)  # fmt: skip
TOOLS = (WEATHER, Tool("stop"), Tool("any", "", {"type": "object", "additionalProperties": True}))
SCHEMA_OF = {
    tool.name: json_schema(dict(tool.parameters) or {"type": "object", "additionalProperties": False}) for tool in TOOLS
}


def calls_of(parts):
    assert parts and all(isinstance(part, ToolCall) for part in parts), parts
    for call in parts:
        check(SCHEMA_OF[call.name], call.arguments)
    return [call.name for call in parts]


@pytest.mark.parametrize("family", CALLING)
def test_calls_are_forced_and_valid(family):
    names = [
        name
        for seed in range(30)
        for name in calls_of(
            answer(family, OutputFormat(calls=tuple(SCHEMA_OF)), TOOLS, seed) or [ToolCall("stop", {})]
        )
    ]
    # Several in one answer, and every tool.
    assert set(names) == SCHEMA_OF.keys() and len(names) > 30
    for seed in range(5):
        assert set(calls_of(answer(family, OutputFormat(calls=("stop",)), TOOLS, seed))) == {"stop"}


@pytest.mark.parametrize("family", CALLING)
@settings(max_examples=60, deadline=None)
@given(schema=OBJECTS, seed=st.integers(0, 999))
def test_arguments_are_of_their_schema(family, schema, seed):
    parts = answer(family, OutputFormat(calls=("f",)), (Tool("f", "", whole(schema)),), seed)
    assume(parts is not None)
    assert all(isinstance(part, ToolCall) and part.name == "f" for part in parts), parts
    for call in parts:
        check(whole(schema), call.arguments)


STRINGS = ['<|"|>', "<quote>", "<turn|>", "<end>", "▁a▁", "\n", " a ", "", "😀", 'a"b\\', "{,:}"]


@pytest.mark.parametrize("family", CALLING)
def test_texts_of_schemas_never_become_control_tokens(family):
    """Neither the names nor the values of a schema: they are read back as they are."""
    properties = {f"{text}x": {"const": text} for text in STRINGS if "▁" not in text} | {"all": {"const": STRINGS}}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    parts = answer(family, OutputFormat(calls=("f",)), (Tool("f", "", schema),))
    assert parts[0] == ToolCall("f", {name: value["const"] for name, value in properties.items()})
    value = document(family, schema)
    assert value == parts[0].arguments


@pytest.mark.parametrize("family", CALLING)
def test_text_or_valid_calls(family):
    tokens = [sampled(family, compiler_of(family).matcher(VALIDATED, TOOLS), seed, limit=60) for seed in range(20)]
    found = [part for t in tokens for part in parts_of(family, t) if t[-1] in ends_of(family)]
    assert {type(part) for part in found} >= {Text, ToolCall}
    calls_of([part for part in found if isinstance(part, ToolCall)])


VALIDATED = OutputFormat(calls=tuple(SCHEMA_OF), text_allowed=True)


def ends_of(family):
    encoder = encoder_of(family)
    return (encoder.vocabulary.end,) if family == "own" else encoder.end_tokens


def test_json_or_a_call():
    output = OutputFormat(json_schema='{"type": "integer"}', calls=("stop",), text_allowed=True)
    found = [answer("gemma4", output, TOOLS, seed) for seed in range(20)]
    assert any(isinstance(parts[0], ToolCall) for parts in found if parts)
    matcher = compiler_of("gemma4").matcher(output, TOOLS)
    matcher.accept(encoder_of("gemma4").tokenizer.encode("7")[0])
    matcher.accept(ends_of("gemma4")[0])
    assert matcher.is_complete


def test_images_are_part_of_free_text_only():
    opened = encoder_of("own").vocabulary.control("<boi_out>")
    for output, is_allowed in (
        (VALIDATED, True),
        (OutputFormat(json_schema="{}"), False),
        (OutputFormat(calls=("stop",)), False),
    ):
        mask = compiler_of("own").matcher(output, TOOLS).mask()
        assert bool(mask[opened // 32] >> np.uint32(opened % 32) & 1) == is_allowed


@pytest.mark.parametrize("is_opened", [False, True])
def test_the_form_begins_after_the_thought(is_opened):
    controls, encode = encoder_of("gemma4").settings.controls, encoder_of("gemma4").tokenizer.encode
    prompt = [controls["think"], *([controls["channel"]] if is_opened else [])]
    matcher = compiler_of("gemma4").matcher(OutputFormat(json_schema='{"type": "integer"}'), prompt=prompt)
    thought = [*([] if is_opened else [controls["channel"]]), *encode("thought\n{a} 漢"), controls["channel_end"]]
    for token in thought:
        mask = bools(matcher.mask(), compiler_of("gemma4")._size)
        assert mask[token] and not mask[list(ends_of("gemma4"))].any() and not mask[controls["call"]]
        matcher.accept(token)
    tokens = sampled("gemma4", matcher, 0)
    parser = AnswerParser(encoder_of("gemma4").settings, encoder_of("gemma4").tokenizer, in_thought=is_opened)
    parts = join(part for token in [*thought, *tokens] for part in parser.feed(token))
    assert isinstance(parts[0], Thought) and isinstance(json.loads(parts[1].text), int)
    # The model need not think.
    matcher = compiler_of("gemma4").matcher(OutputFormat(json_schema='{"type": "integer"}'), prompt=[controls["think"]])
    matcher.accept(encode("1")[-1])
    assert not bools(matcher.mask(), compiler_of("gemma4")._size)[controls["channel"]]


def test_forced_tokens_are_those_of_the_tokenizer():
    encode, schema = encoder_of("gemma3").tokenizer.encode, {"const": {"the lambs": [1, "a"]}}
    compiler = Compiler(encoder_of("gemma3"), encoder_of("gemma3").tokenizer.size)
    matcher = compiler.matcher(OutputFormat(choices=("the lambs of the lake",)))
    assert matcher.forced_tokens()[:5] == encode("the lambs of the lake")[:5]
    assert document("gemma3", schema) == schema["const"]


@pytest.mark.parametrize(
    ("family", "output", "message"),
    [
        ("gemma3", OutputFormat(calls=("stop",)), "gemma3 calls no tools; Gemma 4 does"),
        ("gemma4", OutputFormat(calls=("none",)), "'none' is to be called, but is not declared"),
        ("gemma4", OutputFormat(), "enforces nothing"),
        ("gemma4", OutputFormat(json_schema="{}", choices=("a",)), "not both"),
        (
            "gemma4",
            OutputFormat(calls=("bad",)),
            "tool bad: parameters.properties.a.prefixItems is not supported in calls",
        ),
        ("gemma4", OutputFormat(calls=("look",)), "no look-around"),
    ],
)
def test_forms_that_cannot_be_enforced(family, output, message):
    bad = {"type": "object", "properties": {"a": {"type": "array", "prefixItems": [{}]}}}
    look = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?!a)b"}}}
    with pytest.raises(ValueError, match="") as error:
        compiler_of(family).matcher(output, (*TOOLS, Tool("bad", "", bad), Tool("look", "", look)))
    assert message in str(error.value)


def test_a_token_that_is_not_allowed_is_an_error():
    matcher = compiler_of("gemma3").matcher(OutputFormat(json_schema='{"type": "integer"}'))
    with pytest.raises(ValueError, match="not allowed here"):
        matcher.accept(encoder_of("gemma3").tokenizer.encode("x")[-1])


# ── with a model ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_imported("gemma4_small", tmp_path_factory.mktemp("structured")))


def test_answers_of_a_model(gemma4: Engine):
    sampling = Sampling(temperature=1.0, seed=3, max_tokens=40)
    ask = (Content("user", (Text("x"),)),)
    call = replace(sampling, output=OutputFormat(calls=("get.weather", "stop")))
    short = replace(sampling, output=OutputFormat(choices=("lambs", "the lake")))
    cut = replace(sampling, output=OutputFormat(json_schema='{"type": "string", "minLength": 999}'))
    limited = replace(sampling, output=OutputFormat(json_schema=json.dumps(HOSTILE["repeated"])))
    prompts = [Prompt(ask, TOOLS), Prompt(ask), Prompt(ask), Prompt(ask)]
    called, chosen, long, broken = gemma4.generate(prompts, [call, short, cut, limited])
    if called.finish == "stop":
        calls_of(called.content.parts)
    assert chosen.finish == "stop" and chosen.content.parts[0].text in ("lambs", "the lake")
    assert long.finish == "length" and long.answer_tokens == 40 and long.content.parts[0].text.startswith('"')
    assert broken.finish == "length" and broken.answer_tokens < 40
    with pytest.raises(ValueError, match="uniqueItems"):
        gemma4.encode(Prompt(ask), replace(sampling, output=OutputFormat(json_schema='{"uniqueItems": true}')))
