"""The training loop: phases of mixtures, one jitted step, checkpoints, resume bit for bit.

    phase 1 ──────────────────────────────► phase 2 (tasks weighted up) ───►
    batch ─ step ─ batch ─ step ─ … ─ checkpoint ─ …

The batch of step n depends on the seed and n alone; killed at any moment, the loop goes on from the last checkpoint and ends with
the very same parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from alhena.model import config, model
from alhena.pretrain.checkpoint import Checkpoints
from alhena.pretrain.loss import Tally
from alhena.pretrain.metrics import Metrics, by_modality
from alhena.pretrain.optimizer import Optimizer, optimizer
from alhena.pretrain.step import State, eval_step, start, train_step
from alhena.tokens.batch import Batch
from alhena.tokens.loader import Batches, Shape, once
from alhena.tokens.store import Examples


@dataclass(frozen=True)
class Phase:
    """A number of steps on one mixture: weights by source."""

    steps: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    phases: tuple[Phase, ...]
    shape: Shape
    optimizer: Optimizer
    seed: int = 0
    save_every: int = 100
    log_every: int = 10
    evaluate_every: int = 200
    ignored_weight: float = 0.0  # targets of this loss weight or less are not learned (tuning: those of questions)

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


def open_examples(folder: Path) -> dict[str, Examples]:
    """Encoded examples by source."""
    return {file.stem: Examples(file) for file in sorted(folder.glob("*.arrow"))}


class _Mixture:
    """The batches of all phases in turn; ``state`` names the phase and the place in it."""

    def __init__(self, sources: Mapping[str, Examples], t: Training) -> None:
        self._sources, self._t, self._phase, self._done = sources, t, 0, 0
        self._open(0)

    def _open(self, phase: int) -> None:
        self._phase, self._done = phase, 0
        weights = self._t.phases[phase].weights
        self._batches = Batches(self._sources, weights, self._t.shape, self._t.seed + 1000 * phase)

    def next(self) -> Batch:
        if self._done == self._t.phases[self._phase].steps:
            self._open(self._phase + 1)
        self._done += 1
        batch = next(self._batches)
        return replace(batch, weights=batch.weights * (batch.weights > self._t.ignored_weight))

    def state(self) -> dict:
        return {"phase": self._phase, "done": self._done, "batches": self._batches.state()}

    def restore(self, state: Mapping) -> None:
        self._open(state["phase"])
        self._batches.restore(state["batches"])
        self._done = state["done"]


def validate(params: model.Params, c: config.Model, sources: Mapping[str, Examples], shape: Shape) -> dict[str, float]:
    """Mean nats per weighted token of a validation split, by source."""
    out = {}
    for name, examples in sources.items():
        tallies = [eval_step(params, batch, c) for batch in once({name: examples}, shape)]
        weight = float(np.sum([t.weight for t in tallies]))
        if weight:
            out[name] = round(float(np.sum([t.nats for t in tallies])) / weight, 4)
    return out


@dataclass
class _Window:
    """Measurements since the last log line."""

    tallies: list[Tally]
    tokens: int
    since: float

    def report(self, state: State, loss: jax.Array, norm: jax.Array) -> dict[str, float]:
        loss.block_until_ready()  # steps are queued ahead of their results
        seconds = time.monotonic() - self.since
        return {
            "loss": round(float(loss), 4),
            "gradient_norm": round(float(norm), 3),
            "tokens_per_second": round(self.tokens / max(seconds, 1e-9), 1),
        }


def train(
    params: model.Params,
    c: config.Model,
    t: Training,
    data: Path,
    out: Path,
    title: str,
    validation: Path | None = None,
    stop_after: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> model.Params:
    """Trains from ``params`` (or from the last checkpoint under ``out``) to the end of the last phase.

    ``stop_after`` leaves after that many steps, saved, as Ctrl-C does. Logs go to ``out/metrics.jsonl`` and ``out/tensorboard``.
    """
    transform = optimizer(t.optimizer, t.steps)
    state, mixture, checkpoints = (
        start(params, transform),
        _Mixture(open_examples(data), t),
        Checkpoints(out / "checkpoints"),
    )
    held = open_examples(validation) if validation else {}
    if checkpoints.latest() is not None:
        _, state, place = checkpoints.restore(state)
        mixture.restore(place)
    last = min(t.steps, stop_after or t.steps)
    try:
        with Metrics(out, title, t.steps, int(state.step)) as metrics:
            state = _steps(state, c, t, transform, mixture, checkpoints, metrics, held, last, on_step)
    finally:
        checkpoints.close()
    return state.params


def _steps(state, c, t, transform, mixture, checkpoints, metrics, held, last, on_step) -> State:
    window = _Window([], 0, time.monotonic())
    for step in range(int(state.step) + 1, last + 1):
        batch = mixture.next()
        state, measured = train_step(state, batch, c, transform)
        window.tallies.append(measured.tally)
        window.tokens += int((batch.segments > 0).sum())
        if step % t.log_every == 0 or step == last:
            values = window.report(state, measured.loss, measured.gradient_norm)
            metrics.write(step, values, by_modality(window.tallies))
            window = _Window([], 0, time.monotonic())
        if held and (step % t.evaluate_every == 0 or step == t.steps):
            metrics.write(step, {}, validate(state.params, c, held, t.shape), "validation")
        if step % t.save_every == 0 or step == last:
            checkpoints.save(step, state, mixture.state())
        metrics.advance(step)
        on_step(step)
    return state
