"""A model with 4-bit weights (alhena/model/int4.py).

Which weights are quantized, their specifications say: the decoder's matrices and the tied embedding; norms and the encoders (a small
share of a large model) stay as they are.
"""

from __future__ import annotations

from typing import TypeVar

import jax

from alhena.model.int4 import Int4, quantize
from alhena.model.linear import Weight
from alhena.model.spec import WeightSpec

Tree = TypeVar("Tree")


def quantize_model(params: Tree, specs: Tree, group: int = 32) -> Tree:
    """Params with 4-bit weights where their specifications say so; a weight that is 4-bit already stays as it is."""

    def one(s: WeightSpec, w: Weight) -> Weight:
        if s.contracted is None or isinstance(w, Int4):
            return w
        return quantize(w, group, transposed=s.contracted == -1)

    return jax.tree.map(one, specs, params)
