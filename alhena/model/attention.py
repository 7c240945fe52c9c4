"""Attention whose memory is linear in the sequence length, not quadratic.

Sequences hold several documents. A query attends to keys of its own segment, at or before its position, inside the window if there
is one:

    segments  1 1 1 2 2 0        keys →  1 1 1 2 2 0
                                 query 1 ■ · · · · ·
                                       1 ■ ■ · · · ·
                                       1 ■ ■ ■ · · ·
                                       2 · · · ■ · ·
                                       2 · · · ■ ■ ·

Sequences are split into blocks. A query block iterates over the key blocks that it attends to. For each query it carries the maximum
score so far, the sum of the exponentials and the weighted sum of the values (online softmax):

    keys →   0 1 2 3
    queries 0 ◣ · · ·      ■ ◣  computed
            1 ■ ◣ · ·       ·   skipped: later, outside the window, or of other documents in every sequence
            2 · ■ ◣ ·
            3 · · ■ ◣

Only the output and the log-sum-exp of each query are saved for the backward pass, which computes the attention weights again, block
by block (Rabe & Staats 2021; FlashAttention-2, Dao 2023). With few key/value heads the query heads of a group are folded into the
rows of one matmul (multi-query attention, Shazeer 2019).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

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
    """Softmax attention with a mask; a query whose keys are all masked returns the mean of the values.

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
    is_global: Bool[Array, ""] | bool = False,
) -> Float[Array, "B L N H"]:
    """Causal attention inside segments: by the platform's own kernel where one fits, else blockwise.

    ``is_global`` disables the window (global layers and local ones share one program). On a mesh every chip computes its own
    sequences and heads. Raises ValueError when the query heads do not divide over the mesh.
    """
    K, shards = k.shape[2], sharding.shard_count("heads")
    if q.shape[2] % shards:
        raise ValueError(f"{q.shape[2]} query heads cannot be sharded over {shards} chips: change the mesh")
    # Every chip needs complete key heads: they are repeated until their number divides.
    if K > 1 and K % shards:
        k, v = (jnp.repeat(a, math.lcm(K, shards) // K, 2) for a in (k, v))
    kernel = attention_kernels.choose_kernel(q, options)
    q_axes, kv_axes = ("batch", None, "heads", None), ("batch", None, "heads" if K > 1 else None, None)
    local = partial(_local_blockwise, options=options)
    if kernel is not None:
        local = partial(_local_kernel, kernels=tuple(partial(kernel, options=o) for o in _window_variants(options)))
    inputs = (q_axes, kv_axes, kv_axes, ("batch", None), ())
    return sharding.on_shards(local, inputs, q_axes)(q, k, v, segments, jnp.asarray(is_global))


def _local_blockwise(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    is_global: Bool[Array, ""],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """:func:`causal_attention` on one device without a kernel."""
    L, window = q.shape[1], options.window
    size = L if window is None else jnp.where(is_global, L, window)
    return blockwise_attention(q, k, v, segments, jnp.asarray(size, jnp.int32), options)


def _window_variants(options: AttentionOptions) -> tuple[AttentionOptions, ...]:
    """The options and, if they have a window, the same without it."""
    return (options,) if options.window is None else (options, replace(options, window=None))


def _local_kernel(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    is_global: Bool[Array, ""],
    kernels: tuple[Kernel, ...],
) -> Float[Array, "B L N H"]:
    """:func:`causal_attention` on one device by a kernel: one for each of :func:`_window_variants`."""
    if len(kernels) == 1:
        return kernels[0](q, k, v, segments)
    local_kernel, global_kernel = kernels
    return jax.lax.cond(is_global, global_kernel, local_kernel, q, k, v, segments)


def blockwise_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    window: Int[Array, ""],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """Causal attention in blocks; a query attends to the last ``window`` positions, its own included."""
    L = q.shape[1]
    # Padding comes after every real query, so causality masks it.
    padding = (0, -L % min(BLOCK, L))
    q, k, v = (jnp.pad(a, ((0, 0), padding, (0, 0), (0, 0))) for a in (q, k, v))
    return _blockwise(q, k, v, jnp.pad(segments, ((0, 0), padding), mode="edge"), window, options)[:, :L]


def _fold(x: Float[Array, "B L N H"], kv_heads: int, size: int) -> Float[Array, "blocks B K rows H"]:
    """L / size blocks; the N / K query heads that share a key head become rows = N / K · size."""
    B, L, N, H = x.shape
    x = x.reshape(B, L // size, size, kv_heads, N // kv_heads, H)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(L // size, B, kv_heads, -1, H)


def _unfold(x: Float[Array, "blocks B K rows H"], size: int) -> Float[Array, "B L N H"]:
    """Inverse of :func:`_fold`."""
    blocks, B, K, rows, H = x.shape
    return x.reshape(blocks, B, K, rows // size, size, H).transpose(1, 0, 4, 2, 3, 5).reshape(B, blocks * size, -1, H)


def _segment_blocks(segments: Int[Array, "B L"], size: int) -> Int[Array, "blocks B size"]:
    return segments.reshape(len(segments), -1, size).swapaxes(0, 1)


def _first_key_block(segments: Int[Array, "blocks B size"], window: Int[Array, ""]) -> Int[Array, " blocks"]:
    """First key block for each query block: inside the window, and with a common segment in some sequence."""
    blocks, _, size = segments.shape
    low, high = segments.min(-1), segments.max(-1)
    overlap = jnp.any((low[:, None] <= high[None]) & (low[None] <= high[:, None]), -1)
    return jnp.maximum(jnp.argmax(overlap, 1), jnp.maximum(jnp.arange(blocks) * size - window + 1, 0) // size)


def _matmul(a: Float[Array, "B K ..."], b: Float[Array, "B K ..."], axis: int) -> Float[Array, "B K ..."]:
    """Batched matmul that contracts the last dimension of ``a`` with dimension ``axis`` of ``b``.

    A contraction over the rows of both would be slow on a CPU.
    """
    return jax.lax.dot_general(a, b, (((3,), (axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _block_mask(
    query_segments: Int[Array, "B size"],
    key_segments: Int[Array, "B size"],
    offset: Int[Array, ""],
    window: Int[Array, ""],
) -> Bool[Array, "B size size"]:
    """Mask of a query block over a key block that starts ``offset`` positions before it."""
    positions = jnp.arange(query_segments.shape[1])
    distance = offset + positions[:, None] - positions
    return (distance >= 0) & (distance < window) & (query_segments[:, :, None] == key_segments[:, None, :])


def _scores(
    q: Float[Array, "B K rows H"],
    k: Float[Array, "B K size H"],
    mask: Bool[Array, "B size size"],
    options: AttentionOptions,
) -> Float[Array, "B K rows size"]:
    """Scores of a query block with a key block; ``MASKED`` where the mask is False."""
    (B, K, rows, H), size = q.shape, mask.shape[1]
    scores = softcap(_matmul(q, k, 3) * options.scale_for(H), options.cap)
    scores = jnp.where(mask[:, None, None], scores.reshape(B, K, rows // size, size, size), MASKED)
    return scores.reshape(B, K, rows, size)


def _forward(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    window: Int[Array, ""],
    options: AttentionOptions,
) -> tuple[Float[Array, "B L N H"], Float[Array, "blocks B K rows 1"]]:
    """The output, and the log-sum-exp of each query's scores."""
    size = min(BLOCK, q.shape[1])
    queries, keys, values = (_fold(a, k.shape[2], size) for a in (q, k, v))
    ids = _segment_blocks(segments, size)

    def query_block(_: None, inputs: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
        i, q, first = inputs

        def key_block(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            out, total, maximum = carry
            scores = _scores(q, keys[j], _block_mask(ids[i], ids[j], (i - j) * size, window), options)
            new_maximum = jnp.maximum(maximum, scores.max(-1, keepdims=True))
            weights, correction = jnp.exp(scores - new_maximum), jnp.exp(maximum - new_maximum)
            out = out * correction + _matmul(weights.astype(v.dtype), values[j], 2)
            return out, total * correction + weights.sum(-1, keepdims=True), new_maximum

        zero = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
        start = jnp.zeros(q.shape, jnp.float32), zero, zero + MASKED
        out, total, maximum = jax.lax.fori_loop(first, i + 1, key_block, start)
        return None, (out / total, maximum + jnp.log(total))

    inputs = jnp.arange(len(queries)), queries, _first_key_block(ids, window)
    _, (out, log_sum_exp) = jax.lax.scan(query_block, None, inputs)
    return _unfold(out, size), log_sum_exp


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blockwise(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    window: Int[Array, ""],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """:func:`blockwise_attention` of sequences whose length is a multiple of the block."""
    return _forward(q, k, v, segments, window, options)[0]


def _forward_rule(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    window: Int[Array, ""],
    options: AttentionOptions,
) -> tuple[Float[Array, "B L N H"], tuple[Array, ...]]:
    out, log_sum_exp = _forward(q, k, v, segments, window, options)
    return out, (q, k, v, segments, window, out, log_sum_exp)


def _backward_rule(
    options: AttentionOptions, residuals: tuple[Array, ...], cotangent: Float[Array, "B L N H"]
) -> tuple[Any, ...]:
    """Cotangents of q, k and v; None for segments and window."""
    q, k, v, segments, window, out, log_sum_exp = residuals
    size, cap, scale = min(BLOCK, q.shape[1]), options.cap, options.scale_for(q.shape[-1])
    keys, values = (_fold(a, k.shape[2], size) for a in (k, v))
    # Mean of the cotangents of the attention weights, weighted by them.
    mean = jnp.sum(cotangent * out, -1, keepdims=True)
    queries = tuple(_fold(a, k.shape[2], size) for a in (q, cotangent.astype(v.dtype), mean))
    transposed = tuple(a.swapaxes(-1, -2) for a in queries[:2])
    ids = _segment_blocks(segments, size)

    def query_block(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], Array]:
        i, (q, d_out, mean), (q_T, d_out_T), log_sum_exp, first = inputs

        def key_block(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            d_q, d_k, d_v = carry
            scores = _scores(q, keys[j], _block_mask(ids[i], ids[j], (i - j) * size, window), options)
            weights = jnp.exp(scores - log_sum_exp)
            d_scores = weights * (_matmul(d_out, values[j], 3) - mean) * scale
            if cap is not None:
                d_scores = d_scores * (1 - (jnp.maximum(scores, -cap) / cap) ** 2)
            d_scores = d_scores.astype(q.dtype)
            d_v = d_v.at[j].add(_matmul(d_out_T, weights.astype(v.dtype), 2))
            d_k = d_k.at[j].add(_matmul(q_T, d_scores, 2))
            return d_q + _matmul(d_scores, keys[j], 2), d_k, d_v

        start = jnp.zeros(q.shape, jnp.float32), *carry
        d_q, d_k, d_v = jax.lax.fori_loop(first, i + 1, key_block, start)
        return (d_k, d_v), d_q

    # Accumulated transposed: d_k = (qᵀ · d_scores)ᵀ.
    zero = jnp.zeros(keys.swapaxes(-1, -2).shape, jnp.float32)
    inputs = jnp.arange(len(keys)), queries, transposed, log_sum_exp, _first_key_block(ids, window)
    (d_k, d_v), d_q = jax.lax.scan(query_block, (zero, zero), inputs)
    pairs = (d_q, q), (d_k.swapaxes(-1, -2), k), (d_v.swapaxes(-1, -2), v)
    return *(_unfold(d, size).astype(x.dtype) for d, x in pairs), None, None


_blockwise.defvjp(_forward_rule, _backward_rule)
