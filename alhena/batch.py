"""Example (one encoded document) and Batch (rows of packed examples): three ragged streams, linked by order alone.

    tokens   │ doc 1 ····<img><img>··· │ doc 2 ··<aud>··<img>·· │ pad │     [B, L]
    patches  │ p p p p   p p p p       │ p p p p                │ pad │     [B, P, Q]   four patches pool into one <img>
    frames   │                         │ chunk                  │ pad │     [B, C, T, M] the k-th valid output is the k-th <aud>

Within a row the k-th ``<img>`` placeholder takes the k-th pooled patch vector, the k-th ``<aud>`` the k-th valid audio vector:
order is the only link, so packing needs no pointers. Segments are numbered from 1 within a row; 0 is padding. Documents of one
row never see each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from alhena.shapes import Array, Float, Int, Shaped, pytree


class Modality(IntEnum):
    """What a target is conditioned on; losses are reported by it."""

    TEXT = 0
    IMAGE = 1
    AUDIO = 2
    VIDEO = 3
    IMAGE_OUT = 4


@dataclass(frozen=True)
class Example:
    """One document, encoded (numpy arrays, no batch dimension)."""

    tokens: np.ndarray  # int32 [l]
    targets: np.ndarray  # int32 [l], tokens shifted left by one
    weights: np.ndarray  # float32 [l], loss weight of each target (0 where nothing is to be learned)
    modality: np.ndarray  # int32 [l], Modality of each target
    patches: np.ndarray  # uint8 [p, patch·patch·3]; p is a multiple of pool², pool windows are consecutive
    patch_positions: np.ndarray  # int32 [p, 2], row and column in patches
    patch_images: np.ndarray  # int32 [p], which image of the document, from 1
    frames: np.ndarray  # float16 [c, T, M], log-mel in chunks of T frames
    frame_lengths: np.ndarray  # int32 [c], valid frames of each chunk


@pytree
@dataclass(frozen=True)
class Batch:
    """Rows of packed examples, static shapes. Field for field the packed :class:`Example`, plus segments and positions."""

    tokens: Int[Array, "B L"]
    targets: Int[Array, "B L"]
    weights: Float[Array, "B L"]
    modality: Int[Array, "B L"]
    segments: Int[Array, "B L"]  # 0 is padding
    positions: Int[Array, "B L"]  # from 0 within each segment
    patches: Shaped[Array, "B P Q"]  # uint8
    patch_positions: Int[Array, "B P 2"]
    patch_images: Int[Array, "B P"]  # 0 is padding; unique within a row
    frames: Float[Array, "B C T M"]
    frame_lengths: Int[Array, "B C"]  # 0 is padding
