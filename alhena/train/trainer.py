"""The training loop: phases of mixtures, one jitted step, checkpoints, resume bit for bit.

    phase 1 ──────────────────────────────► phase 2 (tasks weighted up) ───►
    batch ─ step ─ batch ─ step ─ … ─ checkpoint ─ …

The batch of step n depends on the seed and n alone; killed at any moment, the loop goes on from the last checkpoint and ends with
the very same parameters. SIGTERM and Ctrl-C save a checkpoint after the current step, then end the process. Every step leaves its fingerprint (:mod:`alhena.train.replay` compares them), trouble is skipped, then
gone back from, then told (:mod:`alhena.recovery.anomalies`), and where the time went stands in a ledger
(:mod:`alhena.recovery.goodput`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from alhena.batch import Batch
from alhena.files import write_json
from alhena.model import config, model, sharding
from alhena.processes import StopSignals
from alhena.recovery.anomalies import AnomalyStreak, reset_for_new_phase
from alhena.recovery.checkpoint import Checkpoints
from alhena.recovery.checksum import checksums
from alhena.recovery.fingerprints import Fingerprints, PendingFingerprint, take_fingerprint
from alhena.recovery.goodput import Ledger, goodput
from alhena.recovery.identity import data_fingerprint, run_fingerprint, training_fingerprint
from alhena.recovery.memory_checkpoint import MemoryCheckpoints, gather_from_processes
from alhena.shapes import Array
from alhena.tokens.loader import Batches, BatchShape, batches_in_order
from alhena.tokens.store import Examples
from alhena.train.divergence import SPAN, newly_growing_norms
from alhena.train.metrics import FACTS, Metrics, by_modality
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import State, StepMetrics, eval_step, initial_state, train_step


@dataclass(frozen=True)
class Phase:
    """A number of steps on one mixture: weights by source."""

    steps: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    phases: tuple[Phase, ...]
    shape: BatchShape
    optimizer: Optimizer
    seed: int = 0
    save_every: int = 100
    log_every: int = 10
    evaluate_every: int = 200
    ignored_loss_weight: float = 0.0  # targets of this loss weight or less are not learned (tuning: those of questions)
    mesh: sharding.Mesh | None = None  # chips to train on; None: one device
    data_shards: int = (
        1  # each reads its share of the documents and packs its share of the rows; processes divide them among them
    )
    gradient_accumulation: int = (
        1  # parts of a batch whose gradients are added up in turn, where it does not fit at once
    )
    memory_checkpoint_every: int = (
        0  # steps between copies of the state in every host's memory, for meshes of several pods; 0: none
    )

    def __post_init__(self) -> None:
        if self.shape.batch_size % self.data_shards:
            raise ValueError(
                f"{self.shape.batch_size} rows cannot be packed by {self.data_shards} readers: choose a divisor"
            )
        if self.gradient_accumulation < 1 or self.shape.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"{self.shape.batch_size} rows cannot be cut into {self.gradient_accumulation} parts: choose a divisor"
            )
        if self.memory_checkpoint_every and self.mesh is None:
            raise ValueError(
                "copy_every: copies are made for a training on a mesh; set Training.mesh, or copy_every to 0"
            )

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def identity(self) -> Training:
        """What decides the parameters: without the mesh, and without how often something is saved, copied, logged or measured."""
        return replace(self, mesh=None, memory_checkpoint_every=0, save_every=0, log_every=0, evaluate_every=0)

    def with_batch_size(self, rows: int) -> Training:
        """The same tokens in steps of another size."""
        phases = tuple(replace(phase, steps=round(phase.steps * self.shape.batch_size / rows)) for phase in self.phases)
        return replace(self, phases=phases, shape=replace(self.shape, batch_size=rows))


def open_examples(folder: Path) -> dict[str, Examples]:
    """Encoded examples by source."""
    return {file.stem: Examples(file) for file in sorted(folder.glob("*.arrow"))}


class Mixture:
    """The batches of all phases in turn; ``state`` names the phase and the place in it.

    Every process has the rows of its own readers. The whole batch depends on the number of readers, not on that of processes, so a
    training may go on with fewer or more of them. No other thread reads ahead: their number could not change the order.
    """

    def __init__(self, sources: Mapping[str, Examples], t: Training) -> None:
        processes = jax.process_count() if t.mesh else 1
        if t.data_shards % processes:
            raise ValueError(
                f"{t.data_shards} readers cannot be divided among {processes} processes: set Training.readers"
            )
        share = t.data_shards // processes
        self._mine = range(share * jax.process_index(), share * (jax.process_index() + 1)) if t.mesh else range(share)
        self._sources, self._t, self._phase, self._done = sources, t, 0, 0
        self._open(0)

    def _open(self, phase: int) -> None:
        self._phase, self._done = phase, 0
        t = self._t
        shape, seed = replace(t.shape, batch_size=t.shape.batch_size // t.data_shards), t.seed + 1000 * phase
        weights = t.phases[phase].weights
        self._readers = [Batches(self._sources, weights, shape, seed, (k, t.data_shards)) for k in self._mine]

    def next(self) -> Batch:
        if self._done == self._t.phases[self._phase].steps:
            self._open(self._phase + 1)
        self._done += 1
        batch = jax.tree.map(lambda *rows: np.concatenate(rows), *(next(reader) for reader in self._readers))
        return replace(batch, weights=batch.weights * (batch.weights > self._t.ignored_loss_weight))

    def begins_phase(self) -> bool:
        """Whether the batch just given is the first of its phase."""
        return self._done == 1

    def state(self) -> dict:
        """Of all readers, whichever process they are in."""
        readers = (
            gather_from_processes([reader.state() for reader in self._readers])
            if self._t.mesh
            else [[r.state() for r in self._readers]]
        )
        return {"phase": self._phase, "done": self._done, "readers": [state for some in readers for state in some]}

    def restore(self, state: Mapping) -> None:
        if len(state["readers"]) != self._t.data_shards:
            raise ValueError(
                f"the checkpoint is of {len(state['readers'])} readers, the recipe has {self._t.data_shards}"
            )
        self._open(state["phase"])
        for k, reader in zip(self._mine, self._readers, strict=True):
            reader.restore(state["readers"][k])
        self._done = state["done"]


def validate(
    params: model.Params, c: config.Model, sources: Mapping[str, Examples], shape: BatchShape
) -> dict[str, float]:
    """Mean nats per weighted token of a validation split, by source."""
    out = {}
    for name, examples in sources.items():
        tallies = [eval_step(params, batch, c) for batch in batches_in_order({name: examples}, shape)]
        weight = float(np.sum([t.weight for t in tallies]))
        if weight:
            out[name] = round(float(np.sum([t.nats for t in tallies])) / weight, 4)
    return out


@dataclass
class _Window:
    """Measurements of the good steps since the last log line."""

    measured: list[StepMetrics] = field(default_factory=list)
    tokens: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, measured: StepMetrics, batch: Batch) -> None:
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


@dataclass(frozen=True)
class Folders:
    """What a training reads, and where it writes: encoded examples to train on and to validate on, one file a source."""

    data: Path
    out: Path
    validation: Path | None = None


@dataclass(frozen=True)
class Hooks:
    """``stop_after`` leaves after that step, saved, as Ctrl-C does; ``on_step`` is called after every step."""

    stop_after: int | None = None
    on_step: Callable[[int], None] = lambda step: None


def fingerprint_of(c: config.Model, t: Training, folders: Folders) -> str:
    """Of everything that the parameters of a training depend on. Its checkpoints carry it."""
    return training_fingerprint(folders.out, c, t.identity(), data_fingerprint(folders.data.glob("*.arrow")))


def train(
    params: model.Params, c: config.Model, t: Training, folders: Folders, title: str, hooks: Hooks | None = None
) -> model.Params:
    """Trains from ``params`` (or from the last checkpoint under ``folders.out``) to the end of the last phase.

    Beside the checkpoints ``out`` gets metrics.jsonl, tensorboard, fingerprints.jsonl (for replay) and ledger.jsonl (goodput).
    Raises ValueError when trouble does not go away, or the checkpoints are of another training. SIGTERM and Ctrl-C save, then raise
    SystemExit.
    """
    hooks, out = hooks or Hooks(), folders.out
    logs_at = out if jax.process_index() == 0 else out / "processes" / str(jax.process_index())
    ledger, transform, mixture = (
        Ledger(logs_at),
        optimizer(t.optimizer, t.steps, model.weights(c)),
        Mixture(open_examples(folders.data), t),
    )
    facts = {"title": title, "parameters": model.count(params), "steps": t.steps, "warmup": t.optimizer.warmup}
    write_json(logs_at / FACTS, facts)
    training = fingerprint_of(c, t, folders)
    # JAX hears SIGTERM itself where several processes have to agree on the step to stop after.
    noted = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    checkpoints = Checkpoints(out / "checkpoints", training)
    with StopSignals(noted) as stop, sharding.use_mesh(t.mesh), closing(checkpoints):
        replicas = _replicas(out, training, checkpoints)
        state = _restored(
            initial_state(params, c, transform), mixture, checkpoints, replicas if t.memory_checkpoint_every else None
        )
        begin, last = int(state.step), min(t.steps, hooks.stop_after or t.steps)
        ledger.resumed(begin)
        held = open_examples(folders.validation) if folders.validation else {}
        with Metrics(logs_at, title, t.steps, begin) as metrics:
            logs = _Logs(metrics, Fingerprints(logs_at, begin), ledger, AnomalyStreak(logs_at / "trouble"))
            steps = _Steps(
                c, t, transform, mixture, checkpoints, replicas, logs, held, last, _Stop(stop), hooks.on_step
            )
            state = steps.run(state)
            checkpoints.close()
            if not (steps.stop.agreed and logs.streak.length):
                # What is saved on disk is newer; in a streak of anomalies nothing was saved.
                replicas.clear()
            ledger.mark("save", int(state.step))
            metrics.say(str(goodput(logs_at)))
            if stop.received or steps.stop.agreed:
                metrics.say(f"stopped after step {int(state.step)}; the same command resumes")
                raise stop.exit()
    return state.params


def _replicas(out: Path, training: str, checkpoints: Checkpoints) -> MemoryCheckpoints:
    """This process's copies in memory, those of other trainings and of a deleted folder removed."""
    several = jax.process_count() > 1
    own = run_fingerprint(out, training, checkpoints.latest()) if jax.process_index() == 0 else ""
    tell = lambda text: print(f"alhena: {text}", file=sys.stderr, flush=True)  # noqa: E731
    return MemoryCheckpoints(out, jax.process_index(), gather_from_processes(own)[0] if several else own, tell)


