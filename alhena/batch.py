"""Example (one encoded document) and Batch (packed examples): three ragged streams, linked by order alone.

    tokens   │ doc 1 ····<img><img>··· │ doc 2 ··<aud>··<img>·· │ pad │     [B, L]
    patches  │ p p p p   p p p p       │ p p p p                │ pad │     [B, P, Q]   four patches pool into one <img>
    frames   │                         │ chunk                  │ pad │     [B, C, T, M] the k-th valid output is the k-th <aud>

Within a sequence the k-th ``<img>`` placeholder takes the k-th pooled patch vector, the k-th ``<aud>`` the k-th valid audio vector:
order is the only link, so packing needs no pointers. Segments are numbered from 1 within a sequence; 0 is padding. Documents of one
sequence do not attend to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from alhena.shapes import Array, Float, Int, Shaped, pytree


class Modality(IntEnum):
    """The modality that a target is conditioned on; losses are reported by it."""

    TEXT = 0
    IMAGE = 1
    AUDIO = 2
    VIDEO = 3
    IMAGE_OUT = 4


@dataclass(frozen=True)
class Example:
    """One encoded document: NumPy arrays without a batch dimension."""

    # int32
    tokens: Int[np.ndarray, " L"]
    # int32, tokens shifted left by one
    targets: Int[np.ndarray, " L"]
    # float32, loss weight of each target; 0 where it is not learned
    weights: Float[np.ndarray, " L"]
    # int32, Modality of each target
    modality: Int[np.ndarray, " L"]
    # uint8; P is a multiple of pool², the patches of a pooling window are consecutive
    patches: Shaped[np.ndarray, "P Q"]
    # int32, row and column in the grid of patches
    patch_positions: Int[np.ndarray, "P 2"]
    # int32, index of the image in the document, from 1
    patch_images: Int[np.ndarray, " P"]
    # float16, log-mel in chunks of T frames; float32 with encoders of open weights (``frame_dtype`` of their configuration)
    frames: Float[np.ndarray, "C T M"]
    # int32, valid frames of each chunk
    frame_lengths: Int[np.ndarray, " C"]
    # int32, of running text: the tokens at its beginning, and at that of each window it is split into; of all else: none
    header: Int[np.ndarray, " H"]

    def window(self, start: int, size: int) -> Example:
        """The header and up to ``size`` of the tokens after it, from ``start`` on; the example itself where these are all.

        The first of the tokens is a target of the window before, which predicts it from text.
        """
        h = len(self.header)
        if start == 0 and len(self.tokens) <= h + size:
            return self
        first, end = h + start, h + start + size
        tokens = np.concatenate([self.header, self.tokens[first:end]])
        targets = np.concatenate([tokens[1:], self.targets[first:end][-1:]])
        weights, modality = (np.concatenate([x[:h], x[first:end]]) for x in (self.weights, self.modality))
        if start > 0:
            weights[:h] = 0
        return replace(self, tokens=tokens, targets=targets, weights=weights, modality=modality)

    def windows(self, tokens: int) -> Iterator[Example]:
        """Running text as windows of at most so many tokens."""
        h = len(self.header)
        for start in range(0, len(self.tokens) - h, tokens - h):
            yield self.window(start, tokens - h)

    def emptied(self) -> Example:
        """An example without tokens and media, whose arrays have the dtypes and sizes of these."""
        return Example(*(value[:0] for value in vars(self).values()))

    def with_tokens(self, tokens: Int[np.ndarray, " L"]) -> Example:
        """The prompt of other tokens with the media of this one."""
        size, tokens = len(tokens), tokens.astype(np.int32)
        zeros = np.zeros(size, np.int32)
        return replace(self, tokens=tokens, targets=tokens, weights=np.zeros(size, np.float32), modality=zeros)


@pytree
@dataclass(frozen=True)
class Batch:
    """Packed examples with static shapes: the fields of :class:`Example`, plus segments and positions."""

    tokens: Int[Array, "B L"]
    targets: Int[Array, "B L"]
    weights: Float[Array, "B L"]
    modality: Int[Array, "B L"]
    # 0 is padding
    segments: Int[Array, "B L"]
    # from 0 within each segment
    positions: Int[Array, "B L"]
    # uint8
    patches: Shaped[Array, "B P Q"]
    patch_positions: Int[Array, "B P 2"]
    # 0 is padding; unique within a sequence
    patch_images: Int[Array, "B P"]
    frames: Float[Array, "B C T M"]
    # 0 is padding
    frame_lengths: Int[Array, "B C"]
