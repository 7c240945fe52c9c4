"""Loss of one chunk of positions, and its gradients to hidden states and embedding.

    hidden [n, D] · embedding ─► logits [n, V] ─► hard · (cross-entropy of the targets + z-loss)
    soft targets ──────► teacher's p [n, V] ────► + soft · T² · cross-entropy of p, both at temperature T

Soft targets are a teacher's hidden states, from which its logits are computed here, or some of its most probable or of its sampled
tokens, with probabilities that sum to one (Gemma 3 technical report, 2025). The factor T² keeps the size of the gradient (Hinton et
al. 2015). On a mesh every function sees one shard of the vocabulary, along ``axis``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alhena.model import config
from alhena.model.layers import softcap
from alhena.model.linear import weight_gradient
from alhena.model.transformer.embedding import (
    Factors,
    collapse_gradient,
    collapse_gradient_shard,
    expand_logits,
    expand_logits_shard,
    shard_columns,
    shard_ids,
)
from alhena.schema import bounded
from alhena.shapes import Array, Bool, Float, Int, pytree

MASKED_LOGIT = -1e9  # of a column that stands for no id
Z_LOSS = 1e-4

# The gradient to the embedding has no rows where those are frozen.
ChunkLoss = tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n D"], Float[Array, "rows D"]]


@dataclass(frozen=True)
class Mix:
    """Weights of the loss on the targets and of that on a teacher's distribution, and the temperature of the latter."""

    hard: float = 0.3
    soft: float = 0.7
    temperature: float = 1.0

    def __post_init__(self) -> None:
        bounded(self, hard=(0.0, 1e3), soft=(0.0, 1e3), temperature=(0.05, 100.0))


@dataclass(frozen=True)
class LossOptions:
    """How logits are computed: operand dtype of the matmuls, final logit softcap, factors of the image codes."""

    dtype: str
    softcap: float | None = None
    code_factors: Factors | None = None
    # First rows of the embedding without a gradient (on one device): it is computed for the others, of which there may be none.
    frozen_rows: int = 0
    # With soft targets: how they are mixed, and how a teacher's logits are computed from its hidden states.
    mix: Mix | None = None
    teacher: LossOptions | None = None

    @classmethod
    def of(cls, c: config.Model) -> LossOptions:
        return cls(c.compute_dtype, c.decoder.final_logit_softcap, c.code_factors)


@pytree
@dataclass(frozen=True)
class TeacherHidden:
    """The teacher's final hidden states, normalized: its complete distribution, given its embedding."""

    hidden: Float[Array, "*n E"]


@pytree
@dataclass(frozen=True)
class TeacherTokens:
    """Some tokens of the teacher's distribution, at the temperature of the loss; the probabilities of a position sum to one."""

    ids: Int[Array, "*n k"]
    probabilities: Float[Array, "*n k"]


SoftTargets = TeacherHidden | TeacherTokens


@pytree
@dataclass(frozen=True)
class Labels:
    """What every position is to predict, and with which loss weight."""

    targets: Int[Array, "*n"]
    weights: Float[Array, "*n"]
    soft: SoftTargets | None = None


def _chunk_logits(
    h: Float[Array, "n D"], e: Float[Array, "R D"], options: LossOptions, axis: str | None
) -> tuple[Float[Array, "n columns"], Int[Array, " columns"]]:
    """Logits, and the ids of their columns."""
    factors, dims = options.code_factors, (((1,), (1,)), ((), ()))
    scores = jax.lax.dot_general(h, e, dims, preferred_element_type=jnp.float32)
    logits = expand_logits(scores, factors) if axis is None else expand_logits_shard(scores, factors, axis)
    ids = jnp.arange(logits.shape[1]) if axis is None else shard_ids(scores.shape[1], factors, axis)
    logits = softcap(logits, options.softcap)
    return (logits if axis is None else jnp.where(ids < 0, MASKED_LOGIT, logits)), ids


def _log_normalizer(logits: Float[Array, "n columns"], axis: str | None) -> Float[Array, " n"]:
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z if axis is None else jax.nn.logsumexp(jax.lax.all_gather(log_z, axis), axis=0)


def _over_shards(x: Float[Array, " n"], axis: str | None) -> Float[Array, " n"]:
    return x if axis is None else jax.lax.psum(x, axis)


