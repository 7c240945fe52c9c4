"""Cross-entropy and z-loss, fused with the output matmul so that the logits of a batch are never all in memory.

    hidden [n, D] ─ in chunks ─► logits [chunk, V] ─► loss and, in the same pass, its gradients to hidden and embedding

On one device, chunks without loss weight are skipped. On a mesh, every device scores all token positions of its group against its own
shard of the vocabulary. A chunk of hidden states is gathered, the softmax needs two numbers a position from the other shards, and
the gradient is scattered.

The caller can only scale the loss, so the forward pass computes the gradient and the backward pass multiplies it by the cotangent.
The z-loss keeps the softmax normalizer near one (PaLM, Chowdhery et al. 2022).
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
MESH_CHUNK = 2048  # larger: each chunk adds to the complete gradient of the embedding
MASKED_LOGIT = -1e9  # of a column that stands for no id
Z_LOSS = 1e-4

ChunkLoss = tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n D"], Float[Array, "R D"]]
LossAndGradients = tuple[Float[Array, ""], Float[Array, "*n"], Float[Array, "*n D"], Float[Array, "R d"]]


@dataclass(frozen=True)
class LossOptions:
    """How logits are computed: operand dtype of the matmuls, final logit softcap, factors of the image codes."""

    dtype: str
    softcap: float | None = None
    code_factors: Factors | None = None

    @classmethod
    def of(cls, c: config.Model) -> LossOptions:
        return cls(c.compute_dtype, c.decoder.final_logit_softcap, c.code_factors)


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
    nats = log_z - (score if axis is None else jax.lax.psum(score, axis))
    loss = jnp.sum(weights * (nats + Z_LOSS * log_z**2))
    d_logits = jnp.exp(logits - log_z[:, None]) * (1 + 2 * Z_LOSS * log_z)[:, None] - is_target
    if cap is not None:
        d_logits = d_logits * (1 - (logits / cap) ** 2)
    d_logits = d_logits * weights[:, None]
    d_scores = (
        collapse_gradient(d_logits, factors) if axis is None else collapse_gradient_shard(d_logits, factors, axis)
    ).astype(options.dtype)
    d_hidden = jax.lax.dot_general(d_scores, e, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return loss, nats, d_hidden, weight_gradient(d_scores, h)


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


def _loss_on_one_device(
    hidden: Float[Array, "n D"],
    embedding: Float[Array, "R D"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: LossOptions,
) -> ChunkLoss:
    """Positions with a loss weight are sorted first, so that chunks without any are never computed."""
    n, D = hidden.shape
    size = min(CHUNK, n)
    order = jnp.argsort(weights == 0, stable=True)
    inverse = jnp.argsort(order)
    padded = tuple(jnp.pad(a[order], ((0, -n % size), *((0, 0),) * (a.ndim - 1))) for a in (hidden, targets, weights))
    chunks = tuple(a.reshape(-1, size, *a.shape[1:]) for a in padded)

    def compute(sums, h, t, w):
        loss, nats, d_hidden, d_embedding = _chunk_loss(h, embedding, t, w, options)
        return (sums[0] + loss, sums[1] + d_embedding), (nats, d_hidden)

    def skip(sums, h, t, w):
        return sums, (jnp.zeros(size, jnp.float32), jnp.zeros((size, D), jnp.float32))

    start = jnp.zeros((), jnp.float32), jnp.zeros(embedding.shape, jnp.float32)
    add_chunk = lambda sums, chunk: jax.lax.cond(chunk[2][0] != 0, compute, skip, sums, *chunk)  # noqa: E731
    (loss, d_embedding), (nats, d_hidden) = jax.lax.scan(add_chunk, start, chunks)
    return loss, nats.reshape(-1)[:n][inverse], d_hidden.reshape(-1, D)[:n][inverse], d_embedding


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
    embedding: Float[Array, "R D"],
    targets: Int[Array, "*n"],
    weights: Float[Array, "*n"],
    options: LossOptions,
) -> tuple[Float[Array, ""], Float[Array, "*n"]]:
    """Σ weight·(nats + z-loss), and the nats of each position with a weight (for reports: no gradient flows through them)."""
    loss, nats, _, _ = _loss_and_gradients(hidden, embedding, targets, weights, options)
    return loss, nats


def _forward(hidden, embedding, targets, weights, options):
    loss, nats, d_hidden, d_embedding = _loss_and_gradients(hidden, embedding, targets, weights, options)
    return (loss, nats), (d_hidden, d_embedding)


def _backward(options, residuals, cotangents):
    return cotangents[0] * residuals[0], cotangents[0] * residuals[1], None, None


weighted_loss.defvjp(_forward, _backward)


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
    total, nats = weighted_loss(hidden, dense(params.embedding), batch.targets, batch.weights, LossOptions.of(c))
    weights, nats = batch.weights.reshape(-1), nats.reshape(-1)
    modality = jax.nn.one_hot(batch.modality.reshape(-1), len(Modality))
    square = jnp.mean(jax.lax.stop_gradient(x) ** 2, -1).reshape(-1)
    sums = LossSums((weights * nats) @ modality, weights @ modality, (weights * square) @ modality)
    return total / jnp.maximum(weights.sum(), 1.0), sums
