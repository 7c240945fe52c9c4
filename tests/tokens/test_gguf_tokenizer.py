"""Tokenizers of GGUF files: merges derived from the scores of a SentencePiece vocabulary make SentencePiece's own tokens."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from gguf import TokenType
from hypothesis import example, given
from hypothesis import strategies as st

from alhena.model.families.gguf.file import GgufFile
from alhena.model.families.gguf.tokenizer import tokenizer_json
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from tests.tokens.small_hf_tokenizer import CONTROLS, small_tokenizer

SENTENCES = [
    "The lambs of the shepherd 1984 are there.",
    "Then they bathe; the other lamb breathes.",
    "né à Bâle 漢字",
] * 20
DEFINED = ["\n", "\n\n", "<h1>", "▁▁"]


def train() -> sentencepiece.SentencePieceProcessor:
    """A small vocabulary of the kind that Gemma has."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=out, vocab_size=380, model_type="bpe", byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        allow_whitespace_only_pieces=True, user_defined_symbols=DEFINED, control_symbols=["<turn>"],
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def metadata(sp: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """What llama.cpp's converter writes for a vocabulary."""
    kinds = []
    for i in range(sp.vocab_size()):
        special = (
            (sp.is_control(i), TokenType.CONTROL),
            (sp.is_unknown(i), TokenType.UNKNOWN),
            (sp.is_byte(i), TokenType.BYTE),
        )
        defined = sp.id_to_piece(i) in DEFINED
        kinds.append(
            next(
                (kind for is_kind, kind in special if is_kind), TokenType.USER_DEFINED if defined else TokenType.NORMAL
            )
        )
    pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
    scores = [-1000.0 if piece in DEFINED else sp.get_score(i) for i, piece in enumerate(pieces)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.tokens": [piece.replace("▁", " ") if piece in DEFINED else piece for piece in pieces],
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
    }


def file(values: dict[str, Any]) -> GgufFile:
    return GgufFile(Path("model.gguf"), values, {})


SENTENCEPIECE = train()
METADATA = metadata(SENTENCEPIECE)
SIZE = SENTENCEPIECE.vocab_size()
TOKENIZER = HfTokenizer.from_bytes(tokenizer_json(file(METADATA)))


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\u2028"))
    | st.text("the lambs\n<h1>94é漢", min_size=20)
)
@example("    the   lambs  breathe\n\n\n<h1>1984 in Bâle")
@example("<turn><s></s><unk><0x41>")
def test_tokens_equal_those_of_sentencepiece(text):
    assert TOKENIZER.encode(text) == SENTENCEPIECE.encode(text)


def test_merges_of_the_file_are_used():
    stored = json.loads(small_tokenizer())
    tokens = list(stored["model"]["vocab"])
    added = {token["content"] for token in stored["added_tokens"]}
    kind = {token: TokenType.CONTROL if token in CONTROLS else TokenType.USER_DEFINED for token in added}
    values = {
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([kind.get(token, TokenType.NORMAL) for token in tokens]),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in stored["model"]["merges"]],
    }  # fmt: skip
    tokenizer, expected = (
        HfTokenizer.from_bytes(tokenizer_json(file(values))),
        HfTokenizer.from_bytes(small_tokenizer(), CONTROLS.values()),
    )
    text = " the lambs and the lamb\n\n<h1><start_of_turn>  漢"
    assert tokenizer.encode(text) == expected.encode(text) and tokenizer.controls == set(CONTROLS.values())
    with pytest.raises(ValueError, match="'the lambs' is no merge"):
        tokenizer_json(file({**values, "tokenizer.ggml.merges": ["the lambs"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "gpt2"}, "a tokenizer of type 'gpt2'"),
        ({"tokenizer.ggml.add_space_prefix": True}, "adds a space before the text"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, f"2 tokens, {SIZE} types of tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * SIZE}, "tokens that occur twice"),
        ({"tokenizer.ggml.token_type": np.full(SIZE, 9)}, "tokens of unknown type 9"),
        ({"tokenizer.ggml.scores": np.full(SIZE, np.nan)}, "scores has not one number for each token"),
        ({"tokenizer.ggml.scores": None}, "it has no tokenizer.ggml.scores"),
        ({"tokenizer.ggml.tokens": "text"}, "tokenizer.ggml.tokens is 'text'"),
    ],
)
def test_what_cannot_be_read_is_refused(changes, message):
    with pytest.raises(ValueError, match=r"^model\.gguf: ") as error:
        tokenizer_json(file(METADATA | changes))
    assert message in str(error.value)
