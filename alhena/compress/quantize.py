"""Stores a model in the types of a table (alhena/model/quantized/types.py): rounded to nearest, or with weights that are on the grid already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from alhena.compress.grid import encoded
from alhena.model.linear import Weight
from alhena.model.quantized.rounding import quantize
from alhena.model.quantized.types import type_table
from alhena.model.spec import WeightSpec
from alhena.shapes import Array, Float

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class OnGrid:
    """A weight on the grid: its values and their scales, in the orientation of a matmul (an embedding transposed)."""

    values: Float[Array, "*layers I O"]
    scales: Float[Array, "*layers G O"]


def quantize_model(
    params: Tree, specs: Any, types: Mapping[str, str] | None = None, on_grid: Mapping[str, OnGrid] | None = None
) -> Tree:
    """Params in the types of the table, with settings ``types``; those that are quantized already are unchanged.

    Weights ``on_grid``, by name, are stored as they are there, all others are rounded to nearest. Raises ValueError for a wrong setting.
    """
    table, on_grid = type_table(specs, types), on_grid or {}

    def one(path: Any, s: WeightSpec, w: Weight) -> Weight:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        entry, transposed = table[name], s.contracted == -1
        if not isinstance(w, Array):
            return w
        if entry.bits is None:
            return w.astype(jnp.bfloat16) if entry.type == "bfloat16" else w
        if name in on_grid:
            return encoded(on_grid[name].values, on_grid[name].scales, entry.bits, transposed)
        return quantize(w, entry.bits, transposed)

    return jax.tree_util.tree_map_with_path(one, specs, params)
