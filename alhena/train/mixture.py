"""Settings of a training, and its batches: phases of mixtures of sources, deterministic and resumable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alhena.batch import Batch
from alhena.model import sharding
from alhena.processes import gather_from_processes
from alhena.tokens.examples.loader import Batches
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.train.optimizer import Optimizer


@dataclass(frozen=True)
class Phase:
    """A number of steps on one mixture: weights by source."""

    steps: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """Everything that decides the trained parameters besides the model and the data, and how often state is saved and logged."""

    phases: tuple[Phase, ...]
    shape: BatchShape
    optimizer: Optimizer
    seed: int = 0
    save_every: int = 100
    log_every: int = 10
    evaluate_every: int = 200
    # Targets of this loss weight or less are not learned (in tuning: those of questions).
    ignored_loss_weight: float = 0.0
    # Devices to train on; None: one device.
    mesh: sharding.Mesh | None = None
    # Each data shard reads its share of the documents and packs its share of the batch; processes divide the shards.
    data_shards: int = 1
    # Parts of a batch whose gradients are summed one after the other, where the batch does not fit at once.
    gradient_accumulation: int = 1
    # Steps between copies of the state in every host's memory, for meshes of several pods; 0: none.
    memory_checkpoint_every: int = 0

    def __post_init__(self) -> None:
        if self.shape.batch_size % self.data_shards:
            raise ValueError(
                f"Training.data_shards: a batch of {self.shape.batch_size} sequences cannot be divided among "
                f"{self.data_shards} data shards; choose a divisor"
            )
        if self.gradient_accumulation < 1 or self.shape.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"Training.gradient_accumulation: a batch of {self.shape.batch_size} sequences cannot be split into "
                f"{self.gradient_accumulation} parts; choose a divisor"
            )
        if self.memory_checkpoint_every and self.mesh is None:
            raise ValueError(
                "Training.memory_checkpoint_every: in-memory checkpoints need a mesh; set Training.mesh, or 0"
            )

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Token positions of all steps."""
        return self.steps * self.shape.batch_tokens

    def identity(self) -> Training:
        """What decides the parameters: without the mesh, and without how often something is saved, logged or measured."""
        return replace(self, mesh=None, memory_checkpoint_every=0, save_every=0, log_every=0, evaluate_every=0)

    def with_batch_size(self, batch_size: int) -> Training:
        """The same number of tokens in steps of another size."""
        factor = self.shape.batch_size
        phases = tuple(replace(phase, steps=round(phase.steps * factor / batch_size)) for phase in self.phases)
        return replace(self, phases=phases, shape=replace(self.shape, batch_size=batch_size))


def open_examples(folder: Path) -> dict[str, Examples]:
    """Encoded examples by source."""
    return {file.stem: Examples(file) for file in sorted(folder.glob("*.arrow"))}


class Mixture:
    """The batches of all phases in order; ``state`` holds the phase and the position in it.

    Every process packs the sequences of its own data shards. The complete batch depends on the number of data shards, not on that of
    processes, so a training may resume with fewer or more processes. No thread reads ahead: the order could depend on it.
    """

    def __init__(self, sources: Mapping[str, Examples], t: Training) -> None:
        processes = jax.process_count() if t.mesh else 1
        if t.data_shards % processes:
            raise ValueError(
                f"{t.data_shards} data shards cannot be divided among {processes} processes: set Training.data_shards"
            )
        share = t.data_shards // processes
        first = share * jax.process_index() if t.mesh else 0
        self._local = range(first, first + share)
        self._sources, self._t = sources, t
        self._open(0)

    def _open(self, phase: int) -> None:
        t = self._t
        self._phase, self._steps_done = phase, 0
        shape, seed = replace(t.shape, batch_size=t.shape.batch_size // t.data_shards), t.seed + 1000 * phase
        weights = t.phases[phase].weights
        self._shards = [Batches(self._sources, weights, shape, seed, (k, t.data_shards)) for k in self._local]

    def next(self) -> Batch:
        if self._steps_done == self._t.phases[self._phase].steps:
            self._open(self._phase + 1)
        self._steps_done += 1
        batch = jax.tree.map(lambda *parts: np.concatenate(parts), *(next(shard) for shard in self._shards))
        return replace(batch, weights=batch.weights * (batch.weights > self._t.ignored_loss_weight))

    def begins_phase(self) -> bool:
        """Whether the last batch was the first of its phase."""
        return self._steps_done == 1

    def state(self) -> dict[str, Any]:
        """JSON state of all data shards, of every process."""
        local = [shard.state() for shard in self._shards]
        by_process = gather_from_processes(local) if self._t.mesh else [local]
        states = [state for states in by_process for state in states]
        return {"phase": self._phase, "steps_done": self._steps_done, "data_shards": states}

    def restore(self, state: Mapping[str, Any]) -> None:
        if len(state["data_shards"]) != self._t.data_shards:
            raise ValueError(
                f"the checkpoint has {len(state['data_shards'])} data shards, Training.data_shards is {self._t.data_shards}"
            )
        self._open(state["phase"])
        for k, shard in zip(self._local, self._shards, strict=True):
            shard.restore(state["data_shards"][k])
        self._steps_done = state["steps_done"]
