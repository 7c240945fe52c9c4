"""The training loop: phases of mixtures, one jitted step, checkpoints, resume bit for bit.

    phase 1 ──────────────────────────────► phase 2 (tasks weighted up) ───►
    batch ─ step ─ batch ─ step ─ … ─ checkpoint ─ …

The batch of step n depends on the seed and n alone; killed at any moment, the loop goes on from the last checkpoint and ends with
the very same parameters. Every step leaves its fingerprint (:mod:`alhena.pretrain.replay` compares them), trouble is skipped, then
gone back from, then told (:mod:`alhena.pretrain.trouble`), and where the time went stands in a ledger
(:mod:`alhena.pretrain.goodput`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optax

from alhena.artifacts import write_json
from alhena.model import config, model, sharding
from alhena.pretrain.checkpoint import Checkpoints
from alhena.pretrain.fingerprints import Fingerprints, Taken, take
from alhena.pretrain.goodput import Ledger, goodput
from alhena.pretrain.growth import SPAN, begins_to_grow
from alhena.pretrain.metrics import FACTS, Metrics, by_modality
from alhena.pretrain.optimizer import Optimizer, optimizer
from alhena.pretrain.step import Measured, State, eval_step, start, train_step
from alhena.pretrain.trouble import Streak, another_phase
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
    mesh: sharding.Mesh | None = None  # chips to train on; None: one device

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


def open_examples(folder: Path) -> dict[str, Examples]:
    """Encoded examples by source."""
    return {file.stem: Examples(file) for file in sorted(folder.glob("*.arrow"))}


class Mixture:
    """The batches of all phases in turn; ``state`` names the phase and the place in it.

    No other thread or process reads ahead: their number could not change the order, since there is none.
    """

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

    def begins_phase(self) -> bool:
        """Whether the batch just given is the first of its phase."""
        return self._done == 1

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
    """Measurements of the good steps since the last log line."""

    measured: list[Measured] = field(default_factory=list)
    tokens: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, measured: Measured, batch: Batch) -> None:
        self.measured.append(measured)
        self.tokens += int((np.asarray(batch.segments) > 0).sum())

    def report(self, skipped: int) -> dict[str, float]:
        last = self.measured[-1]
        return {
            "loss": round(float(last.loss), 4),
            "gradient_norm": round(float(last.gradient_norm), 3),
            "tokens_per_second": round(self.tokens / max(time.monotonic() - self.since, 1e-9), 1),
            **({"skipped": skipped} if skipped else {}),
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

    ``stop_after`` leaves after that many steps, saved, as Ctrl-C does. Beside the checkpoints ``out`` gets metrics.jsonl,
    tensorboard, fingerprints.jsonl (for replay) and ledger.jsonl (goodput). Raises ValueError when trouble does not go away.
    """
    ledger, transform, mixture = Ledger(out), optimizer(t.optimizer, t.steps), Mixture(open_examples(data), t)
    facts = {"title": title, "parameters": model.count(params), "steps": t.steps, "warmup": t.optimizer.warmup}
    write_json(out / FACTS, facts)
    with sharding.on(t.mesh), closing(Checkpoints(out / "checkpoints")) as checkpoints:
        state = start(params, transform)
        if checkpoints.latest() is not None:
            _, state, place = checkpoints.restore(state)
            mixture.restore(place)
        begin = int(state.step)
        ledger.resumed(begin)
        held, last = open_examples(validation) if validation else {}, min(t.steps, stop_after or t.steps)
        with Metrics(out, title, t.steps, begin) as metrics:
            logs = _Logs(metrics, Fingerprints(out, begin), ledger, Streak(out / "trouble"))
            state = _steps(state, c, t, transform, mixture, checkpoints, logs, held, last, on_step)
            checkpoints.close()
            ledger.mark("save", last)
            metrics.say(str(goodput(out)))
    return state.params


def advance(
    state: State, mixture: Mixture, c: config.Model, transform: optax.GradientTransformation
) -> tuple[State, Batch, Measured]:
    """The next batch and the step on it: what training does, and a replay again."""
    batch = mixture.next()
    if mixture.begins_phase():
        state = replace(state, recent=another_phase(state.recent))
    state, measured = train_step(state, sharding.place(batch, sharding.batch_specs(batch)), c, transform)
    return state, batch, measured


@dataclass
class _Logs:
    """Everything that is told of steps. Steps are looked at one behind, so that the device is never kept waiting."""

    metrics: Metrics
    prints: Fingerprints
    ledger: Ledger
    streak: Streak
    ahead: deque[Taken] = field(default_factory=deque)
    window: _Window = field(default_factory=_Window)

    def look(self, keep: int) -> None:
        """Looks at all steps but the last ``keep``: fingerprints, sums of the window, trouble."""
        while len(self.ahead) > keep and not self.streak.is_long():
            taken = self.ahead.popleft()
            self.prints.write(taken.read())
            m, good = taken.measured, bool(taken.measured.good)
            self.streak.see(taken.step, taken.batch, float(m.loss), float(m.gradient_norm), good)
            if good:
                self.window.add(m, taken.batch)

    def write(self, step: int, skipped: int, warmup: int) -> None:
        if self.window.measured:
            self.metrics.write(step, self.window.report(skipped), by_modality([m.tally for m in self.window.measured]))
            for name, factor in begins_to_grow([*self.metrics.recent], warmup).items():
                self.metrics.say(f"early warning, step {step}: {name} keeps growing, {factor}-fold in {SPAN} log lines")
        self.window = _Window()

    def forget(self, step: int) -> None:
        """What came after ``step`` will be done again."""
        self.ahead.clear()
        self.window = _Window()
        self.metrics.cut(step)
        self.prints.cut(step)
        self.ledger.mark("rollback", step)


def _steps(state, c, t, transform, mixture, checkpoints, logs, held, last, on_step) -> State:
    first = step = int(state.step)
    while step < last:
        step += 1
        state, batch, measured = advance(state, mixture, c, transform)
        logs.ahead.append(take(step, batch, state, measured))
        writes, saves = step % t.log_every == 0 or step == last, step % t.save_every == 0 or step == last
        validates = held and (step % t.evaluate_every == 0 or step == t.steps)
        logs.look(keep=0 if writes or saves or validates or step == first + 1 else 1)
        if logs.streak.is_long():
            logs.metrics.say(logs.streak.go_back(checkpoints.latest()))
            step, state, place = checkpoints.restore(state)
            mixture.restore(place)
            logs.forget(step)
            continue
        if step == first + 1:
            logs.ledger.mark("compile", step)
        elif writes or saves or validates:
            logs.ledger.mark("steps", step)
        if writes:
            logs.write(step, int(state.recent.skipped), t.optimizer.warmup)
        if validates:
            logs.metrics.write(step, {}, {"loss": validate(state.params, c, held, t.shape)}, "validation")
            logs.ledger.mark("validate", step)
        if saves and (logs.streak.length == 0 or step == last):
            checkpoints.save(step, state, mixture.state())
            logs.ledger.mark("save", step)
        logs.metrics.advance(step)
        on_step(step)
    return state
