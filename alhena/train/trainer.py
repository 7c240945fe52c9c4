"""The training loop: phases of mixtures, one jitted step, checkpoints, resumed bit for bit.

    phase 1 ──────────────────────────────► phase 2 (tasks weighted up) ───►
    batch ─ step ─ batch ─ step ─ … ─ checkpoint ─ …

The batch of step n depends on the seed and n alone. A training killed at any moment resumes from the last checkpoint and ends with the
same parameters. SIGTERM and Ctrl-C save a checkpoint after the current step, then end the process.

Every step leaves its fingerprint (:mod:`alhena.train.monitoring.replay` compares them). Anomalies are skipped, then rolled back, then reported as
an error (:mod:`alhena.recovery.anomalies`). A ledger records where the time went (:mod:`alhena.recovery.goodput`).
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
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from alhena.batch import Batch
from alhena.files import write_json
from alhena.model import config, model, sharding
from alhena.processes import StopSignals, gather_from_processes
from alhena.recovery.anomalies import AnomalyStreak, reset_for_new_phase
from alhena.recovery.checkpoint import Checkpoints
from alhena.recovery.checksum import checksums
from alhena.recovery.fingerprints import Fingerprints, PendingFingerprint, take_fingerprint
from alhena.recovery.goodput import Ledger, goodput
from alhena.recovery.identity import data_fingerprint, run_fingerprint, training_fingerprint
from alhena.recovery.memory_checkpoint import MemoryCheckpoints
from alhena.shapes import UInt32
from alhena.tokens.examples.store import Examples
from alhena.train.mixture import Mixture, Training, open_examples
from alhena.train.monitoring.divergence import WINDOW, newly_growing_norms
from alhena.train.monitoring.metrics import FACTS, Metrics, by_modality
from alhena.train.monitoring.validation import unknown_to_teacher, validate
from alhena.train.objective import Objective, TaughtBatch
from alhena.train.optimizer import optimizer
from alhena.train.step import (
    Adapted,
    Frozen,
    State,
    StepMetrics,
    Taught,
    complete,
    initial_state,
    objective_of,
    result,
    split,
    train_step,
    trained_specs,
    with_constants,
)


@dataclass(frozen=True)
class Folders:
    """What a training reads, and where it writes: encoded examples to train on and to validate on, one file a source."""

    data: Path
    out: Path
    validation: Path | None = None


@dataclass(frozen=True)
class Hooks:
    """``stop_after`` stops after that step and saves, as Ctrl-C does; ``on_step`` is called after every step."""

    stop_after: int | None = None
    on_step: Callable[[int], object] = lambda step: None


def fingerprint_of(c: config.Model, t: Training, folders: Folders, objective: Objective | None = None) -> str:
    """Fingerprint of everything that the parameters of a training depend on; stored in its checkpoints."""
    own = () if objective is None else (objective.identity,)
    return training_fingerprint(folders.out, c, t.identity(), data_fingerprint(folders.data.glob("*.arrow")), *own)


def train(
    params: model.Params | Adapted | Taught,
    c: config.Model,
    t: Training,
    folders: Folders,
    title: str,
    hooks: Hooks | None = None,
) -> Any:
    """Trains from ``params`` (or from the last checkpoint under ``folders.out``) to the end of the last phase.

    Returns the trained params; of an :class:`Adapted` model the adapters. A :class:`Taught` model has an objective of its own.
    Besides the checkpoints, ``out`` gets metrics.jsonl, tensorboard, fingerprints.jsonl (for replay) and ledger.jsonl (goodput).
    Raises ValueError when an anomaly persists, or the checkpoints are of another training. SIGTERM and Ctrl-C save, then raise
    SystemExit.
    """
    start, objective = objective_of(params)
    trained, frozen = split(start, c)
    if frozen is not None and t.mesh is not None:
        raise ValueError("Training.mesh: beside frozen weights a model is trained on one device; set it to None")
    hooks, out = hooks or Hooks(), folders.out
    log_folder = out if jax.process_index() == 0 else out / "processes" / str(jax.process_index())
    ledger, mixture = Ledger(log_folder), Mixture(open_examples(folders.data), t)
    transform = optimizer(t.optimizer, t.steps, trained_specs(trained, c))
    facts = {"title": title, "parameters": model.count(trained), "steps": t.steps, "warmup": t.optimizer.warmup}
    write_json(log_folder / FACTS, facts)
    training = fingerprint_of(c, t, folders, objective)
    checkpoints = Checkpoints(out / "checkpoints", training)
    with StopSignals(_noted_signals()) as signals, sharding.use_mesh(t.mesh), closing(checkpoints):
        replicas = _replicas(out, training, checkpoints)
        state = initial_state(trained, c, transform)
        state = _restored(state, mixture, checkpoints, replicas if t.memory_checkpoint_every else None)
        first, last = int(state.step), min(t.steps, hooks.stop_after or t.steps)
        ledger.resumed(first)
        validation = open_examples(folders.validation) if folders.validation else {}
        with Metrics(log_folder, title, t.steps, first) as metrics:
            logs = _Logs(metrics, Fingerprints(log_folder, first), ledger, AnomalyStreak(log_folder / "anomalies"))
            stop = _Stop(signals)
            update = Update(c, transform, t.gradient_accumulation, with_constants(frozen, objective), objective)
            loop = _Loop(t, update, mixture, checkpoints, replicas, logs, validation, last, stop, hooks.on_step)
            state = loop.run(state)
            checkpoints.close()
            if not (stop.agreed and logs.streak.length):
                # What is saved on disk is newer; in a streak of anomalies nothing was saved.
                replicas.clear()
            ledger.mark("save", int(state.step))
            metrics.print(str(goodput(log_folder)))
            if signals.received or stop.agreed:
                metrics.print(f"stopped after step {int(state.step)}; the same command resumes")
                raise signals.exit()
    return result(state.params, frozen)


def _noted_signals() -> tuple[signal.Signals, ...]:
    """Where several processes have to agree on the last step, JAX handles SIGTERM itself."""
    return (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)


def _replicas(out: Path, training: str, checkpoints: Checkpoints) -> MemoryCheckpoints:
    """This process's in-memory checkpoints; those of other trainings and of deleted run folders are removed."""
    run = run_fingerprint(out, training, checkpoints.latest()) if jax.process_index() == 0 else ""
    if jax.process_count() > 1:
        run = gather_from_processes(run)[0]
    log = lambda text: print(f"alhena: {text}", file=sys.stderr, flush=True)  # noqa: E731
    return MemoryCheckpoints(out, jax.process_index(), run, log)


