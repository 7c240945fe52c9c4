"""JSON of a schema: whatever is sampled under the masks is valid, with every kind of tokenizer; what cannot be enforced is refused."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alhena.content import Text
from alhena.serve.decoding.sampling.sampler import OutputFormat
from alhena.serve.structured.json_schema import enum_texts, json_schema
from tests.serve.structured_samples import (
    FAMILIES,
    HOSTILE,
    SCHEMAS,
    answer,
    check,
    compiler_of,
    document,
    sampled,
    whole,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 999))
def test_documents_are_of_their_schema(family, schema, seed):
    value = document(family, whole(schema), seed)
    assume(value is not ...)
    check(whole(schema), value)


@pytest.mark.parametrize("family", FAMILIES)
def test_most_documents_end(family):
    values = [document(family, whole({"$ref": "#/$defs/node"}), seed) for seed in range(12)]
    values += [document(family, {}, seed) for seed in range(12)]
    assert sum(value is not ... for value in values) > 16


def test_every_key_is_in_the_order_that_is_asked_for():
    schema = {
        "type": "OBJECT",
        "properties": {"a": {"type": "STRING"}, "b": {"type": "INTEGER", "format": "int32"}, "c": {"type": "BOOLEAN"}},
        "required": ["a", "b", "c"],
        "property_ordering": ["c", "a"],
    }
    for seed in range(5):
        value = document("gemma3", schema, seed)
        assert value is ... or list(value) == ["c", "a", "b"]


def test_the_schema_object_of_the_api():
    schema = {
        "type": "OBJECT",
        "description": "left out",
        "properties": {
            "kind": {"type": "STRING", "format": "enum", "enum": ["x", "y"]},
            "sizes": {"type": "ARRAY", "items": {"type": "NUMBER", "minimum": 0}, "minItems": "1", "max_items": "3"},
            "code": {"type": "INTEGER", "format": "enum", "enum": ["101", "201"]},
            "maybe": {"nullable": True, "type": "STRING", "maxLength": "4"},
            "either": {"anyOf": [{"type": "STRING"}, {"ref": "#/defs/inner"}]},
            "of.any": {"type": "TYPE_UNSPECIFIED"},
        },
        "required": ["kind"],
        "propertyOrdering": ["maybe", "kind"],
        "defs": {"inner": {"type": "OBJECT", "properties": {"v": {"type": "INTEGER", "format": "int64"}}}},
    }
    limit = 2**53
    inner = {
        "type": "object",
        "properties": {"v": {"type": "integer", "minimum": -limit, "maximum": limit - 1}},
        "additionalProperties": False,
    }
    expected = {
        "type": "object",
        "properties": {
            "maybe": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
            "kind": {"type": "string", "enum": ["x", "y"]},
            "sizes": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "number", "minimum": 0}},
            "code": {"type": "integer", "enum": [101, 201]},
            "either": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/d0"}]},
            "of.any": {},
        },
        "required": ["kind"],
        "additionalProperties": False,
        "$defs": {"d0": inner},
    }
    assert json_schema(schema) == expected
    assert list(json_schema(schema)["properties"])[:2] == ["maybe", "kind"]
    # Reading is idempotent: a converted schema can be compiled.
    assert json_schema(expected) == expected


def test_one_of_some_texts():
    texts = enum_texts({"type": "STRING", "enum": ["yes", "no", "漢 字", "<end>"]})
    for family in FAMILIES:
        found = {answer(family, OutputFormat(choices=texts), seed=seed) for seed in range(20)}
        assert found <= {(Text(text),) for text in texts} and len(found) > 2


# ── refusals ───────────────────────────────────────────────────────────────────────────────────────────────

DEEP = {"type": "string"}
for _ in range(60):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems is not supported"),
        ({"properties": {"a": {"not": {}}}}, "schema.properties.a.not is not supported"),
        ({"if": {}, "then": {}}, "schema.if is not supported"),
        ({"type": "date"}, "the types are null, boolean"),
        ({"type": "string", "format": "binary"}, "schema.format is 'binary'"),
        ({"type": "string", "format": "int32"}, "schema.format is 'int32'"),
        ({"$ref": "http://localhost/x"}, "must be # or name one of"),
        ({"$ref": "#/$defs/x"}, "must be # or name one of"),
        ({"$ref": "#"}, "no finite document"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no finite document"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "no finite document"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no finite document"),
        ({"$ref": "#/$defs/a", "type": "string", "$defs": {"a": {}}}, "schema.type beside a"),
        (DEEP, "at most 48 levels"),
        ({"enum": []}, "must be a list of 1"),
        ({"type": "integer", "enum": ["a"]}, "is no number"),
        ({"type": "string", "enum": [1]}, "1 to 4096 values of the type string"),
        ({"enum": ["\ud800"]}, "surrogate"),
        ({"enum": [2**60]}, "from -2^53 to 2^53"),
        ({"minLength": -1}, "0 to 16,384"),
        ({"maxItems": 10**9}, "0 to 4,096"),
        ({"maxItems": "many"}, "0 to 4,096"),
        ({"minimum": float("inf")}, "from -2^53 to 2^53"),
        ({"type": "integer", "multipleOf": 0}, "greater than 0"),
        ({"pattern": "a" * 2000}, "at most 1024 characters"),
        ({"pattern": "^(a{1000}){1000}$"}, "nested repetitions"),
        ({"required": "a"}, "list of at most"),
        ({"properties": {"a": {}}, "propertyOrdering": ["b"]}, "has 'b', which is none of the properties"),
        ({"minItems": 1, "min_items": 1}, "stated twice"),
        ({"properties": []}, "must be an object"),
        ({"nullable": "yes", "type": "string"}, "must be true or false"),
        ({"type": "object", "minProperties": 3}, "beside properties that are not declared"),
        ([], "must be an object"),
        ({"anyOf": [{"type": "object", "properties": {f"p{i}": {"enum": ["x" * 90]} for i in range(400)}}] * 9}, "bytes"),
        ({"anyOf": [{"anyOf": [{"type": "null"}] * 90}] * 90}, "4096 schemas"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(schema, message):
    with pytest.raises(ValueError, match="schema") as error:
        json_schema(schema)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "["},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "pattern": "^[a-z]$", "minLength": 3},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        "[" * 100_000,
        "{",
    ],
)
def test_what_has_no_document_or_no_grammar_is_refused(schema):
    with pytest.raises(ValueError, match="schema"):
        compiler_of("gemma3").matcher(
            OutputFormat(json_schema=schema if isinstance(schema, str) else json.dumps(schema))
        )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_take_bounded_time(name):
    """They are refused, or their answers are sampled; where a limit is met, the answer ends incomplete."""
    start, compiler = time.process_time(), compiler_of("gemma3")
    matcher = compiler.matcher(OutputFormat(json_schema=json.dumps(HOSTILE[name])))
    assert time.process_time() - start < 5
    tokens = sampled("gemma3", matcher, 0, limit=100)
    assert time.process_time() - start < 10 and tokens
    assert matcher.finished or len(tokens) == 100
