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

Two other masks are options of the same loops (:class:`Visibility`): the tokens of one image attend to each other in both directions,
so that a query block iterates up to the end of its last image; an encoder's queries attend to their whole segment.

Only the output and the log-sum-exp of each query are saved for the backward pass, which computes the attention weights again, block
by block (Rabe & Staats 2021; FlashAttention-2, Dao 2023). With few key/value heads the query heads of a group are folded into the
rows of one matmul (multi-query attention, Shazeer 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.model.attention import kernels as attention_kernels
from alhena.model.attention.kernels import AttentionOptions, Kernel
from alhena.model.layers import softcap
from alhena.shapes import Array, Bool, Float, Int, pytree

BLOCK = 128
MASKED = -1e30


@pytree
@dataclass(frozen=True)
class Visibility:
    """Which keys a query may attend to, beside the window."""

    # [B, L]: the segment of each token; 0: padding.
    segments: Int[Array, "B L"]
    # [B, L]: the image of each token, whose tokens also see those after them; 0: none. None: no sequence has any.
    blocks: Int[Array, "B L"] | None = None
    # False: a query attends to its whole segment.
    causal: bool = field(default=True, metadata={"static": True})


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
    visible: Visibility,
    options: AttentionOptions = AttentionOptions(),
    is_global: Bool[Array, ""] | bool = False,
) -> Float[Array, "B L N H"]:
    """Causal attention inside segments: by the platform's own kernel where one fits, else blockwise.

    A query attends to the keys before it that the window reaches, and to later ones of its own image. ``is_global`` disables the
    window (global layers and local ones share one program). On a mesh every chip computes its own sequences and heads. Raises
    ValueError when the query heads do not divide over the mesh.
    """
    K, shards = k.shape[2], sharding.shard_count("heads")
    if q.shape[2] % shards:
        raise ValueError(f"{q.shape[2]} query heads cannot be sharded over {shards} chips: change the mesh")
    # Every chip needs complete key heads: they are repeated until their number divides.
    if K > 1 and K % shards:
        k, v = (jnp.repeat(a, math.lcm(K, shards) // K, 2) for a in (k, v))
    # Kernels have no image blocks.
    kernel = attention_kernels.choose_kernel(q) if visible.blocks is None else None
    q_axes, kv_axes = ("batch", None, "heads", None), ("batch", None, "heads" if K > 1 else None, None)
    local = partial(_local_blockwise, options=options)
    if kernel is not None:
        local = partial(_local_kernel, kernels=tuple(partial(kernel, options=o) for o in _window_variants(options)))
    inputs = (q_axes, kv_axes, kv_axes, ("batch", None), ())
    return sharding.on_shards(local, inputs, q_axes)(q, k, v, visible, jnp.asarray(is_global))


def segment_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    scale: float | None = None,
) -> Float[Array, "B L N H"]:
    """Attention to all keys of the query's segment, for encoders on one device; the outputs of padding are not used.

    Blockwise: several images of thousands of patches may share a sequence. ``scale`` multiplies the scores (by default H^-½).
    """
    window = jnp.asarray(q.shape[1], jnp.int32)
    return blockwise_attention(q, k, v, Visibility(segments, causal=False), window, AttentionOptions(scale=scale))


def _local_blockwise(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    visible: Visibility,
    is_global: Bool[Array, ""],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """:func:`causal_attention` on one device without a kernel."""
    L, window = q.shape[1], options.window
    size = L if window is None else jnp.where(is_global, L, window)
    return blockwise_attention(q, k, v, visible, jnp.asarray(size, jnp.int32), options)


def _window_variants(options: AttentionOptions) -> tuple[AttentionOptions, ...]:
    """The options and, if they have a window, the same without it."""
    return (options,) if options.window is None else (options, replace(options, window=None))


def _local_kernel(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    visible: Visibility,
    is_global: Bool[Array, ""],
    kernels: tuple[Kernel, ...],
) -> Float[Array, "B L N H"]:
    """:func:`causal_attention` on one device by a kernel: one for each of :func:`_window_variants`."""
    if len(kernels) == 1:
        return kernels[0](q, k, v, visible.segments)
    local_kernel, global_kernel = kernels
    return jax.lax.cond(is_global, global_kernel, local_kernel, q, k, v, visible.segments)


def blockwise_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    visible: Visibility,
    window: Int[Array, ""],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """Attention in blocks; a query attends to the last ``window`` positions, its own included, and to later ones if visible."""
    L = q.shape[1]
    padding = (0, -L % min(BLOCK, L))
    q, k, v = (jnp.pad(a, ((0, 0), padding, (0, 0), (0, 0))) for a in (q, k, v))
    # Padding comes after every real query: causality masks it, or else its segment.
    segments = jnp.pad(visible.segments, ((0, 0), padding), mode="edge" if visible.causal else "constant")
    blocks = None if visible.blocks is None else jnp.pad(visible.blocks, ((0, 0), padding))
    return _blockwise(q, k, v, replace(visible, segments=segments, blocks=blocks), window, options)[:, :L]


def _fold(x: Float[Array, "B L N H"], kv_heads: int, size: int) -> Float[Array, "blocks B K rows H"]:
    """L / size blocks; the N / K query heads that share a key head become rows = N / K · size."""
    B, L, N, H = x.shape
    x = x.reshape(B, L // size, size, kv_heads, N // kv_heads, H)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(L // size, B, kv_heads, -1, H)


def _unfold(x: Float[Array, "blocks B K rows H"], size: int) -> Float[Array, "B L N H"]:
    """Inverse of :func:`_fold`."""
    blocks, B, K, rows, H = x.shape
    return x.reshape(blocks, B, K, rows // size, size, H).transpose(1, 0, 4, 2, 3, 5).reshape(B, blocks * size, -1, H)


def _fold_ids(visible: Visibility, size: int) -> Visibility:
    """The ids of each block: ``[blocks, B, size]``."""
    return jax.tree.map(lambda ids: ids.reshape(len(ids), -1, size).swapaxes(0, 1), visible)


def _overlap(ids: Int[Array, "blocks B size"], with_zero: bool) -> Bool[Array, "blocks blocks"]:
    """Which blocks may have a common id in some sequence: their ranges of ids overlap. Zeros count where ``with_zero``."""
    low = (ids if with_zero else jnp.where(ids == 0, jnp.iinfo(ids.dtype).max, ids)).min(-1)
    high = ids.max(-1)
    return jnp.any((low[:, None] <= high[None]) & (low[None] <= high[:, None]), -1)


def _first_key_block(visible: Visibility, window: Int[Array, ""]) -> Int[Array, " blocks"]:
    """First key block for each query block: inside the window, and with a common segment in some sequence."""
    blocks, _, size = visible.segments.shape
    overlap, index = _overlap(visible.segments, with_zero=visible.causal), jnp.arange(blocks)
    if not visible.causal:
        return jnp.min(jnp.where(overlap, index, index[:, None]), 1)
    return jnp.maximum(jnp.argmax(overlap, 1), jnp.maximum(index * size - window + 1, 0) // size)


def _last_key_block(visible: Visibility) -> Int[Array, " blocks"] | None:
    """Last key block for each query block: with a common image, or segment, in some sequence. None: the query block's own."""
    if visible.causal and visible.blocks is None:
        return None
    overlap = _overlap(visible.segments if visible.blocks is None else visible.blocks, with_zero=False)
    index = jnp.arange(len(overlap))
    return jnp.max(jnp.where(overlap, index, index[:, None]), 1)


def _matmul(a: Float[Array, "B K ..."], b: Float[Array, "B K ..."], axis: int) -> Float[Array, "B K ..."]:
    """Batched matmul that contracts the last dimension of ``a`` with dimension ``axis`` of ``b``.

    A contraction over the rows of both would be slow on a CPU.
    """
    return jax.lax.dot_general(a, b, (((3,), (axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _block_mask(
    visible: Visibility, i: Int[Array, ""], j: Int[Array, ""], window: Int[Array, ""]
) -> Bool[Array, "B size size"]:
    """Mask of query block ``i`` over key block ``j``, from the ids of each block."""
    query, key = (jax.tree.map(itemgetter(block), visible) for block in (i, j))
    size = query.segments.shape[1]
    distance, positions = (i - j) * size, jnp.arange(size)
    distance = distance + positions[:, None] - positions
    order = distance >= 0 if visible.causal else True
    if query.blocks is not None:
        order |= (query.blocks[:, :, None] == key.blocks[:, None, :]) & (query.blocks[:, :, None] > 0)
    return order & (distance < window) & (query.segments[:, :, None] == key.segments[:, None, :])


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
    visible: Visibility,
    window: Int[Array, ""],
    options: AttentionOptions,
) -> tuple[Float[Array, "B L N H"], Float[Array, "blocks B K rows 1"]]:
    """The output, and the log-sum-exp of each query's scores."""
    size = min(BLOCK, q.shape[1])
    queries, keys, values = (_fold(a, k.shape[2], size) for a in (q, k, v))
    ids = _fold_ids(visible, size)

    def query_block(_: None, inputs: tuple[Any, ...]) -> tuple[None, tuple[Array, Array]]:
        i, q, first, last = inputs

        def key_block(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            out, total, maximum = carry
            scores = _scores(q, keys[j], _block_mask(ids, i, j, window), options)
            new_maximum = jnp.maximum(maximum, scores.max(-1, keepdims=True))
            weights, correction = jnp.exp(scores - new_maximum), jnp.exp(maximum - new_maximum)
            out = out * correction + _matmul(weights.astype(v.dtype), values[j], 2)
            return out, total * correction + weights.sum(-1, keepdims=True), new_maximum

        zero = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
        start = jnp.zeros(q.shape, jnp.float32), zero, zero + MASKED
        out, total, maximum = jax.lax.fori_loop(first, (i if last is None else last) + 1, key_block, start)
        return None, (out / total, maximum + jnp.log(total))

    inputs = jnp.arange(len(queries)), queries, _first_key_block(ids, window), _last_key_block(ids)
    _, (out, log_sum_exp) = jax.lax.scan(query_block, None, inputs)
    return _unfold(out, size), log_sum_exp


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blockwise(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    visible: Visibility,
    window: Int[Array, ""],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """:func:`blockwise_attention` of sequences whose length is a multiple of the block."""
    return _forward(q, k, v, visible, window, options)[0]


def _forward_rule(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    visible: Visibility,
    window: Int[Array, ""],
    options: AttentionOptions,
) -> tuple[Float[Array, "B L N H"], tuple[Any, ...]]:
    out, log_sum_exp = _forward(q, k, v, visible, window, options)
    return out, (q, k, v, visible, window, out, log_sum_exp)


def _backward_rule(
    options: AttentionOptions, residuals: tuple[Any, ...], cotangent: Float[Array, "B L N H"]
) -> tuple[Any, ...]:
    """Cotangents of q, k and v; None for the ids and the window."""
    q, k, v, visible, window, out, log_sum_exp = residuals
    size, cap, scale = min(BLOCK, q.shape[1]), options.cap, options.scale_for(q.shape[-1])
    keys, values = (_fold(a, k.shape[2], size) for a in (k, v))
    # Mean of the cotangents of the attention weights, weighted by them.
    mean = jnp.sum(cotangent * out, -1, keepdims=True)
    queries = tuple(_fold(a, k.shape[2], size) for a in (q, cotangent.astype(v.dtype), mean))
    transposed = tuple(a.swapaxes(-1, -2) for a in queries[:2])
    ids = _fold_ids(visible, size)

    def query_block(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], Array]:
        i, (q, d_out, mean), (q_T, d_out_T), log_sum_exp, (first, last) = inputs

        def key_block(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            d_q, d_k, d_v = carry
            scores = _scores(q, keys[j], _block_mask(ids, i, j, window), options)
            weights = jnp.exp(scores - log_sum_exp)
            d_scores = weights * (_matmul(d_out, values[j], 3) - mean) * scale
            if cap is not None:
                d_scores = d_scores * (1 - (jnp.maximum(scores, -cap) / cap) ** 2)
            d_scores = d_scores.astype(q.dtype)
            d_v = d_v.at[j].add(_matmul(d_out_T, weights.astype(v.dtype), 2))
            d_k = d_k.at[j].add(_matmul(q_T, d_scores, 2))
            return d_q + _matmul(d_scores, keys[j], 2), d_k, d_v

        start = jnp.zeros(q.shape, jnp.float32), *carry
        d_q, d_k, d_v = jax.lax.fori_loop(first, (i if last is None else last) + 1, key_block, start)
        return (d_k, d_v), d_q

    # Accumulated transposed: d_k = (qᵀ · d_scores)ᵀ.
    zero = jnp.zeros(keys.swapaxes(-1, -2).shape, jnp.float32)
    key_blocks = _first_key_block(ids, window), _last_key_block(ids)
    inputs = jnp.arange(len(keys)), queries, transposed, log_sum_exp, key_blocks
    (d_k, d_v), d_q = jax.lax.scan(query_block, (zero, zero), inputs)
    pairs = (d_q, q), (d_k.swapaxes(-1, -2), k), (d_v.swapaxes(-1, -2), v)
    return *(_unfold(d, size).astype(x.dtype) for d, x in pairs), None, None


_blockwise.defvjp(_forward_rule, _backward_rule)
