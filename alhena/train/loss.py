"""Cross-entropy and z-loss, fused with the output matmul so that the logits of a batch are never all in memory.

    hidden [n, D] ─ in chunks ─► logits [chunk, V] ─► loss and, in the same pass, its gradients to hidden and embedding

On one device, chunks without loss weight are skipped, and a loss that nobody differentiates is computed without gradients. On a mesh, every device scores all token positions of its group against its own
shard of the vocabulary. A chunk of hidden states is gathered, the softmax needs two numbers a position from the other shards, and
the gradient is scattered.

The caller can only scale the loss, so the forward pass computes the gradient and the backward pass multiplies it by the cotangent.
The z-loss keeps the softmax normalizer near one (PaLM, Chowdhery et al. 2022). With soft targets, a teacher's distribution is
learned too: the logits of its chunk are computed beside those of the model (:mod:`alhena.train.chunk_loss`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from alhena.batch import Batch, Modality
from alhena.model import config, model, sharding
from alhena.model.layers import rms_norm
from alhena.model.linear import dense
from alhena.model.transformer.embedding import Extended, Factors, joined
from alhena.shapes import Array, Float, Int, pytree
from alhena.train.chunk_loss import Z_LOSS as Z_LOSS
from alhena.train.chunk_loss import ChunkLoss, Labels, LossOptions, Mix, SoftTargets, chunk_loss, score_chunk

CHUNK = 512
MAX_LOGITS = 2**24  # of a chunk on one device, about: larger vocabularies have smaller chunks
MESH_CHUNK = 2048  # larger: each chunk adds to the complete gradient of the embedding

LossAndGradients = tuple[Float[Array, ""], Float[Array, "*n"], Float[Array, "*n D"], Float[Array, "rows d"]]
# The teacher's embedding, where its hidden states are the soft targets.
TeacherTable = Float[Array, "S E"] | None


def _loss_on_shards(
    hidden: Float[Array, "b l D"],
    embedding: Float[Array, "r d"],
    labels: Labels,
    teacher: TeacherTable,
    options: LossOptions,
) -> LossAndGradients:
    """:func:`_loss_and_gradients` on one device of a mesh: its positions, and its shard ``[R/model, D/data]`` of the embedding."""
    data, model_axis = sharding.mesh_axis("width"), sharding.mesh_axis("vocabulary")
    others = tuple(axis for axis in sharding.RULES["batch"] or () if axis != data)
    table = jax.lax.all_gather(embedding.astype(options.dtype), data, axis=1, tiled=True)
    if teacher is not None:
        teacher = jax.lax.all_gather(teacher, data, axis=1, tiled=True)
    n, group = labels.targets.size, jax.lax.axis_size(model_axis)
    chunks = next(k for k in range(1, n + 1) if n % k == 0 and n // k * group <= max(MESH_CHUNK, group))

    def add_chunk(d_table, chunk):
        h, gathered = jax.tree.map(lambda a: jax.lax.all_gather(a, model_axis, tiled=True), chunk)
        loss, nats, d_hidden, d_chunk = chunk_loss(h, table, gathered, teacher, options, model_axis)
        size = chunk[1].targets.size
        local_nats = jax.lax.dynamic_slice_in_dim(nats, jax.lax.axis_index(model_axis) * size, size)
        return d_table + d_chunk, (loss, local_nats, jax.lax.psum_scatter(d_hidden, model_axis, tiled=True))

    local = jax.tree.map(lambda a: a.reshape(chunks, n // chunks, *a.shape[2:]), (hidden.astype(options.dtype), labels))
    d_table, (losses, nats, d_hidden) = jax.lax.scan(add_chunk, jnp.zeros(table.shape, jnp.float32), local)
    d_embedding = jax.lax.psum(jax.lax.psum_scatter(d_table, data, scatter_dimension=1, tiled=True), others)
    return (
        jax.lax.psum(losses.sum(), (*others, data)),
        nats.reshape(labels.targets.shape),
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
    rows: int, hidden: Float[Array, "n D"], labels: Labels, options: LossOptions
) -> tuple[tuple[Float[Array, "chunks size D"], Labels], Int[Array, " n"]]:
    """Hidden states and labels in chunks, and the index of each position in them.

    Positions with a loss weight are sorted first, so that chunks without any are never computed.
    """
    n = len(hidden)
    size = min(chunk_size(rows, options.code_factors), n)
    order = jnp.argsort(labels.weights == 0, stable=True)
    inverse = jnp.argsort(order)

    def chunks(a: Array) -> Array:
        padded = jnp.pad(a[order], ((0, -n % size), *((0, 0),) * (a.ndim - 1)))
        return padded.reshape(-1, size, *a.shape[1:])

    return jax.tree.map(chunks, (hidden, labels)), inverse


def _loss_on_one_device(
    hidden: Float[Array, "n D"],
    embedding: Float[Array, "R D"],
    labels: Labels,
    teacher: TeacherTable,
    options: LossOptions,
) -> ChunkLoss:
    """Loss sum, nats of each position with a weight, gradients to hidden and embedding."""
    n, D = hidden.shape
    chunks, inverse = _sorted_chunks(len(embedding), hidden, labels, options)
    size = chunks[1].targets.shape[1]

    def compute(sums, h, labels):
        loss, nats, d_hidden, d_embedding = chunk_loss(h, embedding, labels, teacher, options)
        return (sums[0] + loss, sums[1] + d_embedding), (nats, d_hidden)

    def skip(sums, h, labels):
        return sums, (jnp.zeros(size, jnp.float32), jnp.zeros((size, D), jnp.float32))

    start = jnp.zeros((), jnp.float32), jnp.zeros((len(embedding) - options.frozen_rows, D), jnp.float32)
    add_chunk = lambda sums, chunk: jax.lax.cond(chunk[1].weights[0] != 0, compute, skip, sums, *chunk)  # noqa: E731
    (loss, d_embedding), (nats, d_hidden) = jax.lax.scan(add_chunk, start, chunks)
    return loss, nats.reshape(-1)[:n][inverse], d_hidden.reshape(-1, D)[:n][inverse], d_embedding


def _value_on_one_device(
    hidden: Float[Array, "n D"],
    embedding: Float[Array, "R D"],
    labels: Labels,
    teacher: TeacherTable,
    options: LossOptions,
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """:func:`_loss_on_one_device` without gradients, which cost twice as much as the rest."""
    chunks, inverse = _sorted_chunks(len(embedding), hidden, labels, options)

    def compute(h, labels):
        scored = score_chunk(h.astype(options.dtype), embedding.astype(options.dtype), labels, teacher, options)
        return jnp.sum(labels.weights * scored.losses(options, None)), scored.nats

    def skip(h, labels):
        return jnp.zeros((), jnp.float32), jnp.zeros(labels.targets.shape, jnp.float32)

    losses, nats = jax.lax.map(lambda chunk: jax.lax.cond(chunk[1].weights[0] != 0, compute, skip, *chunk), chunks)
    return losses.sum(), nats.reshape(-1)[: len(hidden)][inverse]


def _flat(hidden: Float[Array, "*n D"], labels: Labels) -> tuple[Float[Array, "m D"], Labels]:
    """Hidden states and labels with one dimension of positions."""
    dims = labels.targets.ndim
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[dims:]), (hidden, labels))


def _loss_and_gradients(
    hidden: Float[Array, "*n D"],
    embedding: Float[Array, "R D"],
    labels: Labels,
    teacher: TeacherTable,
    options: LossOptions,
) -> LossAndGradients:
    """Loss sum, nats of each position, gradients to hidden and embedding; on the mesh if there is one."""
    if not sharding.has_mesh():
        h, flat = _flat(hidden, labels)
        loss, nats, d_hidden, d_embedding = _loss_on_one_device(h, embedding, flat, teacher, options)
        return loss, nats.reshape(labels.targets.shape), d_hidden.reshape(hidden.shape), d_embedding
    shards, factors = sharding.shard_count("vocabulary"), options.code_factors
    if factors and factors[1] % shards:
        raise ValueError(
            f"{factors[1]} colors of image codes cannot be sharded over {shards} devices: change one or the other"
        )
    positions, table = ("batch", "length"), ("vocabulary", "width")
    local = sharding.on_shards(
        partial(_loss_on_shards, options=options),
        ((*positions, None), table, positions, table),
        ((), positions, (*positions, None), table),
    )
    return local(hidden, embedding, labels, teacher)


def weighted_loss(
    hidden: Float[Array, "*n D"],
    embedding: Float[Array, "rows D"],
    targets: Int[Array, "*n"],
    weights: Float[Array, "*n"],
    options: LossOptions,
    frozen: Float[Array, "R D"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "*n"]]:
    """Σ weight·(nats + z-loss), and the nats of each position with a weight (for reports: no gradient flows through them).

    ``frozen`` is a complete table whose last rows are those of ``embedding`` (on one device; alhena/model/transformer/embedding.py).
    """
    return labeled_loss(hidden, embedding, Labels(targets, weights), None, options, frozen)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def labeled_loss(
    hidden: Float[Array, "*n D"],
    embedding: Float[Array, "rows D"],
    labels: Labels,
    teacher: TeacherTable,
    options: LossOptions,
    frozen: Float[Array, "R D"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "*n"]]:
    """:func:`weighted_loss` of labels that may have soft targets too, mixed as ``options.mix`` says.

    ``teacher`` is the embedding ``[S, E]`` of the model whose hidden states are the soft targets; ``options.teacher`` says how its
    logits are computed. No gradient flows to either. The nats are those of the targets.
    """
    if sharding.has_mesh():
        return _loss_and_gradients(hidden, embedding, labels, teacher, options)[:2]
    table = embedding if frozen is None else joined(Extended(frozen, embedding), options.dtype)
    h, flat = _flat(hidden, labels)
    loss, nats = _value_on_one_device(h, table, flat, teacher, options)
    return loss, nats.reshape(labels.targets.shape)


def _forward(hidden, embedding, labels, teacher, options, frozen):
    """Each argument comes with whether a gradient flows to it; a frozen embedding, of adapters, needs none."""
    rows, train_embedding = embedding.value, embedding.perturbed or sharding.has_mesh()
    table = rows if frozen is None else joined(Extended(frozen.value, rows), options.dtype)
    options = replace(options, frozen_rows=len(table) - len(rows) if train_embedding else len(table))
    labels, teacher = jax.tree.map(lambda argument: argument.value, (labels, teacher))
    loss, nats, d_hidden, d_embedding = _loss_and_gradients(hidden.value, table, labels, teacher, options)
    return (loss, nats), (d_hidden, d_embedding if train_embedding else None)


def _backward(options, residuals, cotangents):
    d_hidden, d_embedding = residuals
    scale = cotangents[0]
    return scale * d_hidden, None if d_embedding is None else scale * d_embedding, None, None, None


labeled_loss.defvjp(_forward, _backward, symbolic_zeros=True)


@pytree
@dataclass(frozen=True)
class Lesson:
    """A teacher's outputs for a batch: soft targets ``[B, L, …]``, and its embedding where these are its hidden states."""

    soft: SoftTargets
    table: TeacherTable = None


