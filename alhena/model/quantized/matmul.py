"""Matmul by quantized weights: activations are rounded to 8 bits too, one scale for each group of 32.

    y[m, o] = Σ_g  (Σ_i qx[m, g, i] · qw[o, g, i]) · (scale_w[o, g] · scale_x[m, g])

The inner sum is of integers, hence exact; the outer one is of float32, in order. A row of the result does not depend on the other rows.
Under gradients the weight is dequantized: a frozen weight, whose own cotangent is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model.quantized import native
from alhena.model.quantized.layout import GROUP, TILE, Quantized, dequantize, integers, no_gradient, sliced
from alhena.shapes import Array, Float


def matmul(x: Float[Array, "M I"], w: Quantized, dtype: str = "float32") -> Float[Array, "M O"]:
    """``x`` times one quantized weight."""
    return matmuls(x, (w,), dtype)[0]


def matmuls(x: Float[Array, "M I"], weights: Sequence[Quantized], dtype: str = "float32") -> list[Array]:
    """``x`` times each of several quantized weights, float32. Gradients are computed with operands in ``dtype``.

    Raises ValueError for a weight of other inputs, and for a stack of weights without an index.
    """
    for w in weights:
        if w.layers or w.inputs != x.shape[1]:
            raise ValueError(f"inputs {x.shape} do not fit a quantized weight of shape {w.shape}")
    return list(_matmuls(x, tuple(weights), dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmuls(x: Float[Array, "M I"], weights: tuple[Quantized, ...], dtype: str) -> tuple[Array, ...]:
    if jax.default_backend() == "gpu" and native.requested() == native.TRITON:
        # Importing Pallas takes longer than a small model needs to start.
        from alhena.model.quantized import gpu

        return tuple(gpu.matmul(x, w) for w in weights)
    if jax.default_backend() != "cpu":
        return tuple(_dot(x, dense, dtype) for dense in map(_matrix, weights))
    x = x.astype(jnp.float32)
    instructions = native.chosen()
    if instructions != native.NONE:
        return native.matmuls(x, weights, instructions)
    return tuple(portable_matmul(x, w) for w in weights)


def _matrix(w: Quantized) -> Float[Array, "I O"]:
    return dequantize(w).T if w.transposed else dequantize(w)


def _dot(x: Float[Array, "M I"], w: Float[Array, "I O"], dtype: str) -> Float[Array, "M O"]:
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32)


def _forward_rule(x: Float[Array, "M I"], weights: tuple[Quantized, ...], dtype: str) -> tuple[tuple[Array, ...], Any]:
    # The empty slice records the dtype of x.
    return tuple(_dot(x, _matrix(w), dtype) for w in weights), (weights, x[:0])


def _backward_rule(dtype: str, residuals: Any, cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
    weights, like = residuals
    d_x = sum(_dot(d, _matrix(w).T, dtype) for d, w in zip(cotangents, weights, strict=True))
    return jnp.asarray(d_x, like.dtype), tuple(map(no_gradient, weights))


_matmuls.defvjp(_forward_rule, _backward_rule)


def rounded(x: Float[Array, "M I"]) -> tuple[Float[Array, "M G 32"], Float[Array, "M G"]]:
    """Activations in 8 bits: integers -127..127 and the scale of each group."""
    grouped = x.reshape(len(x), -1, GROUP)
    largest = jnp.abs(grouped).max(-1)
    inverse = jnp.where(largest > 0, 127 / largest, 0)
    return jnp.round(grouped * inverse[..., None]), largest * jnp.float32(1 / 127)


def portable_matmul(x: Float[Array, "M I"], w: Quantized) -> Float[Array, "M O"]:
    """The matmul without the compiled kernel: the same numbers, slowly. The reference of its tests."""
    w = sliced(w)
    q, x_scales = rounded(x)
    tiles, groups = w.packed.shape[:2]

    def add_group(g: Array, out: Float[Array, "M T 16"]) -> Float[Array, "M T 16"]:
        packed, scales, q_g, x_scale = (
            jax.lax.dynamic_index_in_dim(a, g, 1, keepdims=False) for a in (w.packed, w.scales, q, x_scales)
        )
        # float32 holds the sums of 32 products of 8-bit integers exactly, and is faster.
        values = integers(packed).astype(jnp.float32).reshape(-1, GROUP)
        products = jax.lax.dot_general(q_g, values, (((1,), (1,)), ((), ())), precision="highest")
        return out + products.reshape(out.shape) * (scales.astype(jnp.float32) * x_scale[:, None, None])

    out = jax.lax.fori_loop(0, groups, add_group, jnp.zeros((len(x), tiles, TILE), jnp.float32))
    return out.reshape(len(x), -1)[:, : w.outputs]
