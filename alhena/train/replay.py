"""Deterministic replay: steps are done again from a kept checkpoint, and their fingerprints compared with those recorded.

    checkpoint 400 ─ step 401 ─ step 402 ─ … ─ step N           done again, now
                     = recorded  = recorded     ≠ loss          the forward pass of step N was not computed alike

Training is exact to the bit, so any difference means that one of the two computations went wrong: silent data corruption, for which
the Gemini 1.0 report names deterministic replay as the way to find the machine. (Another version of JAX or another processor may
add numbers in another order; :func:`replay` says so when it replays on another machine than the one that trained.)
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from alhena.model import config, model, sharding
from alhena.recovery.checkpoint import Checkpoints
from alhena.recovery.fingerprints import (
    Fingerprint,
    float_of_bits,
    machine_description,
    read_fingerprints,
    take_fingerprint,
)
from alhena.train.optimizer import optimizer
from alhena.train.step import initial_state
from alhena.train.trainer import Folders, Mixture, Training, fingerprint_of, open_examples, train_on_next_batch

_PARTS = {
    "batch": "other data were read",
    "loss": "the forward pass, or parameters changed since the step before",
    "gradient_norm": "the backward pass",
    "parameters": "the gradient (by too little for its norm to tell) or the update of the parameters",
    "moments": "the update of the optimizer's moments",
}


@dataclass(frozen=True)
class Replayed:
    """What came out: ``difference`` is the first quantity that differs, in step ``last``; None when all are the same."""

    first: int
    last: int
    difference: str | None
    recorded: Fingerprint
    replayed: Fingerprint
    recorded_machine: str | None  # on what else the run was recorded

    def __str__(self) -> str:
        note = (
            f"\nIt was recorded elsewhere ({self.recorded_machine}), where sums may round otherwise."
            if self.recorded_machine
            else ""
        )
        if self.difference is None:
            return f"steps {self.first} to {self.last}: replayed, every fingerprint as recorded{note}"
        was, now = getattr(self.recorded, self.difference), getattr(self.replayed, self.difference)
        if self.difference in ("loss", "gradient_norm"):
            was, now = f"{float_of_bits(was)!r} ({was})", f"{float_of_bits(now)!r} ({now})"
        before = f"; steps {self.first} to {self.last - 1} are as recorded" if self.last > self.first else ""
        return (
            f"step {self.last}: {self.difference} differs, recorded {was}, replayed {now}{before}. "
            f"Suspect: {_PARTS[self.difference]}{note}"
        )


def replay(params: model.Params, c: config.Model, t: Training, data: Path, out: Path, step: int) -> Replayed:
    """Does the steps up to ``step`` again, from the newest checkpoint before it under ``out`` or else from the first ``params``.

    Stops at the first difference. Raises ValueError when that step has no fingerprint.
    """
    recorded, elsewhere = read_fingerprints(out)
    if step not in recorded:
        raise ValueError(f"{out}: no fingerprint of step {step}; there are those of {min(recorded)} to {max(recorded)}")
    transform, training = optimizer(t.optimizer, t.steps, model.weights(c)), fingerprint_of(c, t, Folders(data, out))
    with sharding.use_mesh(t.mesh), closing(Checkpoints(out / "checkpoints", training)) as checkpoints:
        state, mixture = initial_state(params, c, transform), Mixture(open_examples(data), t)
        if any(kept < step for kept in checkpoints.steps()):
            _, state, place = checkpoints.restore(state, upto=step - 1)
            mixture.restore(place)
        first = int(state.step) + 1
        for now in range(first, step + 1):
            state, batch, sums, measured = train_on_next_batch(state, mixture, c, transform, t.gradient_accumulation)
            replayed = take_fingerprint(now, batch, sums, state, measured).read()
            difference = recorded[now].differs(replayed)
            if difference:
                break
    other = (
        ", ".join(f"{key} {value}" for key, value in elsewhere.items()) if elsewhere != machine_description() else None
    )
    return Replayed(first, now, difference, recorded[now], replayed, other)
