"""What follows attention in a layer of quantized weights, in one call: output projection and MLP, with norms and residual connections.

Between the matmuls of a step there are a dozen operations on a few thousand numbers, each of which XLA starts for itself. The kernel
does them where the matmuls are divided among its threads. A row of the result does not depend on the other rows. The reference is that of
alhena/model/transformer/decoder.py (``_attention_out``, ``_mlp``), which is computed under gradients, on a mesh, on accelerators, and without the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from alhena.model import sharding
from alhena.model.quantized import native
from alhena.model.quantized.layout import Quantized
from alhena.shapes import Array, Float


def is_available(weights: Sequence[Any]) -> bool:
    """Whether the kernel multiplies by the weights: quantized ones, on one CPU."""
    quantized = all(isinstance(w, Quantized) for w in weights)
    return quantized and jax.default_backend() == "cpu" and not sharding.has_mesh() and native.chosen() != native.NONE


def run(
    x: Float[Array, "B L D"],
    heads: Float[Array, "B L N H"],
    norms: tuple[Float[Array, " D"] | None, ...],
    weights: tuple[Any, ...],
) -> Float[Array, "B L D"]:
    """The residual stream after the layer.

    ``norms`` are the scales of those after the output projection (None: no norm), before and after the MLP; ``weights`` are output,
    gate, up and down.
    """
    rows = x.shape[0] * x.shape[1]
    return native.sublayers(x.reshape(rows, -1), heads.reshape(rows, -1), norms, weights, native.chosen()).reshape(
        x.shape
    )
