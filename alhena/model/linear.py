"""The one place where the model multiplies by a weight, plain or 4-bit; nothing else knows about quantization.

A weight is a matrix ``[in, out]`` (or stacked ``[layers, in, out]``, sliced by the scan). Two products exist:

    "...i,io->...o"   a projection
    "...i,oi->...o"   the logits of the tied embedding ``[V, D]``

Activations are flattened to 2-D and each product contracts one dimension: the form XLA's CPU backend runs at full rate. On a mesh
they keep their shape, since rows and tokens are cut along different axes. Going back, the slopes are rounded to the operands' type too.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.model.int4 import Int4, dequantize
from alhena.shapes import Array, Float, Int

Weight = Array | Int4


def dense(w: Weight) -> Float[Array, "*layers I O"]:
    """The float32 weight, dequantized if need be."""
    return dequantize(w) if isinstance(w, Int4) else w


def _dot(a: Array, b: Array, over: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return jax.lax.dot_general(a, b, (over, ((), ())), preferred_element_type=jnp.float32)


def _turned(x: Float[Array, "R C"]) -> Float[Array, "C R"]:
    """The transposed matrix, in a form that XLA does not fold into the product that uses it."""
    rows, columns = x.shape
    return x.reshape(-1, math.gcd(rows, 8), columns).transpose(2, 0, 1).reshape(columns, rows)


def weight_gradient(x: Float[Array, "*rows I"], y: Float[Array, "*rows O"]) -> Float[Array, "I O"]:
    """Sum over rows of their outer products: the slopes of a weight between ``x`` and what has the slopes ``y``.

    XLA's CPU backend runs a product over the first dimension of both at a third of its rate (bfloat16) or two (float32), so the
    narrower side is turned first (benchmarks/bench_step.py).
    """
    if x.ndim > 2 or jax.default_backend() != "cpu":
        rows = tuple(range(x.ndim - 1))
        return _dot(x, y, (rows, rows))
    if x.shape[1] <= y.shape[1]:
        return _dot(_turned(x), y, ((1,), (0,)))
    return _turned(_dot(_turned(y), x, ((1,), (0,))))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x: Float[Array, "*rows I"], w: Float[Array, "I O"], dtype: str) -> Float[Array, "*rows O"]:
    return _dot(x.astype(dtype), w.astype(dtype), ((x.ndim - 1,), (0,)))


def _keep(x, w, dtype):
    operands = x.astype(dtype), w.astype(dtype)
    return _project(*operands, dtype), (*operands, x[:0], w[:0])


def _slopes(dtype, kept, d):
    x, w, *like = kept
    d = d.astype(dtype)
    d_x, d_w = _dot(d, w, ((d.ndim - 1,), (1,))), weight_gradient(x, d)
    return tuple(a.astype(b.dtype) for a, b in zip((d_x, d_w), like, strict=True))


_project.defvjp(_keep, _slopes)


def einsum(spec: str, x: Float[Array, "... I"], w: Weight, dtype: str = "float32") -> Float[Array, "... O"]:
    """``x`` times a weight: operands in ``dtype``, result accumulated and returned in float32."""
    flat = x if sharding.has_mesh() else x.reshape(-1, x.shape[-1])
    if spec == "...i,io->...o":
        out = _project(flat, dense(w), dtype)
    elif spec == "...i,oi->...o":
        out = _dot(flat.astype(dtype), dense(w).astype(dtype), ((flat.ndim - 1,), (1,)))
    else:
        raise ValueError(f"einsum {spec!r}; a weight is applied by one of ...i,io->...o, ...i,oi->...o")
    return out.reshape(*x.shape[:-1], -1)


def take_rows(w: Weight, ids: Int[Array, " ..."]) -> Float[Array, "... D"]:
    """Rows of an embedding ``[V, D]``; of a 4-bit one only the rows asked for are dequantized."""
    if not isinstance(w, Int4):
        return w[ids]
    columns = Int4(w.packed[:, ids.reshape(-1)], w.scales[:, ids.reshape(-1)], w.transposed)
    return dequantize(columns).reshape(*ids.shape, -1)
