"""One training step, jitted: state and batch in, state and measurements out; buffers are donated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from alhena.model import config, model
from alhena.pretrain.loss import Tally, batch_loss
from alhena.shapes import Array, Float, Int
from alhena.tokens.batch import Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    step: Int[Array, ""]
    params: model.Params
    optimizer: optax.OptState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Measured:
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    tally: Tally


def start(params: model.Params, transform: optax.GradientTransformation) -> State:
    return State(jnp.zeros((), jnp.int32), params, transform.init(params))


@partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
def train_step(
    state: State, batch: Batch, c: config.Model, transform: optax.GradientTransformation
) -> tuple[State, Measured]:
    """A step that meets a loss or gradient that is no finite number changes nothing but the step count."""
    (loss, tally), gradient = jax.value_and_grad(batch_loss, has_aux=True)(state.params, c, batch)
    norm = optax.global_norm(gradient)
    updates, moments = transform.update(gradient, state.optimizer, state.params)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    params, moments = jax.tree.map(
        partial(jnp.where, good), (optax.apply_updates(state.params, updates), moments), (state.params, state.optimizer)
    )
    return State(state.step + 1, params, moments), Measured(loss, norm, tally)


@partial(jax.jit, static_argnums=2)
def eval_step(params: model.Params, batch: Batch, c: config.Model) -> Tally:
    return batch_loss(params, c, batch)[1]
