"""Objectives other than the cross-entropy of the targets: what a training asks of them, and the batch that its steps then read.

    batch ─ objective.outputs ─► arrays of every position ─┐
    objective.constants, once ─► arrays of every step ─────┼─ objective.loss ─► loss, LossSums
    params, batch ─────────────────────────────────────────┘

Distillation (alhena/compress/distill.py) is one: the outputs are a teacher's. The outputs of a batch may depend on the batch alone, so
that a resumed training is the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, no_type_check, runtime_checkable

import jax

from alhena.batch import Batch
from alhena.model import config, model
from alhena.shapes import Array, Float
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.train.loss import LossSums

# Params, configuration, batch, outputs, constants. It is part of the compiled step, so it must be hashable.
LossFunction = Callable[[model.Params, config.Model, Batch, Any, Any], tuple[Float[Array, ""], LossSums]]


@runtime_checkable
class Objective(Protocol):
    """What a training minimizes in place of :func:`alhena.train.loss.batch_loss`."""

    @property
    def identity(self) -> str:
        """Fingerprint of everything that the loss depends on besides model, settings and data of the training."""

    @property
    def loss(self) -> LossFunction: ...

    def constants(self) -> Any:
        """Arrays that every step reads. Called once, with the mesh of the training set."""

    def outputs(self, batch: Batch, sharded: Batch) -> Any:
        """Arrays ``[B, L, …]`` that belong to the positions of a batch, which comes as on the host and as placed on the mesh."""

    def losses(self, sources: Mapping[str, Examples], shape: BatchShape) -> dict[str, float]:
        """The teacher's own loss on a validation split, by source; after ``constants``."""


@partial(jax.tree_util.register_dataclass, data_fields=("batch", "outputs"), meta_fields=("loss",))
@no_type_check
@dataclass(frozen=True)
class TaughtBatch:
    """A batch with the outputs and the loss of an objective."""

    batch: Batch
    outputs: Any
    loss: LossFunction

    @property
    def weights(self) -> Float[Array, "B L"]:
        return self.batch.weights
