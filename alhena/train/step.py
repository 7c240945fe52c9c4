"""One training step, jitted: state and batch in, state and measurements out; buffers are donated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alhena.batch import Batch
from alhena.model import config, model, sharding, spec
from alhena.recovery.anomalies import RecentSteps, check_step, no_recent_steps
from alhena.shapes import Array, Bool, Float, Int, Shaped, pytree
from alhena.train.loss import LossSums, batch_loss

LossAndGradient = tuple[tuple[Float[Array, ""], LossSums], model.Params]


@pytree
@dataclass(frozen=True)
class State:
    """Everything that one step passes to the next, and a checkpoint holds."""

    step: Int[Array, ""]
    params: model.Params
    optimizer: optax.OptState
    recent: RecentSteps


@pytree
@dataclass(frozen=True)
class StepMetrics:
    """Measurements of one step. ``good`` is false for an anomaly, whose update is skipped."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    good: Bool[Array, ""]
    sums: LossSums


def initial_state(params: model.Params, c: config.Model, transform: optax.GradientTransformation) -> State:
    """The state before the first step, on a mesh sharded by the weights' specifications."""
    state = State(jnp.zeros((), jnp.int32), params, transform.init(params), no_recent_steps())
    return sharding.shard(state, spec.shardings(state, model.weights(c)))


def loss_and_gradient(params: model.Params, c: config.Model, batch: Batch) -> LossAndGradient:
    """Loss, its sums by modality, and the gradient."""
    return jax.value_and_grad(batch_loss, has_aux=True)(params, c, batch)


def accumulated_gradient(params: model.Params, c: config.Model, batch: Batch, parts: int) -> LossAndGradient:
    """:func:`loss_and_gradient`, one part of the batch after the other; each part counts by its share of the loss weight."""

    def split(x: Shaped[Array, "B ..."]) -> Shaped[Array, "parts part_size ..."]:
        """Every part has sequences of every device, so that none has to move."""
        x = jnp.asarray(x).reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        (loss, sums), gradient = loss_and_gradient(params, c, part)
        share = jnp.maximum(part.weights.sum(), 1.0) / jnp.maximum(batch.weights.sum(), 1.0)
        gradient = jax.tree.map(lambda g: (share * g).astype(g.dtype), gradient)
        return jax.tree.map(jnp.add, total, ((share * loss, sums), gradient)), None

    stacked = jax.tree.map(split, batch)
    shapes = jax.eval_shape(lambda b: loss_and_gradient(params, c, b), jax.tree.map(lambda x: x[0], stacked))
    (loss, sums), gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradient = spec.constrain(gradient, model.weights(c))
    return jax.lax.scan(add, ((loss, sums), gradient), stacked)[0]


@partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def train_step(
    state: State, batch: Batch, c: config.Model, transform: optax.GradientTransformation, parts: int = 1
) -> tuple[State, StepMetrics]:
    """The state after one step, and its measurements. An anomaly (:mod:`alhena.recovery.anomalies`) changes nothing but the counts of steps.

    With ``parts`` the gradient is accumulated over as many parts of the batch: the same step, in the memory of one part.
    """
    gradient_of = loss_and_gradient if parts == 1 else partial(accumulated_gradient, parts=parts)
    (loss, sums), gradient = gradient_of(state.params, c, batch)
    norm = optax.global_norm(gradient)
    updates, moments = transform.update(gradient, state.optimizer, state.params)
    good, recent = check_step(state.recent, loss, norm)
    params, moments = jax.tree.map(
        partial(jnp.where, good), (optax.apply_updates(state.params, updates), moments), (state.params, state.optimizer)
    )
    after = State(state.step + 1, params, moments, recent)
    return spec.constrain(after, model.weights(c)), StepMetrics(loss, norm, good, sums)


@partial(jax.jit, static_argnums=2)
def eval_step(params: model.Params, batch: Batch, c: config.Model) -> LossSums:
    """Loss sums of a batch, by modality."""
    return batch_loss(params, c, batch)[1]
