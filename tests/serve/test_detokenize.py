"""The detokenizer returns the same parts token by token as for all tokens at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.content import Image, Part, Text, ToolCall
from alhena.serve.decoding.sampling.detokenize import Detokenizer
from alhena.tokens.formats.own_tools import call_of, encoded
from alhena.tokens.formats.tool_format import write_call
from alhena.tokens.text.text_stream import join


def decode_codes(codes: np.ndarray) -> Image:
    return Image(repr(codes.tolist()).encode())


def truncated(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the stop sequence that is complete first."""
    ends = [text.index(s) + len(s) for s in stop if s in text]
    if not ends:
        return text, False
    return text[: min(text.index(s) for s in stop if text[: min(ends)].endswith(s))], True


def reference(tokens: list[int], encoder, stop: tuple[str, ...]) -> tuple[list[Part], bool]:
    """Every run of text decoded at once."""
    v, parts, i = encoder.vocabulary, [], 0
    while i < len(tokens):
        if tokens[i] == v.control("<boi_out>"):
            rows, columns = tokens[i + 1] - v.rows(1) + 1, tokens[i + 2] - v.columns(1) + 1
            codes = np.array(tokens[i + 3 : i + 3 + rows * columns]).reshape(rows, columns)
            parts.append(decode_codes(codes - v.first_code))
            i += 4 + rows * columns
            continue
        if tokens[i] == v.control("<call>"):
            end = next((j for j in range(i, len(tokens)) if tokens[j] in (v.control("<call_end>"), v.end)), len(tokens))
            call = call_of(tokens[i + 1 : end], v.control("<quote>"), encoder.tokenizer.decode)
            if isinstance(call, ToolCall):
                parts.append(call)
            else:
                text, stopped = truncated(call, stop)
                parts += [Text(text)] if text else []
                if stopped:
                    return parts, True
            is_closed = end < len(tokens) and tokens[end] == v.control("<call_end>")
            i = end + is_closed
            if not is_closed:
                return parts, i < len(tokens)
            continue
        end = next((j for j in range(i, len(tokens)) if tokens[j] >= v.num_text), len(tokens))
        text, stopped = truncated(encoder.tokenizer.decode(tokens[i:end]), stop)
        parts += [Text(text)] if text else []
        if stopped or (end < len(tokens) and tokens[end] == v.end):
            return parts, True
        i = end
    return parts, False


def _call_tokens(call: ToolCall, encoder) -> list[int]:
    v = encoder.vocabulary
    pieces = write_call(call, v.control("<quote>"))
    return [v.control("<call>"), *encoded(pieces, encoder.tokenizer.encode), v.control("<call_end>")]


@st.composite
def answers(draw, encoder):
    """Runs of words, of any characters and of stray bytes, with images between them, and perhaps an end."""
    v, tokenizer = encoder.vocabulary, encoder.tokenizer
    bytes_ = [i for i in range(v.num_text) if tokenizer.byte(i) is not None]
    word = st.text("circle red .\n漢字é🙂", max_size=8).map(tokenizer.encode)
    stray = st.lists(st.sampled_from(bytes_), max_size=6)
    any_token = st.lists(st.integers(1, v.num_text - 1), max_size=6)
    image = st.tuples(st.integers(1, 2), st.integers(1, 3)).map(
        lambda n: [v.control("<boi_out>"), v.rows(n[0]), v.columns(n[1]), *([v.code(3)] * (n[0] * n[1])), v.control("<eoi_out>")]
    )  # fmt: skip
    values = st.one_of(
        st.text('Bern "{},:é', max_size=6), st.integers(-9, 99), st.none(), st.lists(st.booleans(), max_size=2)
    )
    calls = st.builds(ToolCall, st.sampled_from(["f", "get_x"]), st.dictionaries(st.sampled_from("abc"), values))
    call = calls.map(lambda call: _call_tokens(call, encoder))
    # Cut off before its last tokens, it is a text.
    broken = call.map(lambda tokens: [*tokens[:-3], tokens[-1]])
    runs = draw(st.lists(st.one_of(word, word, stray, any_token, image, call, broken), max_size=8))
    return [token for run in runs for token in run] + ([v.end] if draw(st.booleans()) else [])


def test_joined_deltas_equal_the_complete_answer(encoder):
    @settings(max_examples=300, deadline=None)
    @given(answers(encoder), st.lists(st.text("cirle d漢\n", min_size=1, max_size=4), max_size=3).map(tuple))
    def check(tokens, stop):
        whole, finished = reference(tokens, encoder, stop)
        state, deltas = Detokenizer(encoder.tokenizer, encoder.vocabulary, decode_codes, stop), []
        for token in tokens:
            shown = "".join(p.text for p in deltas if isinstance(p, Text))
            # Text that has been returned is final.
            assert "".join(p.text for p in whole if isinstance(p, Text)).startswith(shown)
            deltas += state.feed(token)
        deltas += state.flush()
        assert join(deltas) == join(whole)
        assert state.finished == finished
        assert Text("") not in deltas

    check()


def test_incomplete_characters_and_stop_sequences_are_held_back(encoder):
    state = Detokenizer(encoder.tokenizer, encoder.vocabulary, decode_codes, ("red circle",))
    tokens = encoder.tokenizer.encode("漢")
    assert len(tokens) > 2
    assert join(part for token in tokens[:-1] for part in state.feed(token)) == ()
    assert state.feed(tokens[-1]) == [Text("漢")]
    assert join(part for token in encoder.tokenizer.encode("red circ") for part in state.feed(token)) == (Text(" "),)
    assert state.flush() == [Text("red circ")]


def test_an_incomplete_image_is_dropped(encoder):
    v = encoder.vocabulary
    state = Detokenizer(encoder.tokenizer, v, decode_codes)
    tokens = [*encoder.tokenizer.encode("red"), v.control("<boi_out>"), v.rows(2), v.columns(2), v.code(1)]
    assert join(part for token in tokens for part in state.feed(token)) == (Text("red"),)
    assert state.flush() == []
    assert state.count == len(tokens)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text("ab_-1", min_size=1, max_size=4),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(10**6), 10**6)
            | st.floats(-9, 9)
            | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2028\u2581")),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1, max_size=3), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_a_call_read_from_its_tokens_is_the_call_that_was_written(encoder, arguments):
    lowered = [key.lower() for key in arguments]
    tokens = _call_tokens(ToolCall("get_x", arguments), encoder)
    state = Detokenizer(encoder.tokenizer, encoder.vocabulary, decode_codes, ("call",))
    parts = [part for token in [*tokens, encoder.vocabulary.end] for part in state.feed(token)]
    assert parts == [ToolCall("get_x", arguments)] and state.finished, lowered
