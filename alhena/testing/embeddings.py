"""Embeddings of a server without a model: hashed n-grams of characters, so that texts with common words have similar vectors."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from alhena.batch import Example
from alhena.content import Content
from alhena.serve.embeddings import Embedder
from alhena.shapes import Float
from alhena.testing.encoder import character_encoder

DIMENSION = 768
# Characters of an n-gram.
LENGTH = 4


def vector(example: Example, dimension: int) -> Float[np.ndarray, " D"]:
    """A unit vector: each n-gram adds 1 to one of its numbers, or subtracts it."""
    out, tokens = np.zeros(dimension), example.tokens.tolist()
    for start in range(max(len(tokens) - LENGTH + 1, 1)):
        hash_ = zlib.crc32(repr(tokens[start : start + LENGTH]).encode())
        out[(hash_ >> 1) % dimension] += 1 - 2 * (hash_ & 1)
    return out / max(float(np.linalg.norm(out)), 1e-9)


class HashingEmbedder(Embedder):
    """Vectors without a model, the same in every process."""

    def __init__(self) -> None:
        """Nothing of the model's embedder is used."""

    @property
    def dimension(self) -> int:
        return DIMENSION

    def encode(self, content: Content) -> Example:
        example = character_encoder().prompt((content,))
        if not len(example.tokens):
            raise ValueError("the content is empty")
        return example

    async def __call__(self, examples: Sequence[Example], dimensions: Sequence[int]) -> list[list[float]]:
        pairs = zip(examples, dimensions, strict=True)
        return [[round(float(x), 9) for x in vector(example, n or DIMENSION)] for example, n in pairs]

    def stop(self) -> None:
        """There is no thread to stop."""
