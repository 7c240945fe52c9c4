"""Training anomalies (NaN, loss or gradient spike): detection, and what is done about them.

    loss or gradient norm not finite, or a spike ──► the step is skipped: it changes nothing, and is counted
    ROLLBACK_AFTER such steps in a row ────────────► roll back to the last checkpoint, and repeat the same batches
    the same step begins a streak again ───────────► stop; the batch is saved for inspection

Steps are exact, so the rollback separates two causes. An error of the machine does not occur the second time, and the run ends with
the same bits as a run without it. A cause in the data or the learning rate occurs again, in the same step.

A spike is judged by the last WINDOW good steps of the phase, of median m and median absolute deviation d:

    loss          > m + max(16·d, m/2, ½)   at least 1.5 times the median, and half a nat more
    gradient norm > m + max(32·d, 4·m, 1)   at least five times the median (it is clipped anyway)

Before there are WINDOW good steps nothing is a spike. PaLM (Chowdhery et al. 2022) skipped batches around spikes by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from alhena.batch import Batch
from alhena.files import write_atomically
from alhena.shapes import Array, Bool, Float, Int, pytree

WINDOW = 64
ROLLBACK_AFTER = 3
# Of the loss and of the gradient norm: how far above m a value may lie, in units of d, in units of m, and absolutely. The absolute
# margin is for a model that has learned almost everything: its next hard example is many times the median and no spike.
DEVIATIONS, MIN_RELATIVE, MIN_ABSOLUTE = (16.0, 32.0), (0.5, 4.0), (0.5, 1.0)


@pytree
@dataclass(frozen=True)
class RecentSteps:
    """Loss and gradient norm of the last good steps, as a ring buffer; part of the training state, so that resuming is exact."""

    values: Float[Array, "2 window"]
    good: Int[Array, ""]  # good steps of this phase
    skipped: Int[Array, ""]  # steps skipped since the beginning of training


def no_recent_steps() -> RecentSteps:
    return RecentSteps(jnp.zeros((2, WINDOW)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def reset_for_new_phase(recent: RecentSteps) -> RecentSteps:
    """Forgets the recent values: another mixture has another loss. The number of skipped steps remains."""
    return replace(no_recent_steps(), skipped=recent.skipped)


def limits(recent: RecentSteps) -> Float[Array, " quantities"]:
    """The largest loss and gradient norm that are no spike."""
    median = jnp.median(recent.values, axis=1)
    deviation = jnp.median(jnp.abs(recent.values - median[:, None]), axis=1)
    margin = jnp.maximum(jnp.array(DEVIATIONS) * deviation, jnp.array(MIN_RELATIVE) * median)
    margin = jnp.maximum(margin, jnp.array(MIN_ABSOLUTE))
    return jnp.where(recent.good >= WINDOW, median + margin, jnp.inf)


def check_step(
    recent: RecentSteps, loss: Float[Array, ""], norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], RecentSteps]:
    """Whether a step is good, and the recent steps after it."""
    measured = jnp.stack([loss, norm])
    good = jnp.all(jnp.isfinite(measured) & (measured <= limits(recent)))
    values = recent.values.at[:, recent.good % WINDOW].set(measured)
    values = jnp.where(good, values, recent.values)
    return good, RecentSteps(values, recent.good + good, recent.skipped + ~good)


@dataclass
class AnomalyStreak:
    """Anomalies in consecutive steps, with the batch of the first."""

    folder: Path  # where the batch of a step that stops the training is saved
    length: int = 0
    _first: tuple[int, Batch, float, float] | None = None
    _rolled_back: set[int] = field(default_factory=set)

    def observe(self, step: int, batch: Batch, loss: float, norm: float, good: bool) -> None:
        if good:
            self.length, self._first = 0, None
            return
        self.length += 1
        self._first = self._first or (step, batch, loss, norm)

    def needs_rollback(self) -> bool:
        return self.length >= ROLLBACK_AFTER

    def roll_back(self, checkpoint: int | None) -> str:
        """The message of a rollback to the checkpoint of that step. Raises ValueError when a rollback would not help."""
        assert self._first is not None
        step, batch, loss, norm = self._first
        anomaly = f"loss {loss:.4g} and gradient norm {norm:.4g} in step {step}, and {self.length - 1} more anomalies after it"
        if checkpoint is not None and step not in self._rolled_back:
            self._rolled_back.add(step)
            self.length, self._first = 0, None
            return f"anomaly: {anomaly}; rolled back to the checkpoint of step {checkpoint}, to repeat the same steps"
        path = save_batch(self.folder / f"step-{step}.safetensors", batch)
        reason = (
            "there is no checkpoint to roll back to"
            if checkpoint is None
            else "they are the same after a rollback, so no machine error: the batch or the learning rate is the cause"
        )
        raise ValueError(f"training stopped: {anomaly}; {reason}. The batch of step {step} is saved in {path}")


def save_batch(path: Path, batch: Batch) -> Path:
    """Saves the arrays of a batch by name, for ``safetensors.numpy.load_file``."""
    arrays = {f.name: np.ascontiguousarray(getattr(batch, f.name)) for f in fields(batch)}
    write_atomically(path, save(arrays))
    return path
