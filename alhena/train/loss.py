"""Cross-entropy and z-loss, fused with the output matmul so that the logits of a batch are never all in memory.

    hidden [n, D] ─ in chunks ─► logits [chunk, V] ─► loss and, in the same pass, its gradients to hidden and embedding

On one device, chunks without loss weight are skipped, and a loss that nobody differentiates is computed without gradients. On a mesh, every device scores all token positions of its group against its own
shard of the vocabulary. A chunk of hidden states is gathered, the softmax needs two numbers a position from the other shards, and
the gradient is scattered.

The caller can only scale the loss, so the forward pass computes the gradient and the backward pass multiplies it by the cotangent.
The z-loss keeps the softmax normalizer near one (PaLM, Chowdhery et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from alhena.batch import Batch, Modality
from alhena.model import config, model, sharding
from alhena.model.embedding import (
    Extended,
    Factors,
    collapse_gradient,
    collapse_gradient_shard,
    expand_logits,
    expand_logits_shard,
    joined,
    shard_ids,
)
from alhena.model.layers import rms_norm, softcap
from alhena.model.linear import dense, weight_gradient
from alhena.shapes import Array, Bool, Float, Int, pytree

CHUNK = 512
MAX_LOGITS = 2**24  # of a chunk on one device, about: larger vocabularies have smaller chunks
MESH_CHUNK = 2048  # larger: each chunk adds to the complete gradient of the embedding
MASKED_LOGIT = -1e9  # of a column that stands for no id
Z_LOSS = 1e-4

# The gradient to the embedding has no rows where those are frozen.
ChunkLoss = tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n D"], Float[Array, "rows D"]]
LossAndGradients = tuple[Float[Array, ""], Float[Array, "*n"], Float[Array, "*n D"], Float[Array, "rows d"]]


@dataclass(frozen=True)
class LossOptions:
    """How logits are computed: operand dtype of the matmuls, final logit softcap, factors of the image codes."""

    dtype: str
    softcap: float | None = None
    code_factors: Factors | None = None
    # First rows of the embedding without a gradient (on one device): it is computed for the others, of which there may be none.
    frozen_rows: int = 0

    @classmethod
    def of(cls, c: config.Model) -> LossOptions:
        return cls(c.compute_dtype, c.decoder.final_logit_softcap, c.code_factors)


def _chunk_softmax(
    h: Float[Array, "n D"],
    e: Float[Array, "R D"],
    targets: Int[Array, " n"],
    options: LossOptions,
    axis: str | None = None,
) -> tuple[Float[Array, "n columns"], Float[Array, " n"], Bool[Array, "n columns"], Float[Array, " n"]]:
    """Logits, the logarithm of their normalizer, which of them are the targets', and the nats. ``axis`` as in :func:`_chunk_loss`."""
    cap, factors = options.softcap, options.code_factors
    dims = (((1,), (1,)), ((), ()))
    scores = jax.lax.dot_general(h, e, dims, preferred_element_type=jnp.float32)
    logits = expand_logits(scores, factors) if axis is None else expand_logits_shard(scores, factors, axis)
    ids = jnp.arange(logits.shape[1]) if axis is None else shard_ids(scores.shape[1], factors, axis)
    logits = softcap(logits, cap)
    if axis is not None:
        logits = jnp.where(ids < 0, MASKED_LOGIT, logits)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    if axis is not None:
        log_z = jax.nn.logsumexp(jax.lax.all_gather(log_z, axis), axis=0)
    is_target = targets[:, None] == ids[None]
    score = jnp.sum(jnp.where(is_target, logits, 0), -1)
    return logits, log_z, is_target, log_z - (score if axis is None else jax.lax.psum(score, axis))


