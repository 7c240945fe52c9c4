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

from alhena.model import config, kv_cache, sharding, spec
from alhena.model.attention import causal_attention
from alhena.model.attention_kernels import AttentionOptions
from alhena.model.kv_cache import is_global
from alhena.model.layers import gated, rms_norm, rope, rope_table
from alhena.model.linear import Weight, einsum
from alhena.model.spec import matrix, stacked, vector
from alhena.shapes import Array, Float, Int, pytree

UNROLL_UP_TO = 12  # few layers run faster unrolled on a CPU; many compile faster scanned


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
    attention_post_norm: Array | None  # None: no norm behind the sub-layer
    mlp_norm: Array
    gate: Weight  # [D, F]
    up: Weight  # [D, F]
    down: Weight  # [F, D]
    mlp_post_norm: Array | None


def weights(c: config.Decoder) -> Layers:
    """The specification of every weight."""
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


def _tables(positions: Int[Array, "B L"], c: config.Decoder) -> tuple[Array, Array]:
    """Rotary tables of the global and of the local layers."""
    far = rope_table(positions / c.rope_scaling_factor, c.head_dim, c.rope_base)
    return far, far if c.window is None else rope_table(positions, c.head_dim, c.local_rope_base or c.rope_base)


def _product(x: Float[Array, "... I"], w: Weight, dtype: str) -> Float[Array, "... O"]:
    return einsum("...i,io->...o", x, w, dtype)


def _projections(w: Layers, x: Float[Array, "B L D"], table: Float[Array, "B L H"], c: config.Decoder, dtype: str):
    B, L, _ = x.shape
    weights, heads = (w.query, w.key, w.value), (c.heads, c.kv_heads, c.kv_heads)
    sides = tuple("heads" if n > 1 else None for n in heads)
    some = sharding.column_parallel(partial(_product, dtype=dtype), x, weights, sides, dtype)
    q, k, v = (a.reshape(B, L, n, c.head_dim) for a, n in zip(some, heads, strict=True))
    q, k = _norm(q, w.query_norm), _norm(k, w.key_norm)
    return rope(q, table), rope(k, table), v


def _mlp(w: Layers, x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B L D"]:
    product = partial(_product, dtype=dtype)
    gate, up = sharding.column_parallel(product, rms_norm(x, w.mlp_norm), (w.gate, w.up), ("hidden", "hidden"), dtype)
    return x + _norm(sharding.row_parallel(product, gated(gate, up), w.down, dtype), w.mlp_post_norm)


def _attention_out(
    w: Layers, x: Float[Array, "B L D"], heads: Float[Array, "B L N H"], dtype: str
) -> Float[Array, "B L D"]:
    B, L = x.shape[:2]
    out = sharding.row_parallel(partial(_product, dtype=dtype), heads.reshape(B, L, -1), w.output, dtype)
    return x + _norm(out, w.attention_post_norm)


@pytree
@dataclass(frozen=True)
class Packing:
    """Which document each token of a row belongs to (0: padding), and its position in it."""

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
    """All layers over whole rows. With ``slots``, rows hold one prompt each, whose keys and values are kept in a cache of that size."""
    segments = packing.segments
    far, near = _tables(packing.positions, c)
    last = jnp.maximum((segments > 0).sum(1) - 1, 0)
    cache = () if slots is None else kv_cache.empty_cache(c, x.shape[0], slots, dtype)
    options = AttentionOptions(c.window, c.attention_scale, c.attention_softcap, packed=slots is None)

    kept = (
        dtype if c.remat else x.dtype
    )  # going back, what enters the layers is all there is of them: at most numbers of ``dtype``

    def layer(carried, inputs):
        (x, cache), (w, see_all, places) = carried, inputs
        x = x.astype(jnp.float32)
        table = jnp.where(see_all, far, near)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        cache = tuple(kv_cache.write_prompt(kept, places[i], k, v, last) for i, kept in enumerate(cache))
        q, k, v = (a.astype(dtype) for a in (q, k, v))
        heads = causal_attention(q, k, v, segments, options, see_all)
        return (_mlp(w, _attention_out(w, x, heads, dtype), dtype).astype(kept), cache), None

    if c.remat:
        layer = jax.checkpoint(layer, prevent_cse=False)
    unroll = c.layers if c.layers <= UNROLL_UP_TO else 1
    x, cache = jax.lax.scan(
        layer, (x.astype(kept), cache), (layers, is_global(c), kv_cache.layer_slots(c)), unroll=unroll
    )[0]
    return x.astype(jnp.float32), cache


def step(
    layers: Layers,
    x: Float[Array, "B D"],
    positions: Int[Array, " B"],
    cache: kv_cache.Cache,
    c: config.Decoder,
    dtype: str,
) -> tuple[Float[Array, "B D"], kv_cache.Cache]:
    """One token a row through all layers, against (and into) the cache."""
    far, near = _tables(positions[:, None], c)

    def layer(carried, inputs):
        (x, cache), (w, see_all, places) = carried, inputs
        table = jnp.where(see_all, far, near)
        q, k, v = _projections(w, rms_norm(x, w.attention_norm), table, c, dtype)
        cache = tuple(
            kv_cache.write_token(kept, places[i], k[:, 0], v[:, 0], positions) for i, kept in enumerate(cache)
        )
        looks = [partial(kv_cache.attend_cached, kept, places[i], q, positions, c) for i, kept in enumerate(cache)]
        heads = looks[0]() if len(looks) == 1 else jax.lax.cond(see_all, *looks)
        return (_mlp(w, _attention_out(w, x, heads, dtype), dtype), cache), None

    (x, cache), _ = jax.lax.scan(layer, (x[:, None], cache), (layers, is_global(c), kv_cache.layer_slots(c)))
    return x[:, 0], cache
