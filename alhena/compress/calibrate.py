"""Calibration: what the inputs of every weight look like on a few batches, and the quantized weights that change its outputs least.

    batches ─ one backward pass ─► second moments of inputs [*layers, blocks, n, n] ─► values of the grid, and scales

The moments come as gradients of arrays beside the weights (alhena/model/quantized/observed.py). The embedding is rounded to nearest:
it is an input too, where each row counts for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alhena.batch import Batch
from alhena.compress import grid
from alhena.compress.quantize import OnGrid
from alhena.model import config, model
from alhena.model.quantized.layout import dequantize
from alhena.model.quantized.observed import Observed, observe
from alhena.model.quantized.rounding import Bits, quantize
from alhena.model.quantized.types import TensorType
from alhena.model.spec import named
from alhena.shapes import Array, Float
from alhena.train.loss import batch_loss

Moments = dict[str, Float[Array, "*layers blocks n n"]]


def is_observed(entry: TensorType) -> bool:
    """Whether the inputs of a quantized weight are observed, so that more can be done than to round it."""
    return entry.bits is not None and not entry.reason


def moments(params: model.Params, c: config.Model, batches: Iterable[Batch], names: Iterable[str]) -> Moments:
    """Second moments of the inputs of the named weights, weighted by the squared gradients of their outputs, summed over batches."""
    structure, names = jax.tree.structure(params), set(names)

    @jax.jit
    def of_batch(zeros: Moments, params: model.Params, batch: Batch) -> Moments:
        def loss(zeros: Moments) -> Float[Array, ""]:
            weights = [Observed(w, zeros[n]) if n in zeros else w for n, w in named(params).items()]
            return batch_loss(jax.tree.unflatten(structure, weights), c, batch)[0]

        return jax.grad(loss)(zeros)

    zeros = {name: observe(w).moments for name, w in named(params).items() if name in names}
    total = zeros
    for batch in batches:
        total = jax.tree.map(jnp.add, total, of_batch(zeros, params, jax.tree.map(jnp.asarray, batch)))
    return total


def _stacked(function: Callable[..., Any], layers: int, *arrays: Array) -> Any:
    """A function of matrices, applied to the arrays of every layer; ``layers`` is the number of leading dimensions."""
    if not layers:
        return function(*arrays)
    parts = [_stacked(function, layers - 1, *(a[i] for a in arrays)) for i in range(len(arrays[0]))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def _compensated(bits: int, w: Float[Array, "I O"], moments: Float[Array, "blocks n n"]) -> tuple[Array, Array]:
    """Values and scales of one matrix, block by block."""
    n = moments.shape[-1]
    parts = [grid.compensate(w[b * n : (b + 1) * n], moments[b], bits) for b in range(len(moments))]
    return tuple(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))  # type: ignore[return-value]


def on_grid(w: Float[Array, "*layers I O"], bits: Bits, moments: Array | None = None) -> OnGrid:
    """A weight on the grid; with moments of its inputs such that its outputs change little, else rounded to nearest."""
    if moments is None:
        quantized = quantize(w, bits)
        return OnGrid(dequantize(quantized), grid.scales_of(quantized))
    return OnGrid(*_stacked(partial(_compensated, bits), w.ndim - 2, jnp.asarray(w, jnp.float32), moments))
