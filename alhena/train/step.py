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
from alhena.shapes import Array, Bool, Float, Int, pytree
from alhena.train.loss import LossSums, batch_loss


@pytree
@dataclass(frozen=True)
class State:
    step: Int[Array, ""]
    params: model.Params
    optimizer: optax.OptState
    recent: RecentSteps


@pytree
@dataclass(frozen=True)
class StepMetrics:
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    good: Bool[Array, ""]
    tally: LossSums


def initial_state(params: model.Params, c: config.Model, transform: optax.GradientTransformation) -> State:
    """The state before the first step, on a mesh sharded as the specifications of the weights say."""
    state = State(jnp.zeros((), jnp.int32), params, transform.init(params), no_recent_steps())
    return sharding.shard(state, spec.shardings(state, model.weights(c)))


def loss_and_gradient(
    params: model.Params, c: config.Model, batch: Batch
) -> tuple[tuple[Array, LossSums], model.Params]:
    """Loss and tally, and the gradient."""
    return jax.value_and_grad(batch_loss, has_aux=True)(params, c, batch)


def accumulated_gradient(
    params: model.Params, c: config.Model, batch: Batch, parts: int
) -> tuple[tuple[Array, LossSums], model.Params]:
    """What :func:`slope` gives, of one part of the batch after the other: each counts by its share of the loss weight."""

    def cut(x: Array) -> Array:
        """[B, …] → [parts, B/parts, …]; every part has rows of every chip, so that none has to move."""
        x = jnp.asarray(x).reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        (loss, tally), gradient = loss_and_gradient(params, c, part)
        share = jnp.maximum(part.weights.sum(), 1.0) / jnp.maximum(batch.weights.sum(), 1.0)
        gradient = jax.tree.map(lambda g: (share * g).astype(g.dtype), gradient)
        return jax.tree.map(jnp.add, sums, ((share * loss, tally), gradient)), None

    pieces = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(lambda b: loss_and_gradient(params, c, b), jax.tree.map(lambda x: x[0], pieces))
    (loss, tally), gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradient = spec.constrain(gradient, model.weights(c))
    return jax.lax.scan(add, ((loss, tally), gradient), pieces)[0]


@partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def train_step(
    state: State, batch: Batch, c: config.Model, transform: optax.GradientTransformation, parts: int = 1
) -> tuple[State, StepMetrics]:
    """A step that meets trouble (:mod:`alhena.recovery.anomalies`) changes nothing but the counts of steps.

    With ``parts`` the gradient is added up over as many parts of the batch: the same step, in the memory of one part.
    """
    of = loss_and_gradient if parts == 1 else partial(accumulated_gradient, parts=parts)
    (loss, tally), gradient = of(state.params, c, batch)
    norm = optax.global_norm(gradient)
    updates, moments = transform.update(gradient, state.optimizer, state.params)
    good, recent = check_step(state.recent, loss, norm)
    params, moments = jax.tree.map(
        partial(jnp.where, good), (optax.apply_updates(state.params, updates), moments), (state.params, state.optimizer)
    )
    after = State(state.step + 1, params, moments, recent)
    return spec.constrain(after, model.weights(c)), StepMetrics(loss, norm, good, tally)


@partial(jax.jit, static_argnums=2)
def eval_step(params: model.Params, batch: Batch, c: config.Model) -> LossSums:
    return batch_loss(params, c, batch)[1]
