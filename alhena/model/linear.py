"""The one place where the model multiplies by a weight: plain, 4-bit, or with a LoRA update beside either.

A weight is a matrix ``[in, out]`` (or stacked ``[layers, in, out]``, sliced by the scan). Two matmuls exist:

    "...i,io->...o"   a projection
    "...i,oi->...o"   the logits of the tied embedding ``[V, D]``

Activations are flattened to 2-D and each matmul contracts one dimension: the form that XLA's CPU backend runs fastest. On a mesh they
keep their shape, since batch and length are sharded along different axes. In the backward pass cotangents are rounded to the dtype of
the operands too.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.model.int4 import Int4, dequantize
from alhena.model.lora import Lora, merge
from alhena.shapes import Array, Float, Int

Tree = TypeVar("Tree")
# A weight without an update.
Plain = Array | Int4
Weight = Plain | Lora


def dense(w: Weight) -> Float[Array, "*layers I O"]:
    """The weight as one array, dequantized if it is 4-bit, its LoRA update added."""
    if isinstance(w, Lora):
        return merge(w)
    return dequantize(w) if isinstance(w, Int4) else w


def _dot(
    a: Float[Array, " ..."], b: Float[Array, " ..."], contracted: tuple[tuple[int, ...], tuple[int, ...]]
) -> Float[Array, " ..."]:
    """Matmul over the contracted dimensions of ``a`` and ``b``, accumulated in float32."""
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _transposed(x: Float[Array, "I O"]) -> Float[Array, "O I"]:
    """The transposed matrix, in a form that XLA does not fold into the matmul that uses it."""
    rows, columns = x.shape
    return x.reshape(-1, math.gcd(rows, 8), columns).transpose(2, 0, 1).reshape(columns, rows)


def weight_gradient(x: Float[Array, "*batch I"], cotangent: Float[Array, "*batch O"]) -> Float[Array, "I O"]:
    """Gradient of a weight from its inputs and the cotangent of its outputs: outer products, summed over the batch.

    XLA's CPU backend runs a matmul over the first dimension of both operands at a third (bfloat16) or two thirds (float32) of full
    speed, so the narrower operand is transposed first (benchmarks/bench_step.py).
    """
    if x.ndim > 2 or jax.default_backend() != "cpu":
        batch = tuple(range(x.ndim - 1))
        return _dot(x, cotangent, (batch, batch))
    if x.shape[1] <= cotangent.shape[1]:
        return _dot(_transposed(x), cotangent, ((1,), (0,)))
    return _transposed(_dot(_transposed(cotangent), x, ((1,), (0,))))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x: Float[Array, "*batch I"], w: Float[Array, "I O"], dtype: str) -> Float[Array, "*batch O"]:
    return _dot(x.astype(dtype), w.astype(dtype), ((x.ndim - 1,), (0,)))


def _forward_rule(
    x: Float[Array, "*batch I"], w: Float[Array, "I O"], dtype: str
) -> tuple[Float[Array, "*batch O"], tuple[Array, ...]]:
    operands = x.astype(dtype), w.astype(dtype)
    # Empty slices record the dtypes of x and w.
    return _project(*operands, dtype), (*operands, x[:0], w[:0])


def _backward_rule(
    dtype: str, residuals: tuple[Array, ...], cotangent: Float[Array, "*batch O"]
) -> tuple[Float[Array, "*batch I"], Float[Array, "I O"]]:
    x, w, like_x, like_w = residuals
    cotangent = cotangent.astype(dtype)
    d_x = _dot(cotangent, w, ((cotangent.ndim - 1,), (1,)))
    return d_x.astype(like_x.dtype), weight_gradient(x, cotangent).astype(like_w.dtype)


_project.defvjp(_forward_rule, _backward_rule)


def einsum(spec: str, x: Float[Array, "*batch I"], w: Weight, dtype: str = "float32") -> Float[Array, "*batch O"]:
    """``x`` times a weight: operands in ``dtype``, result accumulated and returned in float32."""
    if isinstance(w, Lora):
        if spec != "...i,io->...o":
            raise ValueError(f"einsum {spec!r}: no LoRA update of an embedding is implemented")
        return einsum(spec, x, w.base, dtype) + w.scale * einsum(spec, einsum(spec, x, w.down, dtype), w.up, dtype)
    flat = x if sharding.has_mesh() else x.reshape(-1, x.shape[-1])
    if spec == "...i,io->...o":
        out = _project(flat, dense(w), dtype)
    elif spec == "...i,oi->...o":
        out = _dot(flat.astype(dtype), dense(w).astype(dtype), ((flat.ndim - 1,), (1,)))
    else:
        raise ValueError(f"einsum {spec!r}; a weight is applied by one of ...i,io->...o, ...i,oi->...o")
    return out.reshape(*x.shape[:-1], -1)


def slice_stack(stack: Tree, index: Int[Array, ""]) -> Tree:
    """The weights at ``index`` of stacked ones, inside a loop over indices.

    XLA's CPU backend slices bfloat16 by way of float32, and would convert the complete stack before the loop: four more bytes a
    weight. Since the barrier also takes the index, it cannot.
    """
    if any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(stack)):
        stack, index = jax.lax.optimization_barrier((stack, index))
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, index, keepdims=False), stack)


def take_rows(w: Plain, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of an embedding ``[R, D]``; of a 4-bit one only these rows are dequantized."""
    if not isinstance(w, Int4):
        return w[ids]
    columns = Int4(w.packed[:, ids.reshape(-1)], w.scales[:, ids.reshape(-1)], w.transposed)
    return dequantize(columns).reshape(*ids.shape, -1)