def _chunk_loss(
    hidden: Float[Array, "n D"],
    embedding: Float[Array, "R D"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: LossOptions,
    axis: str | None = None,
) -> ChunkLoss:
    """Loss sum, nats of each position, gradients to hidden and embedding. With ``axis``, the embedding is one shard along that axis."""
    cap, factors = options.softcap, options.code_factors
    h, e = hidden.astype(options.dtype), embedding.astype(options.dtype)
    logits, log_z, is_target, nats = _chunk_softmax(h, e, targets, options, axis)
    loss = jnp.sum(weights * (nats + Z_LOSS * log_z**2))
    d_logits = jnp.exp(logits - log_z[:, None]) * (1 + 2 * Z_LOSS * log_z)[:, None] - is_target
    if cap is not None:
        d_logits = d_logits * (1 - (logits / cap) ** 2)
    d_logits = d_logits * weights[:, None]
    d_scores = (
        collapse_gradient(d_logits, factors) if axis is None else collapse_gradient_shard(d_logits, factors, axis)
    ).astype(options.dtype)
    d_hidden = jax.lax.dot_general(d_scores, e, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    if options.frozen_rows == len(e):
        d_embedding = jnp.zeros((0, h.shape[1]), jnp.float32)
    else:
        d_embedding = weight_gradient(d_scores[:, options.frozen_rows :], h)
    return loss, nats, d_hidden, d_embedding


def _loss_on_shards(
    hidden: Float[Array, "b l D"],
    embedding: Float[Array, "r d"],
    targets: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    options: LossOptions,
) -> LossAndGradients:
    """:func:`_loss_and_gradients` on one device of a mesh: its positions, and its shard ``[R/model, D/data]`` of the embedding."""
    data, model_axis = sharding.mesh_axis("width"), sharding.mesh_axis("vocabulary")
    others = tuple(axis for axis in sharding.RULES["batch"] or () if axis != data)
    table = jax.lax.all_gather(embedding.astype(options.dtype), data, axis=1, tiled=True)
    n, group = targets.size, jax.lax.axis_size(model_axis)
    chunks = next(k for k in range(1, n + 1) if n % k == 0 and n // k * group <= max(MESH_CHUNK, group))

    def add_chunk(d_table, chunk):
        h, t, w = (jax.lax.all_gather(a, model_axis, tiled=True) for a in chunk)
        loss, nats, d_hidden, d_chunk = _chunk_loss(h, table, t, w, options, model_axis)
        size = chunk[1].size
        local_nats = jax.lax.dynamic_slice_in_dim(nats, jax.lax.axis_index(model_axis) * size, size)
        return d_table + d_chunk, (loss, local_nats, jax.lax.psum_scatter(d_hidden, model_axis, tiled=True))

    local = [a.reshape(chunks, n // chunks, *a.shape[2:]) for a in (hidden.astype(options.dtype), targets, weights)]
    d_table, (losses, nats, d_hidden) = jax.lax.scan(add_chunk, jnp.zeros(table.shape, jnp.float32), local)
    d_embedding = jax.lax.psum(jax.lax.psum_scatter(d_table, data, scatter_dimension=1, tiled=True), others)
    return (
        jax.lax.psum(losses.sum(), (*others, data)),
        nats.reshape(targets.shape),
        d_hidden.reshape(hidden.shape),
        d_embedding,
    )


def chunk_size(rows: int, factors: Factors | None = None) -> int:
    """Positions of a chunk on one device, for that many rows of the embedding.

    >>> [chunk_size(rows) for rows in (300, 32_768, 262_144, 262_208)]
    [512, 512, 64, 64]
    """
    columns = rows if factors is None else rows - sum(factors) + factors[0] * factors[1]
    return min(CHUNK, -(-MAX_LOGITS // columns))


def _sorted_chunks(
    rows: int, hidden: Float[Array, "n D"], targets: Int[Array, " n"], weights: Float[Array, " n"], options: LossOptions
) -> tuple[tuple[Array, ...], Int[Array, " n"]]:
    """Hidden states, targets and weights in chunks, and the index of each position in them.

    Positions with a loss weight are sorted first, so that chunks without any are never computed.
    """
    n = len(hidden)
    size = min(chunk_size(rows, options.code_factors), n)
    order = jnp.argsort(weights == 0, stable=True)
    inverse = jnp.argsort(order)
    padded = tuple(jnp.pad(a[order], ((0, -n % size), *((0, 0),) * (a.ndim - 1))) for a in (hidden, targets, weights))
    return tuple(a.reshape(-1, size, *a.shape[1:]) for a in padded), inverse


def _loss_on_one_device(
    hidden: Float[Array, "n D"],
    embedding: Float[Array, "R D"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: LossOptions,
) -> ChunkLoss:
    """Loss sum, nats of each position with a weight, gradients to hidden and embedding."""
    n, D = hidden.shape
    chunks, inverse = _sorted_chunks(len(embedding), hidden, targets, weights, options)
    size = chunks[1].shape[1]

    def compute(sums, h, t, w):
        loss, nats, d_hidden, d_embedding = _chunk_loss(h, embedding, t, w, options)
        return (sums[0] + loss, sums[1] + d_embedding), (nats, d_hidden)

    def skip(sums, h, t, w):
        return sums, (jnp.zeros(size, jnp.float32), jnp.zeros((size, D), jnp.float32))

    start = jnp.zeros((), jnp.float32), jnp.zeros((len(embedding) - options.frozen_rows, D), jnp.float32)
    add_chunk = lambda sums, chunk: jax.lax.cond(chunk[2][0] != 0, compute, skip, sums, *chunk)  # noqa: E731
    (loss, d_embedding), (nats, d_hidden) = jax.lax.scan(add_chunk, start, chunks)
    return loss, nats.reshape(-1)[:n][inverse], d_hidden.reshape(-1, D)[:n][inverse], d_embedding


def _value_on_one_device(
    hidden: Float[Array, "n D"],
    embedding: Float[Array, "R D"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: LossOptions,
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """:func:`_loss_on_one_device` without gradients, which cost twice as much as the rest."""
    chunks, inverse = _sorted_chunks(len(embedding), hidden, targets, weights, options)

    def compute(h, t, w):
        _, log_z, _, nats = _chunk_softmax(h.astype(options.dtype), embedding.astype(options.dtype), t, options)
        return jnp.sum(w * (nats + Z_LOSS * log_z**2)), nats

    def skip(h, t, w):
        return jnp.zeros((), jnp.float32), jnp.zeros(t.shape, jnp.float32)

    losses, nats = jax.lax.map(lambda chunk: jax.lax.cond(chunk[2][0] != 0, compute, skip, *chunk), chunks)
    return losses.sum(), nats.reshape(-1)[: len(hidden)][inverse]


def _loss_and_gradients(
    hidden: Float[Array, "*n D"],
    embedding: Float[Array, "R D"],
    targets: Int[Array, "*n"],
    weights: Float[Array, "*n"],
    options: LossOptions,
) -> LossAndGradients:
    """Loss sum, nats of each position, gradients to hidden and embedding; on the mesh if there is one."""
    if not sharding.has_mesh():
        flat = hidden.reshape(-1, hidden.shape[-1]), embedding, targets.reshape(-1), weights.reshape(-1)
        loss, nats, d_hidden, d_embedding = _loss_on_one_device(*flat, options)
        return loss, nats.reshape(targets.shape), d_hidden.reshape(hidden.shape), d_embedding
    shards, factors = sharding.shard_count("vocabulary"), options.code_factors
    if factors and factors[1] % shards:
        raise ValueError(
            f"{factors[1]} colors of image codes cannot be sharded over {shards} devices: change one or the other"
        )
    positions, table = ("batch", "length"), ("vocabulary", "width")
    local = sharding.on_shards(
        partial(_loss_on_shards, options=options),
        ((*positions, None), table, positions, positions),
        ((), positions, (*positions, None), table),
    )
    return local(hidden, embedding, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_loss(
    hidden: Float[Array, "*n D"],
    embedding: Float[Array, "rows D"],
    targets: Int[Array, "*n"],
    weights: Float[Array, "*n"],
    options: LossOptions,
    frozen: Float[Array, "R D"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "*n"]]:
    """Σ weight·(nats + z-loss), and the nats of each position with a weight (for reports: no gradient flows through them).

    ``frozen`` is a complete table whose last rows are those of ``embedding`` (on one device; alhena/model/embedding.py).
    """
    if sharding.has_mesh():
        return _loss_and_gradients(hidden, embedding, targets, weights, options)[:2]
    table = embedding if frozen is None else joined(Extended(frozen, embedding), options.dtype)
    flat = hidden.reshape(-1, hidden.shape[-1]), table, targets.reshape(-1), weights.reshape(-1)
    loss, nats = _value_on_one_device(*flat, options)
    return loss, nats.reshape(targets.shape)


def _forward(hidden, embedding, targets, weights, options, frozen):
    """Each argument comes with whether a gradient flows to it; a frozen embedding, of adapters, needs none."""
    rows, train_embedding = embedding.value, embedding.perturbed or sharding.has_mesh()
    table = rows if frozen is None else joined(Extended(frozen.value, rows), options.dtype)
    options = replace(options, frozen_rows=len(table) - len(rows) if train_embedding else len(table))
    values = hidden.value, table, targets.value, weights.value
    loss, nats, d_hidden, d_embedding = _loss_and_gradients(*values, options)
    return (loss, nats), (d_hidden, d_embedding if train_embedding else None)


def _backward(options, residuals, cotangents):
    d_hidden, d_embedding = residuals
    scale = cotangents[0]
    return scale * d_hidden, None if d_embedding is None else scale * d_embedding, None, None, None


weighted_loss.defvjp(_forward, _backward, symbolic_zeros=True)


@pytree
@dataclass(frozen=True)
class LossSums:
    """Sums over a batch, by modality of the target: divide to get nats per weighted token."""

    nats: Float[Array, " modality"]
    weight: Float[Array, " modality"]
    square: Float[Array, " modality"]  # of the hidden states after the last layer, mean over the width


def batch_loss(params: model.Params, c: config.Model, batch: Batch) -> tuple[Float[Array, ""], LossSums]:
    """Mean loss per weighted token of a batch, and its sums by modality."""
    x = model.decoder_output(params, c, batch)
    hidden = rms_norm(x, params.norm)
    embedding, frozen = params.embedding, None
    if isinstance(embedding, Extended):
        frozen, embedding = embedding.table, embedding.rows
    total, nats = weighted_loss(hidden, dense(embedding), batch.targets, batch.weights, LossOptions.of(c), frozen)
    weights, nats = batch.weights.reshape(-1), nats.reshape(-1)
    modality = jax.nn.one_hot(batch.modality.reshape(-1), len(Modality))
    square = jnp.mean(jax.lax.stop_gradient(x) ** 2, -1).reshape(-1)
    sums = LossSums((weights * nats) @ modality, weights @ modality, (weights * square) @ modality)
    return total / jnp.maximum(weights.sum(), 1.0), sums
