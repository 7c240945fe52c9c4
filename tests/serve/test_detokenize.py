"""The detokenizer returns the same parts token by token as for all tokens at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.content import Image, Part, Text
from alhena.serve.detokenize import Detokenizer
from alhena.tokens.text_stream import join


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
        end = next((j for j in range(i, len(tokens)) if tokens[j] >= v.num_text), len(tokens))
        text, stopped = truncated(encoder.tokenizer.decode(tokens[i:end]), stop)
        parts += [Text(text)] if text else []
        if stopped or (end < len(tokens) and tokens[end] == v.end):
            return parts, True
        i = end
    return parts, False


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
    runs = draw(st.lists(st.one_of(word, word, stray, any_token, image), max_size=8))
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
