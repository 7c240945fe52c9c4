"""Cross-entropy and z-loss, fused with the output product so that the logits of a batch never stand in memory.

    hidden [R, D] ─ in chunks of rows ─► logits [r, V] ─► loss and, in the same pass, its gradients to hidden and embedding

The loss is linear in nothing the caller can change, so the gradient is computed going forward and only scaled going back. The
z-loss keeps the softmax normaliser near one (PaLM, Chowdhery et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from alhena.model import config, model
from alhena.model.codes import Factors, collapse, expand
from alhena.model.einsum import dense
from alhena.model.layers import rms_norm
from alhena.shapes import Array, Float, Int
from alhena.tokens.batch import Batch, Modality

CHUNK = 512
Z_LOSS = 1e-4


def _chunk(hidden, embedding, targets, weights, dtype: str, cap: float | None, factors: Factors | None):
    """Loss sum, per-row nats, and gradients of one chunk of rows."""
    h, e = hidden.astype(dtype), embedding.astype(dtype)
    dims = (((1,), (1,)), ((), ()))
    logits = expand(jax.lax.dot_general(h, e, dims, preferred_element_type=jnp.float32), factors)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    hit = targets[:, None] == jnp.arange(logits.shape[1])[None]
    nats = log_z - jnp.sum(jnp.where(hit, logits, 0), -1)
    loss = jnp.sum(weights * (nats + Z_LOSS * log_z**2))
    slope = jnp.exp(logits - log_z[:, None]) * (1 + 2 * Z_LOSS * log_z)[:, None] - hit
    if cap is not None:
        slope = slope * (1 - (logits / cap) ** 2)
    slope = collapse(slope * weights[:, None], factors).astype(dtype)
    d_hidden = jax.lax.dot_general(slope, e, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    d_embedding = jax.lax.dot_general(slope, h, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return loss, nats, d_hidden, d_embedding


def _forward(hidden, embedding, targets, weights, dtype: str, cap: float | None, factors: Factors | None):
    """Rows that count come first, so that chunks of rows that do not are never computed."""
    R, D = hidden.shape
    size = min(CHUNK, R)
    order = jnp.argsort(weights == 0, stable=True)
    back = jnp.argsort(order)
    rows = tuple(jnp.pad(a[order], ((0, -R % size), *((0, 0),) * (a.ndim - 1))) for a in (hidden, targets, weights))
    chunks = tuple(a.reshape(-1, size, *a.shape[1:]) for a in rows)

    def work(carried, h, t, w):
        loss, nats, d_hidden, d_embedding = _chunk(h, embedding, t, w, dtype, cap, factors)
        return (carried[0] + loss, carried[1] + d_embedding), (nats, d_hidden)

    def rest(carried, h, t, w):
        return carried, (jnp.zeros(size, jnp.float32), jnp.zeros((size, D), jnp.float32))

    start = jnp.zeros((), jnp.float32), jnp.zeros(embedding.shape, jnp.float32)
    add = lambda carried, chunk: jax.lax.cond(chunk[2][0] != 0, work, rest, carried, *chunk)  # noqa: E731
    (loss, d_embedding), (nats, d_hidden) = jax.lax.scan(add, start, chunks)
    return loss, nats.reshape(-1)[:R][back], d_hidden.reshape(-1, D)[:R][back], d_embedding


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def weighted_loss(
    hidden: Float[Array, "R D"],
    embedding: Float[Array, "R D"],
    targets: Int[Array, R],
    weights: Float[Array, R],
    dtype: str,
    cap: float | None = None,
    factors: Factors | None = None,
) -> tuple[Float[Array, ""], Float[Array, R]]:
    """Σ weight·(nats + z-loss), and the nats of each row of some weight (for reports: no gradient flows through them)."""
    loss, nats, _, _ = _forward(hidden, embedding, targets, weights, dtype, cap, factors)
    return loss, nats


def _save(hidden, embedding, targets, weights, dtype, cap, factors):
    loss, nats, d_hidden, d_embedding = _forward(hidden, embedding, targets, weights, dtype, cap, factors)
    return (loss, nats), (d_hidden, d_embedding)


def _scale(dtype, cap, factors, saved, slopes):
    return slopes[0] * saved[0], slopes[0] * saved[1], None, None


weighted_loss.defvjp(_save, _scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tally:
    """Sums over a batch, by modality of the target: divide to get nats per weighted token."""

    nats: Float[Array, modality]
    weight: Float[Array, modality]
    square: Float[Array, modality]  # of the hidden states after the last layer, mean over the width


def batch_loss(params: model.Params, c: config.Model, batch: Batch) -> tuple[Float[Array, ""], Tally]:
    """Mean loss per weighted token of a batch, and its tally by modality."""
    x = model.trunk(params, c, batch)
    hidden = rms_norm(x, params.norm)
    weights = batch.weights.reshape(-1)
    total, nats = weighted_loss(
        hidden.reshape(-1, hidden.shape[-1]),
        dense(params.embedding),
        batch.targets.reshape(-1),
        weights,
        c.compute,
        c.decoder.logit_cap,
        c.code_factors,
    )
    kinds = jax.nn.one_hot(batch.modality.reshape(-1), len(Modality))
    square = jnp.mean(jax.lax.stop_gradient(x) ** 2, -1).reshape(-1)
    tally = Tally((weights * nats) @ kinds, weights @ kinds, (weights * square) @ kinds)
    return total / jnp.maximum(weights.sum(), 1.0), tally
