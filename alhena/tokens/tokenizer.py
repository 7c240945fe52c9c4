"""Text pieces: SentencePiece trained on a sample of the whole corpus (Kudo & Richardson 2018).

Byte fallback means that no text is unknown; digits are split; nothing is normalized, so decoding an encoding returns the text,
spaces, tabs and line ends included:

>>> pieces = TextPieces.from_bytes(train(["Alhena reads text.\\n", "Alhena draws.\\n"] * 50, size=300))
>>> pieces.decode(pieces.encode("  Alhena\\t漢字 42\\n")) == "  Alhena\\t漢字 42\\n"
True
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece

LINE_END = "\u2028"  # SentencePiece reads line by line; inside, a line end travels as U+2028
LONGEST = 4000  # bytes of one training sentence


def train(texts: Iterable[str], size: int) -> bytes:
    """A BPE model of at most ``size`` pieces; deterministic. Returns its serialized form (what ``text.model`` holds)."""
    out = io.BytesIO()
    sentences = (text.replace("\n", LINE_END)[: LONGEST // 4] for text in texts if text.strip())
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
            max_sentence_length=LONGEST,
            hard_vocab_limit=False,
            num_threads=1,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"{size} text pieces cannot be learned from this corpus; ask for more pieces or give more text ({error})"
        ) from None
    return out.getvalue()


class TextTokenizer:
    """A trained SentencePiece model."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor

    @classmethod
    def from_bytes(cls, data: bytes) -> TextTokenizer:
        """Raises ValueError when the bytes are no SentencePiece model."""
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

    def byte(self, piece: int) -> int | None:
        """The byte that a piece of byte fallback stands for; None for every other piece."""
        return int(self._processor.id_to_piece(piece)[3:-1], 16) if self._processor.is_byte(piece) else None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of pieces; bytes that are no UTF-8 become U+FFFD."""
        return self._processor.decode(list(ids)).replace(LINE_END, "\n")


def coverage(pieces: TextTokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Tokens per character of each language's texts: how evenly the pieces serve the languages."""
    return {
        language: sum(len(pieces.encode(text)) for text in some) / max(sum(map(len, some)), 1)
        for language, some in sorted(texts.items())
    }