def _soft_probabilities(
    soft: SoftTargets,
    table: Float[Array, "S E"] | None,
    student: Int[Array, " columns"],
    options: LossOptions,
    axis: str | None,
) -> Float[Array, "n columns"]:
    """The teacher's probabilities of the ids in ``student``, the columns of the student's logits."""
    assert options.mix
    if isinstance(soft, TeacherHidden):
        how = options.teacher
        assert how is not None and table is not None
        logits, _ = _chunk_logits(soft.hidden.astype(how.dtype), table.astype(how.dtype), how, axis)
        logits = logits / options.mix.temperature
        return jnp.exp(logits - _log_normalizer(logits, axis)[:, None])
    n, width = len(soft.ids), len(student)
    columns = soft.ids if axis is None else shard_columns(soft.ids, width, options.code_factors, axis)
    zeros = jnp.zeros((n, width), jnp.float32)
    return zeros.at[jnp.arange(n)[:, None], columns].add(soft.probabilities, mode="drop")


@dataclass(frozen=True)
class _Scored:
    """Logits of a chunk and what follows from them; ``p`` and ``soft_log_z`` only with soft targets."""

    logits: Float[Array, "n columns"]
    log_z: Float[Array, " n"]
    is_target: Bool[Array, "n columns"]
    nats: Float[Array, " n"]
    p: Float[Array, "n columns"] | None = None
    soft_log_z: Float[Array, " n"] | None = None

    def losses(self, options: LossOptions, axis: str | None) -> Float[Array, " n"]:
        """Loss of each position, before its weight."""
        hard = self.nats + Z_LOSS * self.log_z**2
        if self.p is None:
            return hard
        mix = options.mix
        assert mix and self.soft_log_z is not None
        expected = _over_shards(jnp.sum(self.p * self.logits, -1), axis) / mix.temperature
        return mix.hard * hard + mix.soft * mix.temperature**2 * (self.soft_log_z - expected)

    def d_logits(self, options: LossOptions) -> Float[Array, "n columns"]:
        """Gradient of :meth:`losses` to the logits."""
        hard = jnp.exp(self.logits - self.log_z[:, None]) * (1 + 2 * Z_LOSS * self.log_z)[:, None] - self.is_target
        if self.p is None:
            return hard
        mix = options.mix
        assert mix and self.soft_log_z is not None
        q = jnp.exp(self.logits / mix.temperature - self.soft_log_z[:, None])
        return mix.hard * hard + mix.soft * mix.temperature * (q - self.p)


def score_chunk(
    h: Float[Array, "n D"],
    e: Float[Array, "R D"],
    labels: Labels,
    table: Float[Array, "S E"] | None,
    options: LossOptions,
    axis: str | None = None,
) -> _Scored:
    """Logits of a chunk, compared with its labels; ``table`` is the teacher's embedding, where its hidden states are the soft targets."""
    logits, ids = _chunk_logits(h, e, options, axis)
    log_z = _log_normalizer(logits, axis)
    is_target = labels.targets[:, None] == ids[None]
    nats = log_z - _over_shards(jnp.sum(jnp.where(is_target, logits, 0), -1), axis)
    if labels.soft is None:
        return _Scored(logits, log_z, is_target, nats)
    assert options.mix is not None
    T = options.mix.temperature
    soft_log_z = log_z if T == 1 else _log_normalizer(logits / T, axis)
    return _Scored(
        logits, log_z, is_target, nats, _soft_probabilities(labels.soft, table, ids, options, axis), soft_log_z
    )


def chunk_loss(
    hidden: Float[Array, "n D"],
    embedding: Float[Array, "R D"],
    labels: Labels,
    table: Float[Array, "S E"] | None,
    options: LossOptions,
    axis: str | None = None,
) -> ChunkLoss:
    """Loss sum, nats of each position, gradients to hidden and embedding. With ``axis``, the embedding is one shard along that axis."""
    cap, factors = options.softcap, options.code_factors
    h, e = hidden.astype(options.dtype), embedding.astype(options.dtype)
    scored = score_chunk(h, e, labels, table, options, axis)
    loss = jnp.sum(labels.weights * scored.losses(options, axis))
    d_logits = scored.d_logits(options)
    if cap is not None:
        d_logits = d_logits * (1 - (scored.logits / cap) ** 2)
    d_logits = d_logits * labels.weights[:, None]
    d_scores = (
        collapse_gradient(d_logits, factors) if axis is None else collapse_gradient_shard(d_logits, factors, axis)
    ).astype(options.dtype)
    d_hidden = jax.lax.dot_general(d_scores, e, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    if options.frozen_rows == len(e):
        d_embedding = jnp.zeros((0, h.shape[1]), jnp.float32)
    else:
        d_embedding = weight_gradient(d_scores[:, options.frozen_rows :], h)
    return loss, scored.nats, d_hidden, d_embedding
