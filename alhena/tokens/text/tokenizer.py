"""Text tokenizer: SentencePiece, trained on a sample of the whole corpus (Kudo & Richardson 2018).

Byte fallback means that no text is unknown; digits are split; nothing is normalized. Decoding an encoding returns the text, spaces,
tabs and line ends included:

>>> tokenizer = TextTokenizer.from_bytes(train(["Alhena reads text.\\n", "Alhena draws.\\n"] * 50, size=300))
>>> tokenizer.decode(tokenizer.encode("  Alhena\\t漢字 42\\n")) == "  Alhena\\t漢字 42\\n"
True
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import sentencepiece

# How SentencePiece writes a space in a token.
SPACE = "\u2581"
# SentencePiece reads line by line: a line end is replaced by U+2028 before encoding.
LINE_END = "\u2028"
MAX_SENTENCE_BYTES = 4000


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer of text does: this one, and that of imported models (alhena/tokens/text/hf_tokenizer.py)."""

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def byte(self, token: int) -> int | None: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece(self, token: int) -> bytes: ...

    def to_bytes(self) -> bytes: ...


def train(texts: Iterable[str], size: int) -> bytes:
    """The serialized BPE model of at most ``size`` tokens (the content of ``text.model``); deterministic.

    Raises ValueError when the texts are too few for so many tokens.
    """
    out = io.BytesIO()
    sentences = (text.replace("\n", LINE_END)[: MAX_SENTENCE_BYTES // 4] for text in texts if text.strip())
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=out,
            vocab_size=size,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9998,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=[LINE_END],
            max_sentence_length=MAX_SENTENCE_BYTES,
            hard_vocab_limit=False,
            num_threads=1,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"a text vocabulary of {size} tokens cannot be trained on this corpus: choose more tokens, or give more text ({error})"
        ) from None
    return out.getvalue()


class TextTokenizer:
    """A trained SentencePiece model."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor

    @classmethod
    def from_bytes(cls, data: bytes) -> TextTokenizer:
        """Loads a serialized model. Raises ValueError when the bytes are no SentencePiece model."""
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None
        return cls(processor)

    def to_bytes(self) -> bytes:
        return self._processor.serialized_model_proto()

    @property
    def size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text.replace("\n", LINE_END))

    def byte(self, token: int) -> int | None:
        """The byte of a byte-fallback token; None for every other token."""
        return int(self._processor.id_to_piece(token)[3:-1], 16) if self._processor.is_byte(token) else None

    def piece(self, token: int) -> bytes:
        """The bytes of one token; SentencePiece puts a space before the first word of a text."""
        byte = self.byte(token)
        if byte is not None:
            return bytes([byte])
        return self._processor.id_to_piece(token).replace(SPACE, " ").replace(LINE_END, "\n").encode()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._processor.decode(list(ids)).replace(LINE_END, "\n")


def coverage(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Tokens per character of the texts of each language: lower values mean shorter sequences."""
    return {
        language: sum(len(tokenizer.encode(text)) for text in group) / max(sum(map(len, group)), 1)
        for language, group in sorted(texts.items())
    }