def _restored(state: State, mixture: Mixture, checkpoints: Checkpoints, replicas: MemoryCheckpoints | None) -> State:
    """The newest state that is kept of this training, and ``mixture`` moved there; ``state`` when none is."""
    found = replicas.restore(state, least=checkpoints.latest() or 0) if replicas else None
    if found is None and checkpoints.latest() is not None:
        found = checkpoints.restore(state)
    if found is None:
        return state
    mixture.restore(found[2])
    return found[1]


def train_on_next_batch(
    state: State, mixture: Mixture, c: config.Model, transform: optax.GradientTransformation, parts: int
) -> tuple[State, Batch, Array, StepMetrics]:
    """The next batch, its checksums and the step on it: what training does, and a replay again."""
    batch = mixture.next()
    if mixture.begins_phase():
        state = replace(state, recent=reset_for_new_phase(state.recent))
    placed = sharding.shard_batch(batch)
    sums = checksums(placed)
    state, measured = train_step(state, placed, c, transform, parts)
    return state, batch, sums, measured


@dataclass
class _Logs:
    """Everything that is told of steps. Steps are looked at one behind, so that the device is never kept waiting."""

    metrics: Metrics
    prints: Fingerprints
    ledger: Ledger
    streak: AnomalyStreak
    ahead: deque[PendingFingerprint] = field(default_factory=deque)
    window: _Window = field(default_factory=_Window)

    def look(self, keep: int) -> None:
        """Looks at all steps but the last ``keep``: fingerprints, sums of the window, trouble."""
        while len(self.ahead) > keep and not self.streak.needs_rollback():
            taken = self.ahead.popleft()
            self.prints.write(taken.read())
            m, good = taken.measured, bool(taken.measured.good)
            self.streak.observe(taken.step, taken.batch, float(m.loss), float(m.gradient_norm), good)
            if good:
                self.window.add(m, taken.batch)

    def write(self, step: int, skipped: int, warmup: int) -> None:
        if self.window.measured:
            self.metrics.write(step, self.window.report(skipped), by_modality([m.tally for m in self.window.measured]))
            for name, factor in newly_growing_norms([*self.metrics.recent], warmup).items():
                self.metrics.say(f"early warning, step {step}: {name} keeps growing, {factor}-fold in {SPAN} log lines")
        self.window = _Window()

    def clear(self, step: int) -> None:
        """What came after ``step`` will be done again."""
        self.ahead.clear()
        self.window = _Window()
        self.metrics.cut(step)
        self.prints.cut(step)
        self.ledger.mark("rollback", step)


