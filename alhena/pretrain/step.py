"""One training step, jitted: state and batch in, state and measurements out; buffers are donated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from alhena.model import config, model, sharding
from alhena.pretrain.loss import Tally, batch_loss
from alhena.pretrain.trouble import Recent, judge, nothing_yet
from alhena.shapes import Array, Bool, Float, Int
from alhena.tokens.batch import Batch


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


def start(params: model.Params, transform: optax.GradientTransformation) -> State:
    """The state before the first step, on a mesh cut as its table says."""
    state = State(jnp.zeros((), jnp.int32), params, transform.init(params), nothing_yet())
    return sharding.place(state, sharding.specs(state))


@partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
def train_step(
    state: State, batch: Batch, c: config.Model, transform: optax.GradientTransformation
) -> tuple[State, Measured]:
    """A step that meets trouble (:mod:`alhena.pretrain.trouble`) changes nothing but the counts of steps."""
    (loss, tally), gradient = jax.value_and_grad(batch_loss, has_aux=True)(state.params, c, batch)
    norm = optax.global_norm(gradient)
    updates, moments = transform.update(gradient, state.optimizer, state.params)
    good, recent = judge(state.recent, loss, norm)
    params, moments = jax.tree.map(
        partial(jnp.where, good), (optax.apply_updates(state.params, updates), moments), (state.params, state.optimizer)
    )
    after = State(state.step + 1, params, moments, recent)
    return sharding.constrain_params(after), Measured(loss, norm, good, tally)


@partial(jax.jit, static_argnums=2)
def eval_step(params: model.Params, batch: Batch, c: config.Model) -> Tally:
    return batch_loss(params, c, batch)[1]
