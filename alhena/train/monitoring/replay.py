"""Deterministic replay: steps are repeated from a saved checkpoint, and their fingerprints compared with those recorded.

    checkpoint 400 ─ step 401 ─ step 402 ─ … ─ step N           repeated
                     = recorded  = recorded     ≠ loss          the forward pass of step N had another result

Training is exact to the bit, so any difference means that one of the two computations was wrong: silent data corruption. The Gemini
1.0 report names deterministic replay as the way to find the faulty machine. Another version of JAX or another processor may add
numbers in another order; :func:`replay` reports when the recorded run was on another machine.
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
from alhena.train.mixture import Mixture, Training, open_examples
from alhena.train.optimizer import optimizer
from alhena.train.step import Taught, initial_state, objective_of, split, trained_specs, with_constants
from alhena.train.trainer import Folders, Update, fingerprint_of, train_on_next_batch

_SUSPECTS = {
    "batch": "the data that were read",
    "loss": "the forward pass, or parameters that changed since the step before",
    "gradient_norm": "the backward pass",
    "parameters": "the gradient (by too little to change its norm) or the update of the parameters",
    "moments": "the update of the optimizer's moments",
}


@dataclass(frozen=True)
class Replayed:
    """Result of a replay: ``difference`` is the first quantity that differs, in step ``last``; None when all are equal."""

    first: int
    last: int
    difference: str | None
    recorded: Fingerprint
    replayed: Fingerprint
    # The machine of the recorded run, if it was another.
    recorded_machine: str | None

    def __str__(self) -> str:
        note = (
            f"\nIt was recorded on another machine ({self.recorded_machine}), where sums may round differently."
            if self.recorded_machine
            else ""
        )
        if self.difference is None:
            return f"steps {self.first} to {self.last}: replayed, all fingerprints equal those recorded{note}"
        old, new = getattr(self.recorded, self.difference), getattr(self.replayed, self.difference)
        if self.difference in ("loss", "gradient_norm"):
            old, new = f"{float_of_bits(old)!r} ({old})", f"{float_of_bits(new)!r} ({new})"
        before = f"; steps {self.first} to {self.last - 1} are as recorded" if self.last > self.first else ""
        return (
            f"step {self.last}: {self.difference} differs, recorded {old}, replayed {new}{before}. "
            f"Suspect: {_SUSPECTS[self.difference]}{note}"
        )


def replay(params: model.Params | Taught, c: config.Model, t: Training, data: Path, out: Path, step: int) -> Replayed:
    """Repeats the steps up to ``step``, from the newest checkpoint before it under ``out`` or else from the initial ``params``.

    Stops at the first difference. Raises ValueError when that step has no fingerprint.
    """
    recorded, machine = read_fingerprints(out)
    if step not in recorded:
        raise ValueError(
            f"{out}: no fingerprint of step {step}; fingerprints exist for {min(recorded)} to {max(recorded)}"
        )
    start, objective = objective_of(params)
    trained, frozen = split(start, c)
    transform = optimizer(t.optimizer, t.steps, trained_specs(trained, c))
    training = fingerprint_of(c, t, Folders(data, out), objective)
    with sharding.use_mesh(t.mesh), closing(Checkpoints(out / "checkpoints", training)) as checkpoints:
        state, mixture = initial_state(trained, c, transform), Mixture(open_examples(data), t)
        if any(saved < step for saved in checkpoints.steps()):
            _, state, data_state = checkpoints.restore(state, max_step=step - 1)
            mixture.restore(data_state)
        first = int(state.step) + 1
        update = Update(c, transform, t.gradient_accumulation, with_constants(frozen, objective), objective)
        for number in range(first, step + 1):
            state, done = train_on_next_batch(state, mixture, update)
            m = done.measured
            replayed = take_fingerprint(number, done.batch_checksums, state, m.loss, m.gradient_norm).read()
            difference = recorded[number].first_difference(replayed)
            if difference:
                break
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    other = described if machine != machine_description() else None
    return Replayed(first, number, difference, recorded[number], replayed, other)
