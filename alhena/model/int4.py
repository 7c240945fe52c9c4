"""4-bit weights: each group of values along the contracted dimension shares one scale.

    w [I, O]  ──►  packed uint8 [I/2, O],  scales float32 [I/group, O]        w ≈ (q - 8) · scale, q in 0..15

A byte holds two values: the even index in its low half, the odd one in its high half. Quantization rounds to nearest, with the scale
that has the smallest squared error out of a few candidates (as in AWQ's clipping, Lin et al. 2023).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from alhena.shapes import Array, Float, Int, UInt8, pytree

# Candidate scales, relative to the scale at which no value is clipped.
SHRINK = np.linspace(0.7, 1.0, 13, dtype=np.float32)
# Values that a thread quantizes at once: its arrays fit in the cache.
BLOCK = 2**18


@pytree
@dataclass(frozen=True)
class Int4:
    """A 4-bit matrix. With ``transposed`` an ``[out, in]`` weight (the embedding) is stored as ``[in, out]``."""

    # [*layers, I/2, O]
    packed: UInt8[Array, "*layers half_I O"]
    # [*layers, I/group, O]
    scales: Float[Array, "*layers groups O"]
    transposed: bool = field(default=False, metadata={"static": True})


def unpack(w: Int4) -> Int[Array, "*layers I O"]:
    """The integers -8..7, in order along the contracted dimension."""
    low, high = w.packed & 15, w.packed >> 4
    # [..., I/2, 2, O]
    values = jnp.stack([low, high], axis=-2)
    return values.reshape(*w.packed.shape[:-2], -1, w.packed.shape[-1]).astype(jnp.int32) - 8


def dequantize(w: Int4) -> Float[Array, "*layers I O"]:
    """The float32 weight, in its original orientation."""
    values = unpack(w).astype(jnp.float32)
    group = values.shape[-2] // w.scales.shape[-2]
    full = values * jnp.repeat(w.scales.astype(jnp.float32), group, axis=-2)
    return jnp.swapaxes(full, -1, -2) if w.transposed else full


def quantize(
    w: Float[Array, "*layers I O"] | Float[np.ndarray, "*layers I O"], group: int, transposed: bool = False
) -> Int4:
    """Quantizes a weight; ``transposed`` for the embedding ``[R, D]``, which is contracted along its last dimension.

    Raises ValueError when the contracted dimension is not a multiple of the group, or the group is odd.
    """
    values = np.swapaxes(w, -1, -2) if transposed else np.asarray(w)
    *layers, inner, outer = values.shape
    if inner % group or group % 2:
        raise ValueError(
            f"a weight of {inner} inputs cannot be quantized in groups of {group}; choose an even divisor of {inner}"
        )
    packed = np.empty((*layers, inner // 2, outer), np.uint8)
    scales = np.empty((*layers, inner // group, outer), np.float32)
    # Outputs are independent of each other, and float32 copies of a large table would not fit in memory.
    step = max(1, BLOCK * outer // max(1, values.size))

    def fill(start: int) -> None:
        part = slice(start, start + step)
        packed[..., part], scales[..., part] = _quantize_block(np.asarray(values[..., part], np.float32), group)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, outer, step)))
    return Int4(jnp.asarray(packed), jnp.asarray(scales), transposed)


def _quantize_block(
    values: Float[np.ndarray, "*layers I O"], group: int
) -> tuple[UInt8[np.ndarray, "*layers half_I O"], Float[np.ndarray, "*layers groups O"]]:
    """Packed values and scales."""
    *layers, inner, outer = values.shape
    grouped = values.reshape(*layers, inner // group, group, outer)
    largest = np.abs(grouped).max(-2)
    best_error, best_scale = np.full(largest.shape, np.inf, np.float32), np.ones_like(largest)
    # A scale may be negative: -8..7 has one more step on its negative side, which each group can use for either sign.
    for candidate in (*SHRINK, *-SHRINK):
        scale = candidate * np.maximum(largest / 7.5, 1e-12)
        error = np.sum((_round(grouped, scale) * scale[..., None, :] - grouped) ** 2, -2)
        better = error < best_error
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale, best_scale)
    q = (_round(grouped, best_scale) + 8).astype(np.uint8).reshape(*layers, inner // 2, 2, outer)
    return q[..., 0, :] | (q[..., 1, :] << 4), best_scale.astype(np.float32)


def _round(
    grouped: Float[np.ndarray, "*layers groups group O"], scale: Float[np.ndarray, "*layers groups O"]
) -> Float[np.ndarray, "*layers groups group O"]:
    return np.clip(np.round(grouped / scale[..., None, :]), -8, 7)
