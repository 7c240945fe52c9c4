"""The decoder: pre- and post-norm Transformer layers with multi-query attention, rotary positions, QK-norm and GeGLU.

    x ─┬─ norm ─ q,k,v ─ attention ─ output ─ norm ─ + ─┬─ norm ─ gelu(gate)·up ─ down ─ norm ─ + ─►
       └────────────────────────────────────────────────┘└───────────────────────────────────────┘

Gemma-compatible on purpose (Gemma Team 2024, 2025); QK-norm and post-norm keep mixed-modal training stable (Chameleon 2024).
Layers are stacked along the first axis of every weight and run by ``lax.scan``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, kv_cache, sharding, spec
from alhena.model.attention import causal_attention
from alhena.model.attention_kernels import AttentionOptions
from alhena.model.kv_cache import is_global
from alhena.model.layers import gated, rms_norm, rope, rope_table
from alhena.model.linear import Weight, einsum
from alhena.model.spec import matrix, stacked, vector
from alhena.shapes import Array, Float, Int, pytree

# A few layers run faster unrolled on a CPU; many compile faster scanned.
MAX_UNROLLED = 12


@pytree
@dataclass(frozen=True)
class Layers:
    """Weights of all layers, stacked: matrices ``[layers, in, out]``, norm scales ``[layers, width]``."""

    attention_norm: Array
    query: Weight  # [D, N·H]
    key: Weight  # [D, K·H]
    value: Weight  # [D, K·H]
    query_norm: Array | None  # [H]; None: no QK-norm
    key_norm: Array | None  # [H]
    output: Weight  # [N·H, D]
    attention_post_norm: Array | None  # None: no norm after the sub-layer
    mlp_norm: Array
    gate: Weight  # [D, F]
    up: Weight  # [D, F]
    down: Weight  # [F, D]
    mlp_post_norm: Array | None


def weights(c: config.Decoder) -> Layers:
    """Specifications of the weights."""
    D, H, F = c.width, c.head_dim, c.hidden
    linear = partial(matrix, quantize=True)
    post_norm = vector(D, -1 + 1 / np.sqrt(2 * c.layers)) if c.post_norm else None
    layer = Layers(
        attention_norm=vector(D),
        query=linear(0, (D, c.heads * H), ("width", "heads")),
        key=linear(1, (D, c.kv_heads * H), ("width", None)),
        value=linear(2, (D, c.kv_heads * H), ("width", None)),
        query_norm=vector(H) if c.qk_norm else None,
        key_norm=vector(H) if c.qk_norm else None,
        output=linear(3, (c.heads * H, D), ("heads", "width")),
        attention_post_norm=post_norm,
        mlp_norm=vector(D),
        gate=linear(4, (D, F), ("width", "hidden")),
        up=linear(5, (D, F), ("width", "hidden")),
        down=linear(6, (F, D), ("hidden", "width")),
        mlp_post_norm=post_norm,
    )
    return stacked(c.layers, layer)


def init(key: Array, c: config.Decoder) -> Layers:
    return spec.init(key, weights(c))


def _norm(x: Float[Array, "... D"], scale: Float[Array, " D"] | None) -> Float[Array, "... D"]:
    return x if scale is None else rms_norm(x, scale)


def _rope_tables(
    positions: Int[Array, "B L"], c: config.Decoder
) -> tuple[Float[Array, "B L H"], Float[Array, "B L H"]]:
    """RoPE tables of the global and of the local layers."""
    global_table = rope_table(positions / c.rope_scaling_factor, c.head_dim, c.rope_base)
    if c.window is None:
        return global_table, global_table
    return global_table, rope_table(positions, c.head_dim, c.local_rope_base or c.rope_base)


def _matmul(x: Float[Array, "... I"], w: Weight, dtype: str) -> Float[Array, "... O"]:
    return einsum("...i,io->...o", x, w, dtype)


def _projections(
    w: Layers, x: Float[Array, "B L D"], table: Float[Array, "B L H"], c: config.Decoder, dtype: str
) -> tuple[Float[Array, "B L N H"], Float[Array, "B L K H"], Float[Array, "B L K H"]]:
    """Queries, keys and values of one layer, with QK-norm and RoPE."""
    B, L, _ = x.shape
    weights, heads = (w.query, w.key, w.value), (c.heads, c.kv_heads, c.kv_heads)
    axes = tuple("heads" if n > 1 else None for n in heads)
    projected = sharding.column_parallel(partial(_matmul, dtype=dtype), x, weights, axes, dtype)
    q, k, v = (a.reshape(B, L, n, c.head_dim) for a, n in zip(projected, heads, strict=True))
    q, k = _norm(q, w.query_norm), _norm(k, w.key_norm)
    return rope(q, table), rope(k, table), v


def _mlp(w: Layers, x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B L D"]:
    """The MLP sub-layer with its residual connection."""
    matmul = partial(_matmul, dtype=dtype)
    gate, up = sharding.column_parallel(matmul, rms_norm(x, w.mlp_norm), (w.gate, w.up), ("hidden", "hidden"), dtype)
    return x + _norm(sharding.row_parallel(matmul, gated(gate, up), w.down, dtype), w.mlp_post_norm)


def _attention_out(
    w: Layers, x: Float[Array, "B L D"], heads: Float[Array, "B L N H"], dtype: str
) -> Float[Array, "B L D"]:
    """Output projection of the attention sub-layer with its residual connection."""
    B, L = x.shape[:2]
    out = sharding.row_parallel(partial(_matmul, dtype=dtype), heads.reshape(B, L, -1), w.output, dtype)
    return x + _norm(out, w.attention_post_norm)


@pytree
@dataclass(frozen=True)
class Packing:
    """The segment (document) of each token, 0 for padding, and its position in the segment."""

    segments: Int[Array, "B L"]
    positions: Int[Array, "B L"]


def run(
    layers: Layers,
    x: Float[Array, "B L D"],
    packing: Packing,
    c: config.Decoder,
    dtype: str,
    slots: int | None = None,
) -> tuple[Float[Array, "B L D"], kv_cache.Cache]:
    """All layers over complete sequences. With ``slots`` each sequence is one prompt, written to a new cache of that size."""
    segments = packing.segments
    global_table, local_table = _rope_tables(packing.positions, c)
    last = jnp.maximum((segments > 0).sum(1) - 1, 0)
    cache = () if slots is None else kv_cache.empty_cache(c, x.shape[0], slots, dtype)
    options = AttentionOptions(c.window, c.attention_scale, c.attention_softcap, packed=slots is None)
    # With rematerialization the inputs of the layers are the saved residuals: they take no more bytes than ``dtype``.
    carry_dtype = dtype if c.remat else x.dtype

    def layer(carry: tuple[Array, kv_cache.Cache], inputs: Any) -> tuple[tuple[Array, kv_cache.Cache], None]:
        (x, cache), (w, global_layer, index) = carry, inputs
        x = x.astype(jnp.float32)
        table = jnp.where(global_layer, global_table, local_table)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        cache = tuple(kv_cache.write_prompt(kind, index[i], k, v, last) for i, kind in enumerate(cache))
        q, k, v = (a.astype(dtype) for a in (q, k, v))
        heads = causal_attention(q, k, v, segments, options, global_layer)
        return (_mlp(w, _attention_out(w, x, heads, dtype), dtype).astype(carry_dtype), cache), None

    if c.remat:
        layer = jax.checkpoint(layer, prevent_cse=False)
    unroll = c.layers if c.layers <= MAX_UNROLLED else 1
    inputs = layers, is_global(c), kv_cache.cache_index(c)
    (x, cache), _ = jax.lax.scan(layer, (x.astype(carry_dtype), cache), inputs, unroll=unroll)
    return x.astype(jnp.float32), cache


def step(
    layers: Layers,
    x: Float[Array, "B D"],
    positions: Int[Array, " B"],
    cache: kv_cache.Cache,
    c: config.Decoder,
    dtype: str,
) -> tuple[Float[Array, "B D"], kv_cache.Cache]:
    """All layers over one token per sequence, which is written to the cache and attends to it."""
    global_table, local_table = _rope_tables(positions[:, None], c)

    def layer(carry: tuple[Array, kv_cache.Cache], inputs: Any) -> tuple[tuple[Array, kv_cache.Cache], None]:
        (x, cache), (w, global_layer, index) = carry, inputs
        table = jnp.where(global_layer, global_table, local_table)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        cache = tuple(kv_cache.write_token(kind, index[i], k[:, 0], v[:, 0], positions) for i, kind in enumerate(cache))
        attend = [partial(kv_cache.attend_cached, kind, index[i], q, positions, c) for i, kind in enumerate(cache)]
        heads = attend[0]() if len(attend) == 1 else jax.lax.cond(global_layer, *attend)
        return (_mlp(w, _attention_out(w, x, heads, dtype), dtype), cache), None

    (x, cache), _ = jax.lax.scan(layer, (x[:, None], cache), (layers, is_global(c), kv_cache.cache_index(c)))
    return x[:, 0], cache
