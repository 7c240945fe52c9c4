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
from alhena.recovery.anomalies import Recent, judge, nothing_yet
from alhena.shapes import Array, Bool, Float, Int
from alhena.train.loss import Tally, batch_loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    step: Int[Array, ""]
    params: model.Params
    optimizer: optax.OptState
    recent: Recent


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Measured:
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    good: Bool[Array, ""]
    tally: Tally


def start(params: model.Params, c: config.Model, transform: optax.GradientTransformation) -> State:
    """The state before the first step, on a mesh sharded as the specifications of the weights say."""
    state = State(jnp.zeros((), jnp.int32), params, transform.init(params), nothing_yet())
    return sharding.place(state, spec.shardings(state, model.weights(c)))


def slope(params: model.Params, c: config.Model, batch: Batch) -> tuple[tuple[Array, Tally], model.Params]:
    """Loss and tally, and the gradient."""
    return jax.value_and_grad(batch_loss, has_aux=True)(params, c, batch)


def accumulated(
    params: model.Params, c: config.Model, batch: Batch, parts: int
) -> tuple[tuple[Array, Tally], model.Params]:
    """What :func:`slope` gives, of one part of the batch after the other: each counts by its share of the loss weight."""

    def cut(x: Array) -> Array:
        """[B, …] → [parts, B/parts, …]; every part has rows of every chip, so that none has to move."""
        x = jnp.asarray(x).reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        (loss, tally), gradient = slope(params, c, part)
        share = jnp.maximum(part.weights.sum(), 1.0) / jnp.maximum(batch.weights.sum(), 1.0)
        gradient = jax.tree.map(lambda g: (share * g).astype(g.dtype), gradient)
        return jax.tree.map(jnp.add, sums, ((share * loss, tally), gradient)), None

    pieces = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(lambda b: slope(params, c, b), jax.tree.map(lambda x: x[0], pieces))
    (loss, tally), gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradient = spec.constrain(gradient, model.weights(c))
    return jax.lax.scan(add, ((loss, tally), gradient), pieces)[0]


@partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def train_step(
    state: State, batch: Batch, c: config.Model, transform: optax.GradientTransformation, parts: int = 1
) -> tuple[State, Measured]:
    """A step that meets trouble (:mod:`alhena.recovery.anomalies`) changes nothing but the counts of steps.

    With ``parts`` the gradient is added up over as many parts of the batch: the same step, in the memory of one part.
    """
    of = slope if parts == 1 else partial(accumulated, parts=parts)
    (loss, tally), gradient = of(state.params, c, batch)
    norm = optax.global_norm(gradient)
    updates, moments = transform.update(gradient, state.optimizer, state.params)
    good, recent = judge(state.recent, loss, norm)
    params, moments = jax.tree.map(
        partial(jnp.where, good), (optax.apply_updates(state.params, updates), moments), (state.params, state.optimizer)
    )
    after = State(state.step + 1, params, moments, recent)
    return spec.constrain(after, model.weights(c)), Measured(loss, norm, good, tally)


@partial(jax.jit, static_argnums=2)
def eval_step(params: model.Params, batch: Batch, c: config.Model) -> Tally:
    return batch_loss(params, c, batch)[1]
