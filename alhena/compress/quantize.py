"""Quantizes a model to 4-bit weights (alhena/model/int4.py).

The specifications declare which weights are quantized: the decoder's matrices and the tied embedding. Norms and encoders, a small
fraction of a large model, are not.
"""

from __future__ import annotations

from typing import TypeVar

import jax

from alhena.model.int4 import quantize
from alhena.model.linear import Weight
from alhena.model.spec import WeightSpec
from alhena.shapes import Array

Tree = TypeVar("Tree")


def quantize_model(params: Tree, specs: Tree, group: int = 32) -> Tree:
    """Params with 4-bit weights, in groups of ``group`` values, where ``specs`` declare it. Weights already 4-bit are unchanged."""

    def one(s: WeightSpec, w: Weight) -> Weight:
        if s.contracted is None or not isinstance(w, Array):
            return w
        return quantize(w, group, transposed=s.contracted == -1)

    return jax.tree.map(one, specs, params)
