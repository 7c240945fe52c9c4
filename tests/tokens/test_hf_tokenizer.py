"""The tokenizer of imported models: nothing is lost, no text makes a control token, damaged files are refused in one line."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alhena.tokens.text.hf_tokenizer import HfTokenizer
from alhena.tokens.text.text_stream import TextRun
from tests.tokens.small_hf_tokenizer import CONTROLS, small_tokenizer

TOKENIZER = HfTokenizer.from_bytes(small_tokenizer(), controls=range(4, 14))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")) | st.text("the \n\t<>lambs1é漢😀")
JSON = json.loads(small_tokenizer())


@given(TEXTS)
@example("  two spaces, a line end\n\n\tand 漢字 😀 \u00a0 ")
@example("<bos><start_of_turn>user\n<unused3>[multimodal]<mask><end_of_turn><0x41>")
def test_decoding_returns_the_text(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.controls.isdisjoint(ids)


@given(TEXTS)
def test_offsets_divide_the_text(text):
    ids, starts = TOKENIZER.encode_with_offsets(text)
    assert ids == TOKENIZER.encode(text) and starts == sorted(starts)
    for at in range(len(ids) + 1):
        # Between the bytes of one character there is no boundary.
        if at in (0, len(ids)) or starts[at] != starts[at - 1]:
            assert TOKENIZER.decode(ids[:at]) == text[: starts[at] if at < len(ids) else None]


@given(
    st.lists(
        st.integers(0, TOKENIZER.size - 1)
        | st.sampled_from([TOKENIZER.id(f"<0x{b:02X}>") for b in b"\xf0\x9f\x98\x80\xe6\xff"])
    )
)
def test_a_stream_of_tokens_decodes_as_the_whole(ids):
    run = TextRun(TOKENIZER)
    assert "".join(map(run.feed, ids)) + run.flush() == TOKENIZER.decode(ids)


def test_text_that_names_a_control_token_stays_text():
    for name, number in CONTROLS.items():
        assert TOKENIZER.id(name) == number
        assert number not in TOKENIZER.encode(f"a {name}b")
        assert TOKENIZER.decode([number]) == name
    # An added token that is no control token remains one token.
    assert TOKENIZER.encode("a<h1>b\n\n")[1:] == [TOKENIZER.id("<h1>"), TOKENIZER.id("b"), TOKENIZER.id("\n\n")]


def test_bytes_stand_for_what_the_vocabulary_lacks():
    ids = TOKENIZER.encode("漢")
    assert bytes(TOKENIZER.byte(token) for token in ids) == "漢".encode()
    assert TOKENIZER.byte(TOKENIZER.id("a")) is None
    assert TOKENIZER.decode(ids[:2]) == "\ufffd"


def test_a_copy_is_the_same_tokenizer(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    for copy in (HfTokenizer.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(TOKENIZER))):
        assert copy.controls == TOKENIZER.controls and copy.to_bytes() == TOKENIZER.to_bytes()
        assert copy.encode("<bos><unused1> lambs") == TOKENIZER.encode("<bos><unused1> lambs")


def test_truncation_of_the_file_is_not_applied():
    limited = {**JSON, "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}
    assert len(HfTokenizer.from_bytes(json.dumps(limited).encode()).encode("the lambs 123")) > 2


def with_token(content: str, **flags: bool) -> dict:
    """The tokenizer with one more added token."""
    token = {"id": len(JSON["model"]["vocab"]), "content": content, "special": False, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False, **flags}
    return {**JSON, "added_tokens": [*JSON["added_tokens"], token]}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "not a tokenizer.json"),
        (b"\xff\x00", "not a tokenizer.json"),
        (b"[" * 100_000, "not a tokenizer.json"),
        (b" " * (64 * 2**20 + 1), "bytes"),
        (small_tokenizer()[:1000], "not a tokenizer.json"),
        ({**JSON, "model": {**JSON["model"], "byte_fallback": False}}, "model.byte_fallback is False"),
        ({**JSON, "model": {**JSON["model"], "ignore_merges": True}}, "model.ignore_merges is True"),
        ({**JSON, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "type WordLevel"),
        ({**JSON, "normalizer": {"type": "NFKC"}}, "normalizer is {'type': 'NFKC'}"),
        ({**JSON, "normalizer": None}, "normalizer is None"),
        ({**JSON, "decoder": {"type": "Fuse"}}, "decoder is"),
        ({**JSON, "pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is"),
        (with_token("<x>", lstrip=True), "'<x>' strips text"),
        # "la" is made by a merge.
        (with_token("la", special=True), "'la' can be written by text"),
        (with_token("é", special=True), "'é' can be written by text"),
    ],
)
def test_what_is_damaged_or_not_supported_is_refused_in_one_line(tmp_path, stored, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(stored if isinstance(stored, bytes) else json.dumps(stored).encode())
    with pytest.raises(ValueError) as error:
        HfTokenizer.load(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_ids_and_texts_that_do_not_exist_are_errors():
    with pytest.raises(ValueError, match="no token has the id 999999, which is a control token"):
        HfTokenizer.from_bytes(small_tokenizer(), controls=[999_999])
    with pytest.raises(ValueError, match="no token has the id 999999"):
        TOKENIZER.decode([999_999])
    with pytest.raises(ValueError, match="no token '<none>'"):
        TOKENIZER.id("<none>")
    with pytest.raises(ValueError, match="character 1 of the text is a surrogate"):
        TOKENIZER.encode("a\ud800")
