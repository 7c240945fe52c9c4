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

from alhena.model import config, ring, sharding
from alhena.model.attention import causal_attention
from alhena.model.einsum import Weight, einsum
from alhena.model.layers import gated, matrix, rms_norm, rope, rope_table, zeros
from alhena.model.ring import is_global
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


def _norm(x: Float[Array, "... D"], scale: Float[Array, D] | None) -> Float[Array, "... D"]:
    return x if scale is None else rms_norm(x, scale)


def _tables(positions: Int[Array, "B L"], c: config.Decoder) -> tuple[Array, Array]:
    """Rotary tables of the global and of the local layers."""
    far = rope_table(positions / c.rope_stretch, c.head_dim, c.rope_base)
    return far, far if c.window is None else rope_table(positions, c.head_dim, c.local_rope_base or c.rope_base)


def _product(x: Float[Array, "... I"], w: Weight, dtype: str) -> Float[Array, "... O"]:
    return einsum("...i,io->...o", x, w, dtype)


def _projections(w: Layers, x: Float[Array, "B L D"], table: Float[Array, "B L H"], c: config.Decoder, dtype: str):
    B, L, _ = x.shape
    weights, heads = (w.query, w.key, w.value), (c.heads, c.kv_heads, c.kv_heads)
    sides = tuple("heads" if n > 1 else None for n in heads)
    some = sharding.spread(partial(_product, dtype=dtype), x, weights, sides, dtype)
    q, k, v = (a.reshape(B, L, n, c.head_dim) for a, n in zip(some, heads, strict=True))
    q, k = _norm(q, w.query_norm), _norm(k, w.key_norm)
    return rope(q, table), rope(k, table), v


def _mlp(w: Layers, x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B L D"]:
    product = partial(_product, dtype=dtype)
    gate, up = sharding.spread(product, rms_norm(x, w.mlp_norm), (w.gate, w.up), ("hidden", "hidden"), dtype)
    return x + _norm(sharding.gather_sum(product, gated(gate, up), w.down, dtype), w.mlp_post_norm)


def _attention_out(
    w: Layers, x: Float[Array, "B L D"], heads: Float[Array, "B L N H"], dtype: str
) -> Float[Array, "B L D"]:
    B, L = x.shape[:2]
    out = sharding.gather_sum(partial(_product, dtype=dtype), heads.reshape(B, L, -1), w.output, dtype)
    return x + _norm(out, w.attention_post_norm)


def run(
    layers: Layers,
    x: Float[Array, "B L D"],
    segments: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    c: config.Decoder,
    dtype: str,
    slots: int | None = None,
) -> tuple[Float[Array, "B L D"], ring.Cache]:
    """All layers over whole rows. With ``slots``, rows hold one prompt each, whose keys and values are kept in a cache of that size."""
    far, near = _tables(positions, c)
    last = jnp.maximum((segments > 0).sum(1) - 1, 0)
    cache = () if slots is None else ring.empty(c, x.shape[0], slots, dtype)
    attention = partial(causal_attention, segments=segments, window=c.window, scale=c.score_scale, cap=c.attention_cap)

    kept = (
        dtype if c.remat else x.dtype
    )  # going back, what enters the layers is all there is of them: at most numbers of ``dtype``

    def layer(carried, inputs):
        (x, cache), (w, see_all, places) = carried, inputs
        x = x.astype(jnp.float32)
        table = jnp.where(see_all, far, near)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        cache = tuple(ring.fill(kept, places[i], k, v, last) for i, kept in enumerate(cache))
        heads = attention(*(a.astype(dtype) for a in (q, k, v)), everywhere=see_all, packed=slots is None)
        return (_mlp(w, _attention_out(w, x, heads, dtype), dtype).astype(kept), cache), None

    if c.remat:
        layer = jax.checkpoint(layer, prevent_cse=False)
    unroll = c.layers if c.layers <= UNROLL_UP_TO else 1
    x, cache = jax.lax.scan(layer, (x.astype(kept), cache), (layers, is_global(c), ring.places(c)), unroll=unroll)[0]
    return x.astype(jnp.float32), cache


def step(
    layers: Layers,
    x: Float[Array, "B D"],
    positions: Int[Array, B],
    cache: ring.Cache,
    c: config.Decoder,
    dtype: str,
) -> tuple[Float[Array, "B D"], ring.Cache]:
    """One token a row through all layers, against (and into) the cache."""
    far, near = _tables(positions[:, None], c)

    def layer(carried, inputs):
        (x, cache), (w, see_all, places) = carried, inputs
        table = jnp.where(see_all, far, near)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        cache = tuple(ring.add(kept, places[i], k[:, 0], v[:, 0], positions) for i, kept in enumerate(cache))
        looks = [partial(ring.look, kept, places[i], q, positions, c) for i, kept in enumerate(cache)]
        heads = looks[0]() if len(looks) == 1 else jax.lax.cond(see_all, *looks)
        return (_mlp(w, _attention_out(w, x, heads, dtype), dtype), cache), None

    (x, cache), _ = jax.lax.scan(layer, (x[:, None], cache), (layers, is_global(c), ring.places(c)))
    return x[:, 0], cache
