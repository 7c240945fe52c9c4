"""The one place where the model multiplies by a weight, plain or 4-bit; nothing else knows about quantisation.

A weight is a matrix ``[in, out]`` (or stacked ``[layers, in, out]``, sliced by the scan). Two products exist:

    "...i,io->...o"   a projection
    "...i,oi->...o"   the logits of the tied embedding ``[V, D]``

Int4 keeps two 4-bit values a byte along the contracted dimension, with one scale for each group of ``group`` of them:

    w [I, O]  ──►  packed uint8 [I/2, O],  scales float32 [I/group, O]        w ≈ (q - 8) · scale, q in 0..15

Activations are flattened to 2-D and each product contracts one dimension: the form XLA's CPU backend runs at full rate. On a mesh
they keep their shape, since rows and tokens are cut along different axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.shapes import Array, Float, Int, UInt8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int4:
    """A 4-bit matrix. ``transposed`` says that the stored matrix is ``[in, out]`` of an ``[out, in]`` weight (the embedding)."""

    packed: UInt8[Array, "*layers I/2 O"]
    scales: Float[Array, "*layers I/G O"]
    transposed: bool = field(default=False, metadata={"static": True})


Weight = Array | Int4


def unpack(w: Int4) -> Int[Array, "*layers I O"]:
    """The integers -8..7, in their order along the contracted dimension."""
    low, high = w.packed & 15, w.packed >> 4
    both = jnp.stack([low, high], axis=-2)  # [..., I/2, 2, O]
    return both.reshape(*w.packed.shape[:-2], -1, w.packed.shape[-1]).astype(jnp.int32) - 8


def dequantise(w: Int4) -> Float[Array, "*layers I O"]:
    """The float32 weight that an Int4 stands for, in its original orientation."""
    values = unpack(w).astype(jnp.float32)
    group = values.shape[-2] // w.scales.shape[-2]
    full = values * jnp.repeat(w.scales.astype(jnp.float32), group, axis=-2)
    return jnp.swapaxes(full, -1, -2) if w.transposed else full


def dense(w: Weight) -> Float[Array, "*layers I O"]:
    """The float32 weight, dequantised if need be."""
    return dequantise(w) if isinstance(w, Int4) else w


def einsum(spec: str, x: Float[Array, "... I"], w: Weight, dtype: str = "float32") -> Float[Array, "... O"]:
    """``x`` times a weight: operands in ``dtype``, result accumulated and returned in float32."""
    contracted = {"...i,io->...o": 0, "...i,oi->...o": 1}
    if spec not in contracted:
        raise ValueError(f"einsum {spec!r}; a weight is applied by one of {', '.join(contracted)}")
    flat = (x if sharding.is_on() else x.reshape(-1, x.shape[-1])).astype(dtype)
    dims = (((flat.ndim - 1,), (contracted[spec],)), ((), ()))
    out = jax.lax.dot_general(flat, dense(w).astype(dtype), dims, preferred_element_type=jnp.float32)
    return out.reshape(*x.shape[:-1], -1)


def take(w: Weight, ids: Int[Array, ...]) -> Float[Array, "... D"]:
    """Rows of an embedding ``[V, D]``; of a 4-bit one only the rows asked for are dequantised."""
    if not isinstance(w, Int4):
        return w[ids]
    columns = Int4(w.packed[:, ids.reshape(-1)], w.scales[:, ids.reshape(-1)], w.transposed)
    return dequantise(columns).reshape(*ids.shape, -1)
