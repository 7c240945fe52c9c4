"""Token counts of a prompt by modality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alhena.shapes import Int
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder
from alhena.tokens.vocabulary import Vocabulary

# The control tokens that open and close a media item, and the API's name of its modality.
MEDIA_MARKS = (
    ("bov", "eov", "VIDEO"),
    ("boi", "eoi", "IMAGE"),
    ("boa", "eoa", "AUDIO"),
    ("boi_out", "eoi_out", "IMAGE"),
)


def count_modalities(tokens: Int[np.ndarray, " L"], encoder: AnyEncoder) -> dict[str, int]:
    """Number of prompt tokens by modality."""
    if isinstance(encoder, Encoder):
        return count_between_marks(tokens.tolist(), encoder.vocabulary)
    counts = {name.upper(): int((tokens == token).sum()) for name, token in encoder.placeholders.items()}
    counts = {"TEXT": len(tokens) - sum(counts.values()), **counts}
    return {name: count for name, count in counts.items() if count}


def count_between_marks(tokens: Sequence[int], v: Vocabulary) -> dict[str, int]:
    """Number of prompt tokens by modality: those between the marks of a media item are of its modality, the rest is text.

    >>> v = Vocabulary(10, 4)
    >>> names = "<bos> <user> <bov> <boi> <img> <eoi> <eov> <boa> <aud> <eoa> <end>".split()
    >>> count_between_marks([v.control(name) for name in names], v)
    {'TEXT': 3, 'VIDEO': 5, 'AUDIO': 3}
    """
    opening = {v.control(f"<{a}>"): (kind, v.control(f"<{b}>")) for a, b, kind in MEDIA_MARKS}
    counts: dict[str, int] = {}
    inside: tuple[str, int] | None = None
    for token in tokens:
        inside = inside or opening.get(token)
        kind = inside[0] if inside else "TEXT"
        counts[kind] = counts.get(kind, 0) + 1
        inside = None if inside and token == inside[1] else inside
    return counts