@dataclass(frozen=True)
class Teaching:
    """How a teacher's outputs enter the loss: the mix, and how its logits are computed."""

    mix: Mix
    teacher: LossOptions | None = None


@pytree
@dataclass(frozen=True)
class LossSums:
    """Sums over a batch, by modality of the target: divide to get nats per weighted token."""

    nats: Float[Array, " modality"]
    weight: Float[Array, " modality"]
    square: Float[Array, " modality"]  # of the hidden states after the last layer, mean over the width


def batch_loss(
    params: model.Params,
    c: config.Model,
    batch: Batch,
    lesson: Lesson | None = None,
    teaching: Teaching | None = None,
) -> tuple[Float[Array, ""], LossSums]:
    """Mean loss per weighted token of a batch, and its sums by modality.

    With a ``lesson``, the loss is mixed as ``teaching`` says; the sums are those of the targets alone.
    """
    x = model.decoder_output(params, c, batch)
    hidden = rms_norm(x, params.norm)
    embedding, frozen = params.embedding, None
    if isinstance(embedding, Extended):
        frozen, embedding = embedding.table, embedding.rows
    labels, table, options = Labels(batch.targets, batch.weights), None, LossOptions.of(c)
    if lesson is not None:
        assert teaching is not None
        labels, table = replace(labels, soft=lesson.soft), lesson.table
        options = replace(options, mix=teaching.mix, teacher=teaching.teacher)
    total, nats = labeled_loss(hidden, dense(embedding), labels, table, options, frozen)
    weights, nats = batch.weights.reshape(-1), nats.reshape(-1)
    modality = jax.nn.one_hot(batch.modality.reshape(-1), len(Modality))
    square = jnp.mean(jax.lax.stop_gradient(x) ** 2, -1).reshape(-1)
    sums = LossSums((weights * nats) @ modality, weights @ modality, (weights * square) @ modality)
    return total / jnp.maximum(weights.sum(), 1.0), sums
