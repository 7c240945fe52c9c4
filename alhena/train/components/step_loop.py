"""A resumable loop over training steps with one loss (image tokenizer, BEST-RQ): it saves checkpoints, also on signals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax

from alhena.processes import StopSignals
from alhena.progress import progress_bar
from alhena.recovery.checkpoint import Checkpoints
from alhena.shapes import Float

State = TypeVar("State")
Loss = Float[jax.Array, ""]


@dataclass(frozen=True)
class StepLoop:
    """Title of the progress bar, number of steps, steps between checkpoints, their folder, and the fingerprint of the training."""

    title: str
    steps: int
    save_every: int
    checkpoints: Path
    training: str


def run_steps(
    state: State, step: Callable[[State, int], tuple[State, Loss]], loop: StepLoop
) -> tuple[State, list[Loss]]:
    """Calls ``step(state, index)``, which returns the next state and the loss, from the last checkpoint to the end.

    Returns the state and the losses of this process's steps. SIGTERM and Ctrl-C save, then raise SystemExit.
    """
    losses, first = [], 0
    checkpoints = Checkpoints(loop.checkpoints, loop.training)
    with StopSignals() as stop, closing(checkpoints), progress_bar() as progress:
        if checkpoints.latest() is not None:
            first, state, _ = checkpoints.restore(state)
        bar = progress.add_task(loop.title, total=loop.steps, completed=first)
        for done in range(first + 1, loop.steps + 1):
            state, loss = step(state, done - 1)
            losses.append(loss)
            stops = stop.received is not None
            if done % loop.save_every == 0 or done == loop.steps or stops:
                checkpoints.save(done, state, None)
            progress.update(bar, completed=done)
            if stops:
                raise stop.exit()
    return state, losses
