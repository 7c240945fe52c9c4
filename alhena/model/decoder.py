"""The decoder: pre- and post-norm Transformer layers with multi-query attention, rotary positions, QK-norm and GeGLU.

    x ─┬─ norm ─ q,k,v ─ attention ─ output ─ norm ─ + ─┬─ norm ─ gelu(gate)·up ─ down ─ norm ─ + ─►
       └────────────────────────────────────────────────┘└───────────────────────────────────────┘

Gemma-compatible on purpose (Gemma Team 2024, 2025); QK-norm and post-norm keep mixed-modal training stable (Chameleon 2024).
Layers are stacked along the first axis of every weight and run by ``lax.scan``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config
from alhena.model.attention import attend, causal_attention
from alhena.model.einsum import Weight, einsum
from alhena.model.layers import gated, matrix, rms_norm, rope, rope_table, zeros
from alhena.shapes import Array, Float, Int

UNROLL_UP_TO = 12  # few layers run faster unrolled on a CPU; many compile faster scanned


@jax.tree_util.register_dataclass
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
    attention_post_norm: Array | None  # None: no norm behind the sub-layer
    mlp_norm: Array
    gate: Weight  # [D, F]
    up: Weight  # [D, F]
    down: Weight  # [F, D]
    mlp_post_norm: Array | None


def init(key: Array, c: config.Decoder) -> Layers:
    keys = jax.random.split(key, 7)
    n, D, H = c.layers, c.width, c.head_dim
    post = jnp.full((n, D), -1 + 1 / np.sqrt(2 * n)) if c.post_norm else None
    return Layers(
        attention_norm=zeros(n, D),
        query=matrix(keys[0], n, D, c.heads * H),
        key=matrix(keys[1], n, D, c.kv_heads * H),
        value=matrix(keys[2], n, D, c.kv_heads * H),
        query_norm=zeros(n, H) if c.qk_norm else None,
        key_norm=zeros(n, H) if c.qk_norm else None,
        output=matrix(keys[3], n, c.heads * H, D),
        attention_post_norm=post,
        mlp_norm=zeros(n, D),
        gate=matrix(keys[4], n, D, c.hidden),
        up=matrix(keys[5], n, D, c.hidden),
        down=matrix(keys[6], n, c.hidden, D),
        mlp_post_norm=post,
    )


def is_global(c: config.Decoder) -> np.ndarray:
    """Bool [layers]: which layers see the whole context."""
    return np.array([c.window is None or (i + 1) % c.global_every == 0 for i in range(c.layers)])


def _norm(x: Float[Array, "... D"], scale: Float[Array, D] | None) -> Float[Array, "... D"]:
    return x if scale is None else rms_norm(x, scale)


def _tables(positions: Int[Array, "B L"], c: config.Decoder) -> tuple[Array, Array]:
    """Rotary tables of the global and of the local layers."""
    far = rope_table(positions / c.rope_stretch, c.head_dim, c.rope_base)
    return far, far if c.window is None else rope_table(positions, c.head_dim, c.local_rope_base or c.rope_base)


def _projections(w: Layers, x: Float[Array, "B L D"], table: Float[Array, "B L H"], c: config.Decoder, dtype: str):
    B, L, _ = x.shape
    q = einsum("...i,io->...o", x, w.query, dtype).reshape(B, L, c.heads, c.head_dim)
    k = einsum("...i,io->...o", x, w.key, dtype).reshape(B, L, c.kv_heads, c.head_dim)
    v = einsum("...i,io->...o", x, w.value, dtype).reshape(B, L, c.kv_heads, c.head_dim)
    q, k = _norm(q, w.query_norm), _norm(k, w.key_norm)
    return rope(q, table), rope(k, table), v


def _mlp(w: Layers, x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B L D"]:
    h = rms_norm(x, w.mlp_norm)
    h = gated(einsum("...i,io->...o", h, w.gate, dtype), einsum("...i,io->...o", h, w.up, dtype))
    return x + _norm(einsum("...i,io->...o", h, w.down, dtype), w.mlp_post_norm)


def _attention_out(
    w: Layers, x: Float[Array, "B L D"], heads: Float[Array, "B L N H"], dtype: str
) -> Float[Array, "B L D"]:
    B, L = x.shape[:2]
    return x + _norm(einsum("...i,io->...o", heads.reshape(B, L, -1), w.output, dtype), w.attention_post_norm)


def run(
    layers: Layers,
    x: Float[Array, "B L D"],
    segments: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    c: config.Decoder,
    dtype: str,
) -> tuple[Float[Array, "B L D"], tuple[Array, Array]]:
    """All layers over whole rows. Returns the hidden states and every layer's keys and values ``[layers, B, L, K, H]``."""
    far, near = _tables(positions, c)
    attention = partial(causal_attention, segments=segments, window=c.window, scale=c.score_scale, cap=c.attention_cap)

    def layer(x, inputs):
        w, see_all = inputs
        table = jnp.where(see_all, far, near)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        heads = attention(*(a.astype(dtype) for a in (q, k, v)), everywhere=see_all)
        return _mlp(w, _attention_out(w, x, heads, dtype), dtype), (k, v)

    unroll = c.layers if c.layers <= UNROLL_UP_TO else 1
    return jax.lax.scan(layer, x, (layers, jnp.asarray(is_global(c))), unroll=unroll)


def step(
    layers: Layers,
    x: Float[Array, "B D"],
    positions: Int[Array, B],
    cache: tuple[Array, Array],
    c: config.Decoder,
    dtype: str,
) -> tuple[Float[Array, "B D"], tuple[Array, Array]]:
    """One token a row through all layers, against (and into) the cache ``[layers, B, S, K, H]``; slot = position."""
    far_table, near_table = _tables(positions[:, None], c)
    slots = jnp.arange(cache[0].shape[2])[None]
    seen = slots <= positions[:, None]
    near = seen if c.window is None else seen & (slots > positions[:, None] - c.window)
    rows = jnp.arange(x.shape[0])

    def layer(x, inputs):
        w, k_cache, v_cache, see_all = inputs
        table = jnp.where(see_all, far_table, near_table)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        k_cache = k_cache.at[rows, positions].set(k[:, 0])
        v_cache = v_cache.at[rows, positions].set(v[:, 0])
        mask = jnp.where(see_all, seen, near)[:, None]
        heads = attend(q, k_cache, v_cache, mask, c.score_scale, c.attention_cap)
        return _mlp(w, _attention_out(w, x, heads, dtype), dtype), (k_cache, v_cache)

    x, cache = jax.lax.scan(layer, x[:, None], (layers, *cache, jnp.asarray(is_global(c))))
    return x[:, 0], cache
