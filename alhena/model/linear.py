"""The one place where the model multiplies by a weight: plain, quantized, or with a LoRA update beside either.

A weight is a matrix ``[in, out]`` (or stacked ``[layers, in, out]``, sliced by the scan). Two matmuls exist:

    "...i,io->...o"   a projection
    "...i,oi->...o"   the logits of the tied embedding ``[V, D]``

Activations are flattened to 2-D and each matmul contracts one dimension: the form that XLA's CPU backend runs fastest. On a mesh they
keep their shape, since batch and length are sharded along different axes. In the backward pass cotangents are rounded to the dtype of
the operands too.

A quantized weight is multiplied by as it is (alhena/model/quantized/); on a mesh it is dequantized. A few rows are multiplied by a plain
weight in a kernel of our own, where there is one, in which no row depends on the others (alhena/model/attention/native.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.model.attention import native
from alhena.model.lora import Lora, merge
from alhena.model.quantized.layout import Quantized, at, dequantize, dequantize_rows, is_quantized
from alhena.model.quantized.matmul import matmuls as quantized_matmuls
from alhena.model.quantized.observed import Observed, observed
from alhena.shapes import Array, Float, Int, pytree

Tree = TypeVar("Tree")


@pytree
@dataclass(frozen=True)
class InStack:
    """One of the matrices of a stack, which is not copied."""

    stack: Float[Array, "layers I O"]
    layer: Int[Array, ""]


# A weight without an update.
Plain = Array | Quantized
Weight = Plain | InStack | Lora | Observed


def dense(w: Weight) -> Float[Array, "*layers I O"]:
    """The weight as one array, dequantized if it is quantized, its LoRA update added."""
    if isinstance(w, Lora):
        return merge(w)
    if isinstance(w, InStack):
        return slice_stack(w.stack, w.layer)
    if isinstance(w, Observed):
        return w.value
    return dequantize(w) if isinstance(w, Quantized) else w


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
    return native.multiply(x, w) if _by_kernel(x, w, dtype) else _plain_project(x, w, dtype)


def _by_kernel(x: Float[Array, "*batch I"], w: Array, dtype: str, transposed: bool = False) -> bool:
    """Whether the kernel for a few rows multiplies by a plain weight."""
    few = x.ndim == 2 and len(x) <= native.MAX_ROWS and not sharding.has_mesh()
    return few and w.dtype == dtype and native.multiplies(w, transposed)


def _plain_project(x: Float[Array, "*batch I"], w: Float[Array, "I O"], dtype: str) -> Float[Array, "*batch O"]:
    return _dot(x.astype(dtype), w.astype(dtype), ((x.ndim - 1,), (0,)))


def _forward_rule(
    x: Float[Array, "*batch I"], w: Float[Array, "I O"], dtype: str
) -> tuple[Float[Array, "*batch O"], tuple[Array, ...]]:
    operands = x.astype(dtype), w.astype(dtype)
    # Empty slices record the dtypes of x and w.
    return _plain_project(*operands, dtype), (*operands, x[:0], w[:0])


def _backward_rule(
    dtype: str, residuals: tuple[Array, ...], cotangent: Float[Array, "*batch O"]
) -> tuple[Float[Array, "*batch I"], Float[Array, "I O"]]:
    x, w, like_x, like_w = residuals
    cotangent = cotangent.astype(dtype)
    d_x = _dot(cotangent, w, ((cotangent.ndim - 1,), (1,)))
    return d_x.astype(like_x.dtype), weight_gradient(x, cotangent).astype(like_w.dtype)


_project.defvjp(_forward_rule, _backward_rule)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project_transposed(x: Float[Array, "*batch I"], w: Float[Array, "O I"], dtype: str) -> Float[Array, "*batch O"]:
    if _by_kernel(x, w, dtype, transposed=True):
        return native.multiply(x, w, transposed=True)
    return _plain_project_transposed(x, w, dtype)


def _plain_project_transposed(
    x: Float[Array, "*batch I"], w: Float[Array, "O I"], dtype: str
) -> Float[Array, "*batch O"]:
    return _dot(x.astype(dtype), w.astype(dtype), ((x.ndim - 1,), (1,)))


_project_transposed.defvjp(
    lambda x, w, dtype: jax.vjp(partial(_plain_project_transposed, dtype=dtype), x, w),
    lambda dtype, pull, cotangent: pull(cotangent),
)


def einsum(spec: str, x: Float[Array, "*batch I"], w: Weight, dtype: str = "float32") -> Float[Array, "*batch O"]:
    """``x`` times a weight: operands in ``dtype``, result accumulated and returned in float32."""
    if spec not in ("...i,io->...o", "...i,oi->...o"):
        raise ValueError(f"einsum {spec!r}; a weight is applied by one of ...i,io->...o, ...i,oi->...o")
    if isinstance(w, Observed):
        flat, out = x.reshape(-1, x.shape[-1]), einsum(spec, x, w.value, dtype)
        return observed(flat, out.reshape(len(flat), -1), w.moments).reshape(out.shape)
    if isinstance(w, Lora):
        if spec != "...i,io->...o":
            raise ValueError(f"einsum {spec!r}: no LoRA update of an embedding is implemented")
        return einsum(spec, x, w.base, dtype) + w.scale * einsum(spec, einsum(spec, x, w.down, dtype), w.up, dtype)
    if isinstance(w, Quantized) and w.transposed != (spec == "...i,oi->...o"):
        raise ValueError(f"einsum {spec!r}: the quantized weight of shape {w.shape} has the other orientation")
    if isinstance(w, Quantized) and not sharding.has_mesh():
        return _quantized(x, (w,), dtype)[0]
    flat = x if sharding.has_mesh() else x.reshape(-1, x.shape[-1])
    if isinstance(w, InStack) and _by_kernel(flat, w.stack, dtype):
        out = native.multiply(flat, w.stack, w.layer)
    elif spec == "...i,io->...o":
        out = _project(flat, dense(w), dtype)
    else:
        out = _project_transposed(flat, dense(w), dtype)
    return out.reshape(*x.shape[:-1], -1)


def _quantized(x: Float[Array, "*batch I"], weights: Sequence[Quantized], dtype: str) -> list[Array]:
    out = quantized_matmuls(x.reshape(-1, x.shape[-1]), weights, dtype)
    return [y.reshape(*x.shape[:-1], -1) for y in out]


def _projections(x: Float[Array, "*batch I"], weights: tuple[Weight, ...], dtype: str) -> list[Array]:
    """``x`` times each weight ``[I, O]``; quantized ones in one call."""
    together = [w for w in weights if isinstance(w, Quantized)]
    results = iter(_quantized(x, together, dtype) if together else ())
    return [next(results) if isinstance(w, Quantized) else einsum("...i,io->...o", x, w, dtype) for w in weights]


def column_parallel(
    x: Float[Array, "B L D"], weights: tuple[Weight, ...], axes: sharding.Axes, dtype: str
) -> list[Array]:
    """``x`` times each weight ``[D, O]``; ``axes`` are the logical axes of O, along which a mesh shards the results."""
    if not sharding.has_mesh():
        return _projections(x, weights, dtype)
    matmul = partial(einsum, "...i,io->...o", dtype=dtype)
    return sharding.column_parallel(matmul, x, tuple(map(dense, weights)), axes, dtype)


def row_parallel(x: Float[Array, "B L F"], w: Weight, dtype: str) -> Float[Array, "B L D"]:
    """``x`` times a weight ``[F, D]``; a mesh shards F."""
    matmul = partial(einsum, "...i,io->...o", dtype=dtype)
    return sharding.row_parallel(matmul, x, dense(w), dtype) if sharding.has_mesh() else matmul(x, w)


def slice_stack(stack: Tree, index: Int[Array, ""] | int) -> Tree:
    """The weights at ``index`` of stacked ones, inside a loop over indices. Of quantized weights nothing is copied.

    XLA's CPU backend slices bfloat16 by way of float32, and would convert the complete stack before the loop: four more bytes a
    weight. Since the barrier also takes the index, it cannot.
    """
    leaves, structure = jax.tree.flatten(stack, is_leaf=is_quantized)
    plain = [leaf for leaf in leaves if not isinstance(leaf, Quantized)]
    if any(leaf.dtype == jnp.bfloat16 for leaf in plain):
        plain, index = jax.lax.optimization_barrier((plain, jnp.asarray(index)))
    slices = iter([jax.lax.dynamic_index_in_dim(w, index, keepdims=False) for w in plain])
    return jax.tree.unflatten(structure, [at(w, index) if isinstance(w, Quantized) else next(slices) for w in leaves])


@jax.custom_jvp
def _bfloat16_rows(w: Float[Array, "R D"], ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows: XLA's CPU backend gathers bfloat16 by way of float32, and would convert the complete table."""
    if native.is_available() and not sharding.has_mesh():
        return native.take_rows(w, ids).astype(jnp.bfloat16)
    return w[ids]


@_bfloat16_rows.defjvp
def _bfloat16_rows_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _bfloat16_rows(*primals), tangents[0][primals[1]]


def take_rows(w: Plain, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of an embedding ``[R, D]``; of a quantized one only these rows are dequantized."""
    if not isinstance(w, Quantized):
        return _bfloat16_rows(w, ids) if w.dtype == jnp.bfloat16 else w[ids]
    return dequantize_rows(w, ids.reshape(-1)).reshape(*ids.shape, -1)
