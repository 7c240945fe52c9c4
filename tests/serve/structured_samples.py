"""Random answers under the masks of structured answers, and random schemas: for tests, without a model."""

from __future__ import annotations

import json
from functools import lru_cache

import jsonschema
import numpy as np
from hypothesis import strategies as st

from alhena.content import Image, Text
from alhena.media import encode_png
from alhena.serve.decoding.sampling.detokenize import Detokenizer
from alhena.serve.decoding.sampling.sampler import OutputFormat
from alhena.serve.structured.matcher import Compiler
from alhena.tokens.formats.answers import AnswerParser
from alhena.tokens.gemma_encoder import GemmaEncoder
from alhena.tokens.text.text_stream import join
from tests.conftest import make_encoder
from tests.tokens.small_gemma import settings_of, tokenizer_of

FAMILIES = ("own", "gemma3", "gemma4")
CALLING = ("own", "gemma4")


@lru_cache
def encoder_of(family):
    return make_encoder() if family == "own" else GemmaEncoder(tokenizer_of(family), settings_of(family))


@lru_cache
def compiler_of(family):
    encoder = encoder_of(family)
    # Ids beyond the tokenizer's, as models have them.
    return Compiler(encoder, encoder.vocabulary.size if family == "own" else encoder.tokenizer.size + 5)


def parser_of(family, stop=()):
    encoder = encoder_of(family)
    if family == "own":
        return Detokenizer(
            encoder.tokenizer, encoder.vocabulary, lambda codes: Image(encode_png(np.zeros((2, 2, 3), np.uint8))), stop
        )
    return AnswerParser(encoder.settings, encoder.tokenizer, stop)


def bools(mask, size):
    return np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)[:size]


@lru_cache
def preferences(family):
    """Logits of a model that likes to close what it has opened: most of its answers end."""
    encoder = encoder_of(family)
    out = np.zeros(compiler_of(family)._size)
    for text in ('"', "}", "]"):
        out[encoder.tokenizer.encode("\n" + text)[-1]] += 3
    for name in ("<quote>", "<call>", "<call_end>") if family == "own" else ():
        out[encoder.vocabulary.control(name)] += 3
    for name in ("quote", "call", "call_end"):
        if family != "own" and name in encoder.settings.controls:
            out[encoder.settings.controls[name]] += 3
    out[[encoder.vocabulary.end] if family == "own" else list(encoder.end_tokens)] += 3
    return out


def sampled(family, matcher, seed, limit=2000):
    """Tokens that a random model samples."""
    rng, preferred, out = np.random.default_rng(seed), preferences(family), []
    while not matcher.finished and len(out) < limit:
        allowed = bools(matcher.mask(), len(preferred))
        assert allowed.any()
        out.append(int(np.where(allowed, rng.normal(size=len(preferred)) + preferred, -np.inf).argmax()))
        matcher.accept(out[-1])
    return out


def parts_of(family, tokens):
    parser = parser_of(family)
    parts = [part for token in tokens for part in parser.feed(token)]
    return join([*parts, *parser.flush()])


def answer(family, output, tools=(), seed=0, prompt=()):
    """The parts of a random answer; None when it has no end."""
    matcher = compiler_of(family).matcher(output, tools, prompt)
    tokens = sampled(family, matcher, seed)
    assert matcher.is_complete == matcher.finished
    return parts_of(family, tokens) if matcher.finished else None


def document(family, schema, seed=0):
    """A random JSON document of a schema; ``...`` when it has no end."""
    parts = answer(family, OutputFormat(json_schema=json.dumps(schema)), seed=seed)
    if parts is None:
        return ...
    assert len(parts) == 1 and isinstance(parts[0], Text)
    return json.loads(parts[0].text)


NAMES = st.sampled_from(["a", "B", "name", "größe", "x-1", "漢"])
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
ENUMS = st.lists(TEXTS | st.integers(-99, 99) | st.booleans() | st.none(), min_size=1, max_size=4).map(
    lambda v: {"enum": v}
)
BOUNDS = st.tuples(st.integers(-40, 40), st.integers(0, 30), st.sampled_from(["integer", "number"]))
LENGTHS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.just("string"))
SCALARS = st.one_of(
    st.sampled_from(["null", "boolean", "integer", "number", "string"]).map(lambda kind: {"type": kind}),
    BOUNDS.map(lambda b: {"type": b[2], "minimum": b[0], "maximum": b[0] + b[1]}),
    LENGTHS.map(lambda b: {"type": "string", "minLength": b[0], "maxLength": b[0] + b[1]}),
    st.sampled_from(["date", "date-time", "uuid", "email", "ipv4"]).map(lambda f: {"type": "string", "format": f}),
    st.sampled_from(["^[a-c]+$", "x|y", "[0-9]{2}/", "^(ab|c)*$"]).map(lambda p: {"type": "string", "pattern": p}),
    ENUMS,
    st.just({"type": ["string", "null"]}),
    st.just({"$ref": "#/$defs/node"}),
)


def objects(values):
    def of(properties, required, closed):
        return {
            "type": "object",
            "properties": properties,
            "required": [n for n in properties if n in required],
        } | closed

    closed = st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}])
    return st.builds(of, st.dictionaries(NAMES, values, min_size=1, max_size=4), st.sets(NAMES), closed)


SCHEMAS = st.recursive(
    SCALARS,
    lambda values: st.one_of(
        st.builds(
            lambda v, n, m: {"type": "array", "items": v, "minItems": n, "maxItems": n + m},
            values,
            *[st.integers(0, 2)] * 2,
        ),
        objects(values),
        st.lists(values, min_size=1, max_size=3).map(lambda v: {"anyOf": v}),
    ),
    max_leaves=5,
)
NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, "required": ["v"]}
OBJECTS = objects(SCHEMAS)


def whole(schema):
    return schema | {"$defs": {"node": NODE}}


def check(schema, value):
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(value)


HOSTILE = {
    "optional": {"type": "object", "properties": {f"property {i}": {"type": "string"} for i in range(512)}},
    "words": {"enum": [f"a value {i * 7919 % 4096}" for i in range(4096)]},
    "many": {"type": "array", "items": {"type": "string"}, "minItems": 4000, "maxItems": 4096},
    "long": {"type": "string", "minLength": 16000, "maxLength": 16384},
    "pattern": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
    "repeated": {"type": "string", "pattern": "^(a?){1000}a{1000}$"},
    "exponential": {"type": "string", "pattern": "(a|b)*a(a|b){400}x"},
    "overlap": {"anyOf": [{"type": "array", "items": {"type": "string", "maxLength": n}} for n in range(1000)]},
}
