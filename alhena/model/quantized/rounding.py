"""Quantization by rounding to nearest, with the scale of each group that has the smallest squared error out of a few candidates.

The candidates are smaller than the scale at which no value is clipped (as in AWQ's clipping, Lin et al. 2023).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from alhena.model.quantized.layout import GROUP, TILE, Int4, Int8, packed_shapes
from alhena.shapes import Array, Float

# Candidate scales, relative to the scale at which no value is clipped.
SHRINK = np.linspace(0.7, 1.0, 13, dtype=np.float32)
# Values that a thread quantizes at once: its arrays fit in the cache.
BLOCK = 2**18
Bits = Literal[4, 8]
# Smallest and largest integer.
LIMITS = {4: (-8, 7), 8: (-127, 127)}


def quantize(
    w: Float[Array, "*layers I O"] | Float[np.ndarray, "*layers I O"], bits: Bits = 4, transposed: bool = False
) -> Int4 | Int8:
    """Quantizes a weight; ``transposed`` for one ``[out, in]``, such as the embedding.

    Raises ValueError when the inputs are not whole groups, and for values that no float16 scale reaches.
    """
    rows = np.asarray(w) if transposed else np.swapaxes(np.asarray(w), -1, -2)
    *layers, outputs, inner = rows.shape
    shapes = packed_shapes(bits, inner, outputs)
    packed = np.empty((*layers, *shapes[0]), np.uint8)
    scales = np.empty((*layers, *shapes[1]), np.float16)
    # Outputs are independent of each other, and float32 copies of a large table would not fit in memory.
    tiles = max(1, BLOCK // max(1, rows.size // max(outputs, 1)) // TILE)

    def fill(start: int) -> None:
        part = np.asarray(rows[..., start * TILE : (start + tiles) * TILE, :], np.float32)
        target = (..., slice(start, start + tiles), *(slice(None),) * 4)
        packed[target], scales[target[:-2]] = _quantize_block(part, bits)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, shapes[0][0], tiles)))
    if not np.isfinite(scales).all():
        raise ValueError("a weight has values that are not finite, or too large for a float16 scale")
    kind: Any = Int4 if bits == 4 else Int8
    return kind(jnp.asarray(packed if bits == 4 else packed.view(np.int8)), jnp.asarray(scales), outputs, transposed)


def _quantize_block(rows: Float[np.ndarray, "*layers O I"], bits: Bits) -> tuple[np.ndarray, np.ndarray]:
    """Packed values and scales of some tiles."""
    *layers, outputs, inner = rows.shape
    missing = -outputs % TILE
    padded = np.pad(rows, (*((0, 0),) * len(layers), (0, missing), (0, 0)))
    # [*layers, T, 16, G, 32] to [32, *layers, T, G, 16]: the values of a group along the slowest dimension.
    grouped = padded.reshape(*layers, -1, TILE, inner // GROUP, GROUP)
    grouped = np.ascontiguousarray(np.moveaxis(np.swapaxes(grouped, -3, -2), -1, 0))
    largest = np.abs(grouped).max(0)
    # Scales of values that are too large become infinite, which the caller refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (largest / 127).astype(np.float16) if bits == 8 else _searched(grouped, largest)
        q = _round(grouped, scale, *LIMITS[bits])
        q = (q if bits == 8 else q + 8).astype(np.int8).view(np.uint8)
    if bits == 4:
        q = q[:16] | (q[16:] << 4)
    # [vectors · 4, *layers, T, G, 16] to [*layers, T, G, vectors, 16, 4]
    q = np.moveaxis(q.reshape(-1, 4, *q.shape[1:]), (0, 1), (-3, -1))
    return q, scale


def _searched(grouped: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The scale of each group with the smallest squared error in 4 bits."""
    best_error, best_scale = np.full(largest.shape, np.inf, np.float32), np.zeros(largest.shape, np.float16)
    # A scale may be negative: -8..7 has one more step on its negative side, which each group can use for either sign.
    for candidate in (*SHRINK, *-SHRINK):
        scale = (candidate / np.float32(7.5) * largest).astype(np.float16)
        error = np.sum((_round(grouped, scale, *LIMITS[4]) * scale.astype(np.float32) - grouped) ** 2, 0)
        # NaN is chosen too: it stands for values that have no scale.
        better = ~(error >= best_error)
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale, best_scale)
    return best_scale


def _round(grouped: np.ndarray, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    """The nearest integers; 0 where the scale is 0."""
    inverse = np.divide(1, scale, out=np.zeros(scale.shape, np.float32), where=scale != 0, dtype=np.float32)
    return np.clip(np.rint(grouped * inverse), low, high)
