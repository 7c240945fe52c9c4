"""Trouble in training: what it is, and what is done about it, one measure after the other.

    loss or gradient no finite number, or a spike ─► the step is skipped: it changes nothing, and is counted
    IN_A_ROW such steps ───────────────────────────► back to the last checkpoint, and the very same batches again
    trouble again from the same step on ───────────► stop; the batch is saved for inspection

Steps are exact, so going back tells two causes apart. What the machine did wrong is not there the second time, and the run ends
with the bits of one that never had the trouble. What the data or the learning rate did is there again, in the same step.

A spike is judged by the last WINDOW good steps of the phase, of median m and median absolute deviation d:

    loss          > m + max(16·d, m/2, ½)   at least one and a half times the usual, and half a nat more
    gradient norm > m + max(32·d, 4·m, 1)   at least five times the usual (it is clipped anyway)

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
DEVIATIONS, LEAST = (16.0, 32.0), (0.5, 4.0)  # of the loss and of the gradient norm: times d, and at least times m
NEAR_ZERO = (0.5, 1.0)  # where a training has learned all, the next hard example is many times the usual and no spike


@pytree
@dataclass(frozen=True)
class RecentSteps:
    """Loss and gradient norm of the last good steps, as a ring; part of the training state, so that resuming is exact."""

    values: Float[Array, "2 WINDOW"]
    good: Int[Array, ""]  # good steps of this phase
    skipped: Int[Array, ""]  # steps skipped since the beginning of training


def no_recent_steps() -> RecentSteps:
    return RecentSteps(jnp.zeros((2, WINDOW)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def reset_for_new_phase(recent: RecentSteps) -> RecentSteps:
    """Another mixture has another loss: what was usual is forgotten."""
    return replace(no_recent_steps(), skipped=recent.skipped)


def limits(recent: RecentSteps) -> Float[Array, 2]:
    """The largest loss and gradient norm that are no spike."""
    middle = jnp.median(recent.values, axis=1)
    deviation = jnp.median(jnp.abs(recent.values - middle[:, None]), axis=1)
    room = jnp.maximum(jnp.array(DEVIATIONS) * deviation, jnp.array(LEAST) * middle)
    room = jnp.maximum(room, jnp.array(NEAR_ZERO))
    return jnp.where(recent.good >= WINDOW, middle + room, jnp.inf)


def check_step(
    recent: RecentSteps, loss: Float[Array, ""], norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], RecentSteps]:
    """Whether a step is good, and what is recent after it."""
    measured = jnp.stack([loss, norm])
    good = jnp.all(jnp.isfinite(measured) & (measured <= limits(recent)))
    values = recent.values.at[:, recent.good % WINDOW].set(measured)
    values = jnp.where(good, values, recent.values)
    return good, RecentSteps(values, recent.good + good, recent.skipped + ~good)


@dataclass
class AnomalyStreak:
    """Troubled steps in a row as the host sees them, with the batch that began it."""

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
        """Called when the streak is long: what to tell about going back. Raises ValueError when that would not help."""
        assert self._first is not None
        step, batch, loss, norm = self._first
        what = f"loss {loss:.4g} and gradient norm {norm:.4g} in step {step}, and {self.length - 1} more steps like it"
        if checkpoint is not None and step not in self._rolled_back:
            self._rolled_back.add(step)
            self.length, self._first = 0, None
            return f"trouble: {what}; back to the checkpoint of step {checkpoint}, to do the same steps again"
        path = save_batch(self.folder / f"step-{step}.safetensors", batch)
        why = (
            "there is no checkpoint to go back to"
            if checkpoint is None
            else "it is the same after going back to a checkpoint, so the machine computes alike: the batch or the rate is at fault"
        )
        raise ValueError(f"training stopped: {what}; {why}. The batch of step {step} is kept in {path}")


def save_batch(path: Path, batch: Batch) -> Path:
    """The arrays of a batch by name, to be opened by ``safetensors.numpy.load_file``."""
    arrays = {f.name: np.ascontiguousarray(getattr(batch, f.name)) for f in fields(batch)}
    write_atomically(path, save(arrays))
    return path
