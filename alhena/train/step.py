"""One training step, jitted: state and batch in, state and measurements out; buffers are donated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alhena.batch import Batch
from alhena.model import config, lora, model, sharding, spec
from alhena.model.transformer.embedding import Extended, joined
from alhena.recovery.anomalies import RecentSteps, check_step, no_recent_steps
from alhena.shapes import Array, Bool, Float, Int, Shaped, pytree
from alhena.train.loss import LossSums, batch_loss
from alhena.train.objective import Objective, TaughtBatch

# What is trained: all weights, or adapters beside frozen ones.
Trained = model.Params | lora.Adapters
LossAndGradient = tuple[tuple[Float[Array, ""], LossSums], Trained]


@pytree
@dataclass(frozen=True)
class Constants:
    """Arrays of an objective that every step reads, and what is frozen besides."""

    of_objective: Any
    frozen: model.Params | Array | None


# What is not trained: the params beside adapters, or the embedding whose last rows are trained. What a step reads besides.
Untrained = model.Params | Array
Frozen = Untrained | Constants


@pytree
@dataclass(frozen=True)
class State:
    """Everything that one step passes to the next, and a checkpoint holds."""

    step: Int[Array, ""]
    params: Trained
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


@dataclass(frozen=True)
class Adapted:
    """A model to be tuned by adapters: its frozen params, and the adapters before their first step."""

    frozen: model.Params
    adapters: lora.Adapters


@dataclass(frozen=True)
class Taught:
    """A model to be trained with an objective of its own."""

    params: model.Params | Adapted
    objective: Objective


def objective_of(params: model.Params | Adapted | Taught) -> tuple[model.Params | Adapted, Objective | None]:
    """The model, and its objective if it has one of its own."""
    return (params.params, params.objective) if isinstance(params, Taught) else (params, None)


def with_constants(frozen: Untrained | None, objective: Objective | None) -> Frozen | None:
    """What a step reads besides the state and the batch; called with the mesh of the training set."""
    return frozen if objective is None else Constants(objective.constants(), frozen)


def split(params: model.Params | Adapted, c: config.Model) -> tuple[Trained, Untrained | None]:
    """What is trained of a model, and what is not.

    Where rows of the embedding are frozen, the trained params have only the others, and its table is frozen.
    """
    if isinstance(params, Adapted):
        return params.adapters, params.frozen
    if not c.frozen_rows:
        return params, None
    assert isinstance(params.embedding, Array)
    return replace(params, embedding=params.embedding[c.frozen_rows :]), params.embedding


def complete(trained: Trained, frozen: Frozen | None) -> model.Params:
    """The model in training: what is trained, with what is frozen beside it."""
    if isinstance(frozen, Constants):
        return complete(trained, frozen.frozen)
    if isinstance(trained, lora.Adapters):
        assert isinstance(frozen, model.Params)
        return lora.attach(frozen, trained)
    if frozen is None:
        return trained
    assert isinstance(frozen, Array) and isinstance(trained.embedding, Array)
    return replace(trained, embedding=Extended(frozen, trained.embedding))


def result(trained: Trained, frozen: Frozen | None) -> Trained:
    """What a training returns: adapters, or complete params."""
    if isinstance(trained, lora.Adapters) or frozen is None:
        return trained
    params = complete(trained, frozen)
    assert isinstance(params.embedding, Extended)
    return replace(params, embedding=joined(params.embedding))


def trained_specs(trained: Trained, c: config.Model) -> Any:
    """Specifications of what is trained."""
    if isinstance(trained, lora.Adapters):
        return lora.weights_like(trained, model.weights(c))
    specs: Any = model.weights(c)
    rows, width = specs.embedding.shape
    return replace(specs, embedding=replace(specs.embedding, shape=(rows - c.frozen_rows, width)))


def initial_state(params: Trained, c: config.Model, transform: optax.GradientTransformation) -> State:
    """The state before the first step, on a mesh sharded by the weights' specifications."""
    state = State(jnp.zeros((), jnp.int32), params, transform.init(params), no_recent_steps())
    return sharding.shard(state, spec.shardings(state, trained_specs(params, c)))


def loss_and_gradient(
    params: Trained, c: config.Model, batch: Batch | TaughtBatch, frozen: Frozen | None = None
) -> LossAndGradient:
    """Loss, its sums by modality, and the gradient."""

    def loss(trained: Trained) -> tuple[Float[Array, ""], LossSums]:
        model_params = complete(trained, frozen)
        if isinstance(batch, Batch):
            return batch_loss(model_params, c, batch)
        assert isinstance(frozen, Constants)
        return batch.loss(model_params, c, batch.batch, batch.outputs, frozen.of_objective)

    return jax.value_and_grad(loss, has_aux=True)(params)


def accumulated_gradient(
    params: Trained, c: config.Model, batch: Batch | TaughtBatch, parts: int, frozen: Frozen | None = None
) -> LossAndGradient:
    """:func:`loss_and_gradient`, one part of the batch after the other; each part counts by its share of the loss weight."""

    def split(x: Shaped[Array, "B ..."]) -> Shaped[Array, "parts part_size ..."]:
        """Every part has sequences of every device, so that none has to move."""
        x = jnp.asarray(x).reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    def add(total: Any, part: Batch | TaughtBatch) -> tuple[Any, None]:
        (loss, sums), gradient = loss_and_gradient(params, c, part, frozen)
        share = jnp.maximum(part.weights.sum(), 1.0) / jnp.maximum(batch.weights.sum(), 1.0)
        gradient = jax.tree.map(lambda g: (share * g).astype(g.dtype), gradient)
        return jax.tree.map(jnp.add, total, ((share * loss, sums), gradient)), None

    stacked = jax.tree.map(split, batch)
    shapes = jax.eval_shape(lambda b: loss_and_gradient(params, c, b, frozen), jax.tree.map(lambda x: x[0], stacked))
    (loss, sums), gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradient = spec.constrain(gradient, trained_specs(params, c))
    return jax.lax.scan(add, ((loss, sums), gradient), stacked)[0]


@partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def train_step(
    state: State,
    batch: Batch | TaughtBatch,
    c: config.Model,
    transform: optax.GradientTransformation,
    parts: int = 1,
    frozen: Frozen | None = None,
) -> tuple[State, StepMetrics]:
    """The state after one step, and its measurements. An anomaly (:mod:`alhena.recovery.anomalies`) changes nothing but the counts of steps.

    With ``parts`` the gradient is accumulated over as many parts of the batch: the same step, in the memory of one part.
    ``frozen`` weights are those beside the params (:func:`split`).
    """
    if parts == 1:
        (loss, sums), gradient = loss_and_gradient(state.params, c, batch, frozen)
    else:
        (loss, sums), gradient = accumulated_gradient(state.params, c, batch, parts, frozen)
    norm = optax.global_norm(gradient)
    updates, moments = transform.update(gradient, state.optimizer, state.params)
    good, recent = check_step(state.recent, loss, norm)
    params, moments = jax.tree.map(
        partial(jnp.where, good), (optax.apply_updates(state.params, updates), moments), (state.params, state.optimizer)
    )
    after = State(state.step + 1, params, moments, recent)
    return spec.constrain(after, trained_specs(state.params, c)), StepMetrics(loss, norm, good, sums)


@partial(jax.jit, static_argnums=2)
def eval_step(params: model.Params, batch: Batch, c: config.Model) -> LossSums:
    """Loss sums of a batch, by modality."""
    return batch_loss(params, c, batch)[1]