def _restored(state: State, mixture: Mixture, checkpoints: Checkpoints, replicas: MemoryCheckpoints | None) -> State:
    """The newest saved state of this training, with ``mixture`` moved to it; ``state`` when none is saved."""
    saved = replicas.restore(state, min_step=checkpoints.latest() or 0) if replicas else None
    if saved is None and checkpoints.latest() is not None:
        saved = checkpoints.restore(state)
    if saved is None:
        return state
    _, state, data = saved
    mixture.restore(data)
    return state


@dataclass(frozen=True)
class Step:
    """Batch and measurements of one step; arrays may still be computed."""

    batch: Batch
    batch_checksums: UInt32[jax.Array, " leaves"]
    measured: StepMetrics


@dataclass(frozen=True)
class Update:
    """What a step needs besides state and batch."""

    c: config.Model
    transform: optax.GradientTransformation
    # Of a batch, whose gradients are accumulated.
    parts: int
    frozen: Frozen | None = None
    objective: Objective | None = None


def train_on_next_batch(state: State, mixture: Mixture, update: Update) -> tuple[State, Step]:
    """One step on the next batch and the batch's checksums: what training computes, and what a replay repeats."""
    batch = mixture.next()
    if mixture.begins_phase():
        state = replace(state, recent=reset_for_new_phase(state.recent))
    sharded: Batch = sharding.shard_batch(batch)
    batch_checksums = checksums(sharded)
    taught: Batch | TaughtBatch = sharded
    if update.objective is not None:
        outputs = update.objective.outputs(batch, sharded)
        taught = TaughtBatch(sharded, outputs, update.objective.loss)
    state, measured = train_step(state, taught, update.c, update.transform, update.parts, update.frozen)
    return state, Step(batch, batch_checksums, measured)


@dataclass
class _LogWindow:
    """Measurements of the good steps since the last log line."""

    measured: list[StepMetrics] = field(default_factory=list)
    tokens: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, step: Step) -> None:
        self.measured.append(step.measured)
        self.tokens += int((np.asarray(step.batch.segments) > 0).sum())

    def report(self, skipped: int) -> dict[str, float]:
        last = self.measured[-1]
        return {
            "loss": round(float(last.loss), 4),
            "gradient_norm": round(float(last.gradient_norm), 3),
            "tokens_per_second": round(self.tokens / max(time.monotonic() - self.since, 1e-9), 1),
            **({"skipped": skipped} if skipped else {}),
        }


@dataclass
class _Logs:
    """All logs of steps. A step is read one step later, so that the device never waits for the host."""

    metrics: Metrics
    fingerprints: Fingerprints
    ledger: Ledger
    streak: AnomalyStreak
    pending: deque[tuple[Step, PendingFingerprint]] = field(default_factory=deque)
    window: _LogWindow = field(default_factory=_LogWindow)

    def read(self, leave: int) -> None:
        """Reads all pending steps but the last ``leave``: fingerprint, anomaly or not, sums of the window."""
        while len(self.pending) > leave and not self.streak.needs_rollback():
            step, pending = self.pending.popleft()
            self.fingerprints.write(pending.read())
            m, good = step.measured, bool(step.measured.good)
            self.streak.observe(pending.step, step.batch, float(m.loss), float(m.gradient_norm), good)
            if good:
                self.window.add(step)

    def write(self, step: int, skipped: int, warmup: int) -> None:
        if self.window.measured:
            self.metrics.write(step, self.window.report(skipped), by_modality([m.sums for m in self.window.measured]))
            for name, factor in newly_growing_norms([*self.metrics.recent], warmup).items():
                self.metrics.print(
                    f"early warning, step {step}: {name} keeps growing, {factor}-fold in {WINDOW} log lines"
                )
        self.window = _LogWindow()

    def truncate(self, step: int) -> None:
        """Drops what was logged after ``step``: those steps will be repeated."""
        self.pending.clear()
        self.window = _LogWindow()
        self.metrics.truncate(step)
        self.fingerprints.truncate(step)
        self.ledger.mark("rollback", step)


