"""Cross-entropy and z-loss, fused with the output product so that the logits of a batch never stand in memory.

    hidden [R, D] ─ in chunks of rows ─► logits [r, V] ─► loss and, in the same pass, its gradients to hidden and embedding

On one device, chunks of rows without weight are skipped. On a mesh, every chip scores all rows of its group against its own part of
the vocabulary: a chunk of rows is gathered, what the softmax needs of the other parts are two numbers a row, the gradient is
scattered back.

The loss is linear in nothing the caller can change, so the gradient is computed going forward and only scaled going back. The
z-loss keeps the softmax normalizer near one (PaLM, Chowdhery et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from alhena.batch import Batch, Modality
from alhena.model import config, model, sharding
from alhena.model.embedding import (
    Factors,
    collapse_gradient,
    collapse_gradient_shard,
    expand_logits,
    expand_logits_shard,
    shard_ids,
)
from alhena.model.layers import rms_norm, softcap
from alhena.model.linear import dense, weight_gradient
from alhena.shapes import Array, Float, Int, pytree

CHUNK = 512
MESH_CHUNK = 2048  # larger: each chunk adds to the whole gradient of the embedding
VOID = -1e9  # the logit of a column that stands for nothing
Z_LOSS = 1e-4


def _chunk(
    hidden, embedding, targets, weights, dtype: str, cap: float | None, factors: Factors | None, axis: str | None = None
):
    """Loss sum, per-row nats, and gradients of one chunk of rows; with ``axis``, the embedding is one part of it along that axis."""
    h, e = hidden.astype(dtype), embedding.astype(dtype)
    dims = (((1,), (1,)), ((), ()))
    scores = jax.lax.dot_general(h, e, dims, preferred_element_type=jnp.float32)
    logits = expand_logits(scores, factors) if axis is None else expand_logits_shard(scores, factors, axis)
    ids = jnp.arange(logits.shape[1]) if axis is None else shard_ids(scores.shape[1], factors, axis)
    logits = softcap(logits, cap)
    if axis is not None:
        logits = jnp.where(ids < 0, VOID, logits)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    if axis is not None:
        log_z = jax.nn.logsumexp(jax.lax.all_gather(log_z, axis), axis=0)
    hit = targets[:, None] == ids[None]
    score = jnp.sum(jnp.where(hit, logits, 0), -1)
    nats = log_z - (score if axis is None else jax.lax.psum(score, axis))
    loss = jnp.sum(weights * (nats + Z_LOSS * log_z**2))
    slope = jnp.exp(logits - log_z[:, None]) * (1 + 2 * Z_LOSS * log_z)[:, None] - hit
    if cap is not None:
        slope = slope * (1 - (logits / cap) ** 2)
    slope = slope * weights[:, None]
    slope = (
        collapse_gradient(slope, factors) if axis is None else collapse_gradient_shard(slope, factors, axis)
    ).astype(dtype)
    d_hidden = jax.lax.dot_general(slope, e, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return loss, nats, d_hidden, weight_gradient(slope, h)


def _on_shards(hidden, embedding, targets, weights, dtype: str, cap: float | None, factors: Factors | None):
    """One chip's rows ``[b, l, D]`` and its part of the embedding ``[R/model, D/data]``: the mesh's :func:`_forward`."""
    data, model = sharding.mesh_axis("width"), sharding.mesh_axis("vocabulary")
    others = tuple(axis for axis in sharding.RULES["batch"] or () if axis != data)
    table = jax.lax.all_gather(embedding.astype(dtype), data, axis=1, tiled=True)
    rows, group = targets.size, jax.lax.axis_size(model)
    chunks = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n * group <= max(MESH_CHUNK, group))

    def scan(d_table, local):
        some = [jax.lax.all_gather(a, model, tiled=True) for a in local]
        loss, nats, d_hidden, more = _chunk(some[0], table, some[1], some[2], dtype, cap, factors, model)
        mine = jax.lax.dynamic_slice_in_dim(nats, jax.lax.axis_index(model) * local[1].size, local[1].size)
        return d_table + more, (loss, mine, jax.lax.psum_scatter(d_hidden, model, tiled=True))

    local = [a.reshape(chunks, rows // chunks, *a.shape[2:]) for a in (hidden.astype(dtype), targets, weights)]
    d_table, (losses, nats, d_hidden) = jax.lax.scan(scan, jnp.zeros(table.shape, jnp.float32), local)
    d_embedding = jax.lax.psum(jax.lax.psum_scatter(d_table, data, scatter_dimension=1, tiled=True), others)
    return (
        jax.lax.psum(losses.sum(), (*others, data)),
        nats.reshape(targets.shape),
        d_hidden.reshape(hidden.shape),
        d_embedding,
    )


def _forward(hidden, embedding, targets, weights, dtype: str, cap: float | None, factors: Factors | None):
    """Loss sum, nats of each row, gradients to hidden and embedding: the one place that knows whether there is a mesh."""
    if not sharding.has_mesh():
        flat = hidden.reshape(-1, hidden.shape[-1]), embedding, targets.reshape(-1), weights.reshape(-1)
        loss, nats, d_hidden, d_embedding = _on_one_device(*flat, dtype, cap, factors)
        return loss, nats.reshape(targets.shape), d_hidden.reshape(hidden.shape), d_embedding
    cut = sharding.shard_count("vocabulary")
    if factors and factors[1] % cut:
        raise ValueError(f"{factors[1]} colors of image codes cannot be cut over {cut} chips: change one or the other")
    rows, table = ("batch", "length"), ("vocabulary", "width")
    local = sharding.on_shards(
        partial(_on_shards, dtype=dtype, cap=cap, factors=factors),
        ((*rows, None), table, rows, rows),
        ((), rows, (*rows, None), table),
    )
    return local(hidden, embedding, targets, weights)


def _on_one_device(hidden, embedding, targets, weights, dtype: str, cap: float | None, factors: Factors | None):
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
    hidden: Float[Array, "*rows D"],
    embedding: Float[Array, "R D"],
    targets: Int[Array, " *rows"],
    weights: Float[Array, " *rows"],
    dtype: str,
    cap: float | None = None,
    factors: Factors | None = None,
) -> tuple[Float[Array, ""], Float[Array, " *rows"]]:
    """Σ weight·(nats + z-loss), and the nats of each row of some weight (for reports: no gradient flows through them)."""
    loss, nats, _, _ = _forward(hidden, embedding, targets, weights, dtype, cap, factors)
    return loss, nats


def _save(hidden, embedding, targets, weights, dtype, cap, factors):
    loss, nats, d_hidden, d_embedding = _forward(hidden, embedding, targets, weights, dtype, cap, factors)
    return (loss, nats), (d_hidden, d_embedding)


def _scale(dtype, cap, factors, saved, slopes):
    return slopes[0] * saved[0], slopes[0] * saved[1], None, None


weighted_loss.defvjp(_save, _scale)


@pytree
@dataclass(frozen=True)
class LossSums:
    """Sums over a batch, by modality of the target: divide to get nats per weighted token."""

    nats: Float[Array, " modality"]
    weight: Float[Array, " modality"]
    square: Float[Array, " modality"]  # of the hidden states after the last layer, mean over the width


def batch_loss(params: model.Params, c: config.Model, batch: Batch) -> tuple[Float[Array, ""], LossSums]:
    """Mean loss per weighted token of a batch, and its tally by modality."""
    x = model.decoder_output(params, c, batch)
    hidden = rms_norm(x, params.norm)
    total, nats = weighted_loss(
        hidden,
        dense(params.embedding),
        batch.targets,
        batch.weights,
        c.compute_dtype,
        c.decoder.final_logit_softcap,
        c.code_factors,
    )
    weights, nats = batch.weights.reshape(-1), nats.reshape(-1)
    kinds = jax.nn.one_hot(batch.modality.reshape(-1), len(Modality))
    square = jnp.mean(jax.lax.stop_gradient(x) ** 2, -1).reshape(-1)
    tally = LossSums((weights * nats) @ kinds, weights @ kinds, (weights * square) @ kinds)
    return total / jnp.maximum(weights.sum(), 1.0), tally
