"""Attention whose memory grows with the length of a row, never with its square.

Rows hold several documents; a query sees keys of its own segment, at or before itself, within the window if there is one:

    segments  1 1 1 2 2 0        keys →  1 1 1 2 2 0
                                 query 1 ■ · · · · ·
                                       1 ■ ■ · · · ·
                                       1 ■ ■ ■ · · ·
                                       2 · · · ■ · ·
                                       2 · · · ■ ■ ·

Rows are cut into blocks. A block of queries visits the blocks of keys that it can see, one after the other, and carries for each
query the largest score so far, the sum of the exponentials and the weighted sum of the values (online softmax):

    keys →   0 1 2 3
    queries 0 ◣ · · ·      ■ ◣  visited
            1 ■ ◣ · ·       ·   never: later, beyond the window, or of other documents in every row
            2 · ■ ◣ ·
            3 · · ■ ◣

For the way back only the output and the logarithm of each query's sum are kept; weights are computed again, block by block
(Rabe & Staats 2021; FlashAttention-2, Dao 2023). With few key/value heads the query heads of a group are folded into the rows of
one matrix product (multi-query attention, Shazeer 2019).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import attention_kernels, sharding
from alhena.model.attention_kernels import AttentionOptions, Kernel
from alhena.model.layers import softcap
from alhena.shapes import Array, Bool, Float, Int

BLOCK = 128
MASKED = -1e30


def dense_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B L S"],
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "B L N H"]:
    """Softmax attention of each query over the keys its mask allows; a query that sees nothing gives the mean of the values.

    ``scale`` multiplies the scores (by default H^-½); with a ``cap`` they stay within ±cap (Gemma Team 2024b).
    """
    B, L, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, (N // K) * L, H)
    scores = jnp.einsum("bkrh,bskh->bkrs", q, k, preferred_element_type=jnp.float32)
    scores = softcap(scores * (H**-0.5 if scale is None else scale), cap)
    scores = jnp.where(mask[:, None, None], scores.reshape(B, K, N // K, L, -1), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).reshape(B, K, (N // K) * L, -1)
    out = jnp.einsum("bkrs,bskh->bkrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.reshape(B, K, N // K, L, H).transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def causal_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    options: AttentionOptions = AttentionOptions(),
    everywhere: Bool[Array, ""] | bool = False,
) -> Float[Array, "B L N H"]:
    """Causal attention inside segments: by the platform's own kernel where one fits, else in blocks.

    ``everywhere`` lifts the window (global layers between local ones share one program). On a mesh every chip attends for its own
    rows and heads.
    """
    K, cut = k.shape[2], sharding.shard_count("heads")
    if q.shape[2] % cut:
        raise ValueError(f"{q.shape[2]} query heads cannot be cut over {cut} chips: change the mesh")
    if K > 1 and K % cut:  # a chip needs a whole key head, be it one that others have too
        k, v = (jnp.repeat(a, math.lcm(K, cut) // K, 2) for a in (k, v))
    kernel = attention_kernels.choose_kernel(q, options)
    whole, shared = ("batch", None, "heads", None), ("batch", None, "heads" if K > 1 else None, None)
    local = partial(_in_blocks, options=options)
    if kernel is not None:
        local = partial(_by_kernel, run=tuple(partial(kernel, options=o) for o in _near_and_far(options)))
    inputs = (whole, shared, shared, ("batch", None), ())
    return sharding.on_shards(local, inputs, whole)(q, k, v, segments, jnp.asarray(everywhere))


def _in_blocks(q, k, v, segments, everywhere, options: AttentionOptions):
    """:func:`causal_attention` of one device without a kernel."""
    L, window = q.shape[1], options.window
    reach = L if window is None else jnp.where(everywhere, L, window)
    return blockwise_attention(q, k, v, segments, jnp.asarray(reach, jnp.int32), options)


def _near_and_far(options: AttentionOptions) -> tuple[AttentionOptions, ...]:
    """With the window and, if there is one, without."""
    return (options,) if options.window is None else (options, replace(options, window=None))


def _by_kernel(q, k, v, segments, everywhere, run: tuple[Kernel, ...]):
    """:func:`causal_attention` of one device by a kernel, with the window and without."""
    if len(run) == 1:
        return run[0](q, k, v, segments)
    near, far = run
    return jax.lax.cond(everywhere, far, near, q, k, v, segments)


def blockwise_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    reach: Int[Array, ""],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """Attention in blocks; a query sees ``reach`` positions, its own among them."""
    L = q.shape[1]
    room = (0, -L % min(BLOCK, L))  # behind all that real queries can see
    q, k, v = (jnp.pad(a, ((0, 0), room, (0, 0), (0, 0))) for a in (q, k, v))
    return _blockwise(q, k, v, jnp.pad(segments, ((0, 0), room), mode="edge"), reach, options)[:, :L]


def _fold(x: Float[Array, "B L N H"], kv_heads: int, size: int) -> Float[Array, "n B K R H"]:
    """In n = L / size blocks; the N / K heads that share a key head become rows, R = N / K · size."""
    B, L, N, H = x.shape
    x = x.reshape(B, L // size, size, kv_heads, N // kv_heads, H)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(L // size, B, kv_heads, -1, H)


def _unfold(x: Float[Array, "n B K R H"], size: int) -> Float[Array, "B L N H"]:
    n, B, K, R, H = x.shape
    return x.reshape(n, B, K, R // size, size, H).transpose(1, 0, 4, 2, 3, 5).reshape(B, n * size, -1, H)


def _first(segments: Int[Array, "n B size"], reach: Int[Array | np.ndarray, ""]) -> Int[Array, " n"]:
    """The first block of keys that each block of queries must visit: within reach, and of its segments in some row."""
    n, _, size = segments.shape
    low, high = segments.min(-1), segments.max(-1)
    meet = jnp.any((low[:, None] <= high[None]) & (low[None] <= high[:, None]), -1)
    return jnp.maximum(jnp.argmax(meet, 1), jnp.maximum(jnp.arange(n) * size - reach + 1, 0) // size)


def _product(a: Float[Array, "B K ..."], b: Float[Array, "B K ..."], over: int) -> Float[Array, "B K ..."]:
    """Sums over the last dimension of ``a`` and dimension ``over`` of ``b``; over the rows of both would be slow on a CPU."""
    return jax.lax.dot_general(a, b, (((3,), (over,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _seen(mine, theirs, ahead, reach):
    """Which keys, ``ahead`` positions before them, queries of a block see [B, size, size]."""
    positions = jnp.arange(mine.shape[1])
    distance = ahead + positions[:, None] - positions
    return (distance >= 0) & (distance < reach) & (mine[:, :, None] == theirs[:, None, :])


def _scores(q, k, seen, options: AttentionOptions):
    """Scores [B, K, R, size] of the queries of a block with the keys of one; FAR where a query does not see a key."""
    (B, K, R, H), size = q.shape, seen.shape[1]
    scores = softcap(_product(q, k, 3) * options.scale_for(H), options.cap)
    return jnp.where(seen[:, None, None], scores.reshape(B, K, R // size, size, size), MASKED).reshape(B, K, R, size)


def _forward(q, k, v, segments, reach, options: AttentionOptions):
    """The output, and the logarithm of each query's sum of exponentials [n, B, K, R, 1]."""
    size = min(BLOCK, q.shape[1])
    queries, keys, values = (_fold(a, k.shape[2], size) for a in (q, k, v))
    places = segments.reshape(len(segments), -1, size).swapaxes(0, 1)

    def block(_, inputs):
        i, q, first = inputs

        def visit(j, carried):
            out, total, largest = carried
            scores = _scores(q, keys[j], _seen(places[i], places[j], (i - j) * size, reach), options)
            now = jnp.maximum(largest, scores.max(-1, keepdims=True))
            weights, fade = jnp.exp(scores - now), jnp.exp(largest - now)
            out = out * fade + _product(weights.astype(v.dtype), values[j], 2)
            return out, total * fade + weights.sum(-1, keepdims=True), now

        none = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
        start = jnp.zeros(q.shape, jnp.float32), none, none + MASKED
        out, total, largest = jax.lax.fori_loop(first, i + 1, visit, start)
        return None, (out / total, largest + jnp.log(total))

    _, (out, log_sum) = jax.lax.scan(block, None, (jnp.arange(len(queries)), queries, _first(places, reach)))
    return _unfold(out, size), log_sum


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blockwise(q, k, v, segments, reach, options: AttentionOptions):
    return _forward(q, k, v, segments, reach, options)[0]