@dataclass
class _Stop:
    """Whether to stop after a step: all processes of a training get the same answer at the same step."""

    signals: StopSignals
    agreed: bool = False
    _forwarded: bool = False

    def after(self, step: int) -> bool:
        if jax.process_count() == 1:
            self.agreed = self.signals.received is not None
            return self.agreed
        if self.signals.received and not self._forwarded:
            # To JAX, which informs the other processes.
            os.kill(os.getpid(), signal.SIGTERM)
            self._forwarded = True
        self.agreed = self.agreed or multihost_utils.reached_preemption_sync_point(step)
        return self.agreed


@dataclass(frozen=True)
class _Due:
    """What has to be done after a step."""

    log: bool
    save: bool
    copy: bool
    validate: bool

    def any(self) -> bool:
        return self.log or self.save or self.copy or self.validate


@dataclass(frozen=True)
class _Loop:
    """The loop over steps, and everything that it uses besides the state."""

    t: Training
    update: Update
    mixture: Mixture
    checkpoints: Checkpoints
    replicas: MemoryCheckpoints
    logs: _Logs
    validation: Mapping[str, Examples]
    last: int
    stop: _Stop
    on_step: Callable[[int], object]
    teacher_losses: dict[str, float] = field(default_factory=dict)

    def run(self, state: State) -> State:
        """Trains up to step ``last``, or until a signal: then the state is saved first."""
        logs, first = self.logs, int(state.step)
        number = first
        while number < self.last and not self.stop.agreed:
            number += 1
            state, step = train_on_next_batch(state, self.mixture, self.update)
            m = step.measured
            logs.pending.append((step, take_fingerprint(number, step.batch_checksums, state, m.loss, m.gradient_norm)))
            due = self._due(number)
            logs.read(leave=0 if due.any() or number == first + 1 else 1)
            if logs.streak.needs_rollback():
                logs.metrics.print(logs.streak.roll_back(self.checkpoints.latest()))
                number, state, data = self.checkpoints.restore(state)
                self.mixture.restore(data)
                logs.truncate(number)
                continue
            if number == first + 1:
                logs.ledger.mark("compile", number)
            elif due.any():
                logs.ledger.mark("steps", number)
            self._do(due, number, state)
            logs.metrics.advance(number)
            self.on_step(number)
        return state

    def _due(self, step: int) -> _Due:
        t, ends = self.t, step == self.last or self.stop.after(step)
        return _Due(
            log=step % t.log_every == 0 or ends,
            save=step % t.save_every == 0 or ends,
            copy=t.memory_checkpoint_every > 0 and step % t.memory_checkpoint_every == 0,
            validate=bool(self.validation) and (step % t.evaluate_every == 0 or step == t.steps),
        )

    def _do(self, due: _Due, step: int, state: State) -> None:
        logs, in_streak = self.logs, self.logs.streak.length > 0
        if due.log:
            logs.write(step, int(state.recent.skipped), self.t.optimizer.warmup)
        if due.validate:
            self._validate(step, state)
        # In a streak of anomalies the checkpoint before it must stay the newest: training may roll back to it.
        if due.save and (not in_streak or step == self.last):
            self.checkpoints.save(step, state, self.mixture.state())
            logs.ledger.mark("save", step)
        elif due.copy and not in_streak:
            self.replicas.save(step, state, self.mixture.state())
            logs.ledger.mark("copy", step)

    def _validate(self, step: int, state: State) -> None:
        """Loss by source, of a teacher too: once, with the first of the student."""
        metrics, objective, shape = self.logs.metrics, self.update.objective, self.t.shape
        params, losses = complete(state.params, self.update.frozen), dict[str, float]()
        for name in metrics.track("validation", self.validation):
            losses |= validate(params, self.update.c, {name: self.validation[name]}, shape)
        metrics.write(step, {}, {"loss": losses}, "validation")
        if objective is not None:
            if not self.teacher_losses:
                for name in metrics.track("teacher", self.validation):
                    self.teacher_losses.update(objective.losses({name: self.validation[name]}, shape))
                metrics.write(step, {}, {"loss": self.teacher_losses}, "teacher")
            for line in unknown_to_teacher(self.teacher_losses, losses):
                metrics.print(f"step {step}, {line}")
        self.logs.ledger.mark("validate", step)