@dataclass
class _Stop:
    """Whether to stop after a step: all processes of a training get the same answer at the same step."""

    signals: StopSignals
    agreed: bool = False
    _passed_on: bool = False

    def after(self, step: int) -> bool:
        if jax.process_count() == 1:
            self.agreed = self.signals.received is not None
            return self.agreed
        if self.signals.received and not self._passed_on:
            # To JAX, which tells the other processes.
            os.kill(os.getpid(), signal.SIGTERM)
            self._passed_on = True
        self.agreed = self.agreed or multihost_utils.reached_preemption_sync_point(step)
        return self.agreed


@dataclass(frozen=True)
class _Due:
    """What is to be done after a step."""

    writes: bool
    saves: bool
    copies: bool
    validates: bool

    def any(self) -> bool:
        return self.writes or self.saves or self.copies or self.validates


@dataclass(frozen=True)
class _Steps:
    """The loop over steps and everything that it needs beside the state."""

    c: config.Model
    t: Training
    transform: optax.GradientTransformation
    mixture: Mixture
    checkpoints: Checkpoints
    replicas: MemoryCheckpoints
    logs: _Logs
    held: Mapping[str, Examples]
    last: int
    stop: _Stop
    on_step: Callable[[int], None]

    def run(self, state: State) -> State:
        """Steps until the last, or until a signal says to stop: then the state is saved first."""
        logs, first = self.logs, int(state.step)
        step = first
        while step < self.last and not self.stop.agreed:
            step += 1
            state, batch, sums, measured = train_on_next_batch(
                state, self.mixture, self.c, self.transform, self.t.gradient_accumulation
            )
            logs.ahead.append(take_fingerprint(step, batch, sums, state, measured))
            due = self._due(step)
            logs.look(keep=0 if due.any() or step == first + 1 else 1)
            if logs.streak.needs_rollback():
                logs.metrics.say(logs.streak.roll_back(self.checkpoints.latest()))
                step, state, place = self.checkpoints.restore(state)
                self.mixture.restore(place)
                logs.clear(step)
                continue
            if step == first + 1:
                logs.ledger.mark("compile", step)
            elif due.any():
                logs.ledger.mark("steps", step)
            self._do(due, step, state)
            logs.metrics.advance(step)
            self.on_step(step)
        return state

    def _due(self, step: int) -> _Due:
        t, ends = self.t, step == self.last or self.stop.after(step)
        return _Due(
            writes=step % t.log_every == 0 or ends,
            saves=step % t.save_every == 0 or ends,
            copies=t.memory_checkpoint_every > 0 and step % t.memory_checkpoint_every == 0,
            validates=bool(self.held) and (step % t.evaluate_every == 0 or step == t.steps),
        )

    def _do(self, due: _Due, step: int, state: State) -> None:
        logs, calm = self.logs, self.logs.streak.length == 0
        if due.writes:
            logs.write(step, int(state.recent.skipped), self.t.optimizer.warmup)
        if due.validates:
            losses = validate(state.params, self.c, self.held, self.t.shape)
            logs.metrics.write(step, {}, {"loss": losses}, "validation")
            logs.ledger.mark("validate", step)
        # In a streak of anomalies the checkpoint before it is kept as the newest, to go back to.
        if due.saves and (calm or step == self.last):
            self.checkpoints.save(step, state, self.mixture.state())
            logs.ledger.mark("save", step)
        elif due.copies and calm:
            self.replicas.save(step, state, self.mixture.state())
            logs.ledger.mark("copy", step)