def _keep(q, k, v, segments, reach, options):
    out, log_sum = _forward(q, k, v, segments, reach, options)
    return out, (q, k, v, segments, reach, out, log_sum)


def _backward(options: AttentionOptions, kept, d_out):
    q, k, v, segments, reach, out, log_sum = kept
    size, cap, scale = min(BLOCK, q.shape[1]), options.cap, options.scale_for(q.shape[-1])
    keys, values = (_fold(a, k.shape[2], size) for a in (k, v))
    mean = jnp.sum(d_out * out, -1, keepdims=True)  # of the weights' slopes, by the weights
    rows = tuple(_fold(a, k.shape[2], size) for a in (q, d_out.astype(v.dtype), mean))
    columns = tuple(a.swapaxes(-1, -2) for a in rows[:2])
    places = segments.reshape(len(segments), -1, size).swapaxes(0, 1)

    def block(carried, inputs):
        i, (q, d_out, mean), (q_turned, d_out_turned), log_sum, first = inputs

        def visit(j, carried):
            d_q, d_k, d_v = carried
            scores = _scores(q, keys[j], _seen(places[i], places[j], (i - j) * size, reach), options)
            weights = jnp.exp(scores - log_sum)
            slope = weights * (_product(d_out, values[j], 3) - mean) * scale
            if cap is not None:
                slope = slope * (1 - (jnp.maximum(scores, -cap) / cap) ** 2)
            slope = slope.astype(q.dtype)
            d_v = d_v.at[j].add(_product(d_out_turned, weights.astype(v.dtype), 2))
            d_k = d_k.at[j].add(_product(q_turned, slope, 2))
            return d_q + _product(slope, keys[j], 2), d_k, d_v

        d_q, *carried = jax.lax.fori_loop(first, i + 1, visit, (jnp.zeros(q.shape, jnp.float32), *carried))
        return tuple(carried), d_q

    none = jnp.zeros(keys.swapaxes(-1, -2).shape, jnp.float32)  # turned: d_k = (qᵀ · slope)ᵀ
    inputs = jnp.arange(len(keys)), rows, columns, log_sum, _first(places, reach)
    (d_k, d_v), d_q = jax.lax.scan(block, (none, none), inputs)
    turned = (d_q, q), (d_k.swapaxes(-1, -2), k), (d_v.swapaxes(-1, -2), v)
    slopes = (_unfold(d, size).astype(x.dtype) for d, x in turned)
    return *slopes, None, None


_blockwise.defvjp(_keep, _backward)
