"""Answers in Gemma's formats: parsed back from the tokens of their rendering, and the same at every split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alhena.content import Content, Text, Thought, ToolCall
from alhena.tokens.formats.answers import AnswerParser, begins_in_thought
from alhena.tokens.formats.conversation import Item, render
from alhena.tokens.text.text_stream import join
from tests.tokens.small_gemma import settings_of, tokenizer_of

SETTINGS, TOKENIZER = settings_of("gemma4"), tokenizer_of("gemma4")


def ids(*values):
    """Tokens of texts and of names of control tokens, which begin with @."""
    out = []
    for value in values:
        out += [SETTINGS.controls[value[1:]]] if value.startswith("@") else TOKENIZER.encode(value)
    return out


def parse(tokens, stop=(), in_thought=False):
    parser = AnswerParser(SETTINGS, TOKENIZER, stop, in_thought)
    out = [parser.feed(token) for token in tokens]
    return join(part for parts in [*out, parser.flush()] for part in parts), parser


def answer_tokens(*parts):
    items = render(SETTINGS, [Content("user", (Text("x"),)), Content("model", parts)], ask=False)
    return [token for item in items if item.learned for token in encoded(item)]


def encoded(item: Item):
    return TOKENIZER.encode(item.value) if isinstance(item.value, str) else [item.value]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text("abcXYZ_", min_size=1, max_size=4), values, max_size=3),
    max_leaves=8,
)  # fmt: skip
ARGUMENTS = st.dictionaries(st.text("abc_é", min_size=1, max_size=4), JSON, max_size=3)


@given(
    st.text('ab é漢😀{}:,<|"\n', max_size=9).map(str.strip),
    st.text("ab漢{}<|", max_size=9),
    st.lists(ARGUMENTS, max_size=2),
)
def test_an_answer_is_parsed_back(text, thought, calls):
    parts = join([Thought(thought)] if thought else [])
    parts = (*parts, *([Text(text)] if text else []), *(ToolCall(f"tool.{i}", call) for i, call in enumerate(calls)))
    found, parser = parse(answer_tokens(*parts))
    assert found == parts and parser.finished


EVERYTHING = (
    Thought("Hm.\n\nYes 漢"),
    Text("é\n😀 see:"),
    ToolCall("f", {"a": ["}", {"b": None}], "c": '<|"|>'}),
    ToolCall("g", {}),
)


def test_parts_are_final_as_early_as_possible():
    tokens = answer_tokens(*EVERYTHING)
    parser = AnswerParser(SETTINGS, TOKENIZER)
    seen = [parser.feed(token) for token in tokens]
    assert join(part for parts in seen for part in parts) == EVERYTHING
    # A text token is returned at once, but for line ends and incomplete characters; a call at its last token.
    assert sum(map(len, seen)) > 15
    ends = [i for i, token in enumerate(tokens) if token == SETTINGS.controls["call_end"]]
    assert [parts for i, parts in enumerate(seen) if i in ends] == [[EVERYTHING[2]], [EVERYTHING[3]]]


def test_an_answer_that_is_interrupted_anywhere_is_a_prefix():
    tokens = answer_tokens(*EVERYTHING)
    for size in range(len(tokens)):
        found, parser = parse(tokens[:size])
        assert not parser.finished and len(found) <= 5
        for part, whole in zip(found, EVERYTHING, strict=False):
            is_text = isinstance(part, Text | Thought) and isinstance(whole, Text | Thought)
            assert (
                part == whole
                or (is_text and whole.text.startswith(part.text.rstrip("\ufffd")))
                or isinstance(part, Text)
            )


def test_an_answer_that_begins_in_a_thought():
    assert parse(ids("Hm.\n", "@channel_end", "a"), in_thought=True)[0] == (Thought("Hm."), Text("a"))
    assert begins_in_thought(SETTINGS, ids("@channel", "thought\n"))
    assert not begins_in_thought(SETTINGS, ids("@channel", "thought\n", "@channel_end", "a"))
    assert not begins_in_thought(settings_of("gemma3"), [1, 2, 3])


def test_empty_thoughts_and_other_channels():
    assert parse(ids("@channel", "thought\n", "@channel_end", "a"))[0] == (Text("a"),)
    assert parse(ids("@channel", "thoughts\n", "@channel_end", "a"))[0] == (Text("<|channel>thoughts\n<channel|>a"),)
    assert parse(ids("@channel", "though", "@channel_end", "a"))[0] == (Text("<|channel>though<channel|>a"),)
    assert parse(ids("a", "@channel", "though"))[0] == (Text("a<|channel>though"),)
    assert parse(ids("a", "@channel_end", "b"))[0] == (Text("a<channel|>b"),)


@pytest.mark.parametrize(
    "call",
    [["call:f{a:1"], ["call:f{a:1}}"], ["call:f{a:}"], ["call:f{a:x}"], ["f{a:1}"], ["call:{}"], ["call:f{a:NaN}"],
     ["call:f{a:", "@quote", "x", "@quote", "y}"], ["call:f{a:", "@quote", "x}"], ["call:f[1]"], ["call:f{a:1} "  "x"], ["call:f{a:1e999}"],
     ["call:f{a:" + "[" * 100 + "]" * 100 + "}"], ["call:f{a:1}", "@quote", "@quote"]],
)  # fmt: skip
def test_a_call_that_is_not_of_the_notation_is_a_text(call):
    tokens = ids("a", "@call", *call, "@call_end", "b")
    found, parser = parse(tokens)
    assert found == (Text(TOKENIZER.decode(tokens)),) and parser.malformed_call
    found, parser = parse(tokens[:-2])
    assert found == (Text(TOKENIZER.decode(tokens[:-2])),) and not parser.malformed_call


def test_spaces_and_quoted_keys_are_read():
    call = ids("@call", "call:f{ a : 1 , ", "@quote", "b c", "@quote", ": [ ] }", "@call_end")
    assert parse(call)[0] == (ToolCall("f", {"a": 1, "b c": []}),)


def test_stop_sequences_and_ends():
    assert parse(ids("one END two"), stop=["END"])[0] == (Text("one "),)
    assert parse(ids("@channel", "thought\nEND", "@channel_end", "a END"), stop=["END"])[0] == (
        Thought("END"),
        Text("a "),
    )
    # A stop sequence does not span two parts.
    found, parser = parse(ids("a E", "@call", "call:f{}", "@call_end", "ND"), stop=["END"])
    assert found == (Text("a E"), ToolCall("f", {}), Text("ND")) and not parser.finished
    for end in SETTINGS.end_tokens:
        found, parser = parse([*ids("a"), end, *ids("b")])
        assert found == (Text("a"),) and parser.finished and parser.count == 2


def test_an_answer_is_the_same_at_every_split():
    """Its texts encoded in two parts each, split anywhere, and as single bytes."""
    items = render(SETTINGS, [Content("user", (Text("x"),)), Content("model", EVERYTHING)], ask=False)
    values = [item.value for item in items if item.learned]
    bytewise = [TOKENIZER.id(f"<0x{byte:02X}>") for byte in range(256)]
    for at in range(max(len(value) for value in values if isinstance(value, str))):
        halves = [half for v in values for half in ((v[:at], v[at:]) if isinstance(v, str) else (v,))]
        assert parse([token for half in halves for token in encoded(Item(half))])[0] == EVERYTHING
    tokens = [t for v in values for t in ([bytewise[b] for b in v.encode()] if isinstance(v, str) else [v])]
    assert parse(tokens)[0] == EVERYTHING
