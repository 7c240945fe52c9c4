"""Attention without an L×L array in memory: queries go in blocks, each against only the keys it can reach.

Rows hold several documents; a query sees keys of its own segment, at or before itself, within the window if there is one:

    segments  1 1 1 2 2 0        keys →  1 1 1 2 2 0
                                 query 1 ■ · · · · ·
                                       1 ■ ■ · · · ·
                                       1 ■ ■ ■ · · ·
                                       2 · · · ■ · ·
                                       2 · · · ■ ■ ·

The backward pass recomputes a block's scores (Rabe & Staats 2021; FlashAttention, Dao et al. 2022). With few key/value heads the
query heads of a group are folded into the rows of one matrix product (multi-query attention, Shazeer 2019).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from alhena.shapes import Array, Bool, Float, Int

BLOCK = 128
FAR = -1e30


def attend(
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
    scores = scores * (H**-0.5 if scale is None else scale)
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    scores = jnp.where(mask[:, None, None], scores.reshape(B, K, N // K, L, -1), FAR)
    weights = jax.nn.softmax(scores, axis=-1).reshape(B, K, (N // K) * L, -1)
    out = jnp.einsum("bkrs,bskh->bkrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.reshape(B, K, N // K, L, H).transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def causal_mask(
    query: Int[Array, "B L"],
    key: Int[Array, "B S"],
    rows: Int[Array, L],
    columns: Int[Array, S],
    window: int | None,
) -> Bool[Array, "B L S"]:
    """Same segment, not later, not further back than the window; ``rows`` and ``columns`` are places in the row."""
    distance = rows[:, None] - columns[None, :]
    near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return near[None] & (query[:, :, None] == key[:, None, :])


@partial(jax.checkpoint, static_argnums=(4, 5, 6, 7, 8, 9))
def _block(
    q, k, v, segments, start: int, stop: int, low: int, window: int | None, scale: float | None, cap: float | None
):
    mask = causal_mask(
        segments[:, start:stop], segments[:, low:stop], jnp.arange(start, stop), jnp.arange(low, stop), window
    )
    return attend(q[:, start:stop], k[:, low:stop], v[:, low:stop], mask, scale, cap)


def causal_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "B L N H"]:
    """Causal attention inside segments, in blocks of queries; memory grows with L, not L²."""
    L, out = q.shape[1], []
    for start in range(0, L, BLOCK):
        stop = min(start + BLOCK, L)
        low = 0 if window is None else max(0, start - window + 1)
        out.append(_block(q, k, v, segments, start, stop, low, window, scale, cap))
    return jnp.concatenate(out, 1) if len(out) > 1 else out[0]
