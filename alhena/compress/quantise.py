"""4-bit weights in groups: every group of ``group`` values along the contracted dimension shares one scale.

    w [I, O] ─► for each group and output: the scale, out of a few, that loses least ─► q = round(w / scale) in -8..7

Which weights are quantised, their specifications say: the decoder's matrices and the tied embedding; norms and the encoders (a small
share of a large model) stay as they are. Round-to-nearest with a search for the scale (as in AWQ's clipping, Lin et al. 2023).
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model.einsum import Int4, Weight
from alhena.model.spec import WeightSpec
from alhena.shapes import Array, Float

Tree = TypeVar("Tree")

SHRINK = np.linspace(0.7, 1.0, 13, dtype=np.float32)  # of the scale that just reaches the largest value


def quantise(w: Float[Array, "*layers I O"], group: int, transposed: bool = False) -> Int4:
    """An Int4 of a weight; ``transposed`` for the embedding ``[V, D]``, which is contracted along its last dimension.

    Raises ValueError when the contracted dimension is no multiple of the group, or the group is odd.
    """
    values = np.asarray(w, np.float32)
    if transposed:
        values = np.swapaxes(values, -1, -2)
    *layers, inner, outer = values.shape
    if inner % group or group % 2:
        raise ValueError(
            f"a weight of {inner} inputs cannot be quantised in groups of {group}; choose an even divisor of {inner}"
        )
    grouped = values.reshape(*layers, inner // group, group, outer)
    largest = np.abs(grouped).max(-2)
    best_error, best_scale = np.full(largest.shape, np.inf, np.float32), np.ones_like(largest)
    # A scale may be negative: -8..7 reaches one step further on one side, and each group turns that side where it needs it.
    for candidate in (*SHRINK, *-SHRINK):
        scale = candidate * np.maximum(largest / 7.5, 1e-12)
        error = np.sum((_round(grouped, scale) * scale[..., None, :] - grouped) ** 2, -2)
        better = error < best_error
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale, best_scale)
    q = (_round(grouped, best_scale) + 8).astype(np.uint8).reshape(*layers, inner // 2, 2, outer)
    packed = q[..., 0, :] | (q[..., 1, :] << 4)
    return Int4(jnp.asarray(packed), jnp.asarray(best_scale.astype(np.float32)), transposed)


def _round(grouped: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.round(grouped / scale[..., None, :]), -8, 7)


def quantise_model(params: Tree, specs: Tree, group: int = 32) -> Tree:
    """Params with 4-bit weights where their specifications say so; a weight that is 4-bit already stays as it is."""

    def one(s: WeightSpec, w: Weight) -> Weight:
        if s.contracted is None or isinstance(w, Int4):
            return w
        return quantise(w, group, transposed=s.contracted == -1)

    return jax.tree.map(one, specs, params)
