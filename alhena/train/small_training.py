"""The loop of the small trainings (image tokenizer, BEST-RQ): from the last checkpoint to the end, saved on the way and on signals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alhena.processes import StopSignals
from alhena.progress import progress_bar
from alhena.recovery.checkpoint import Checkpoints
from alhena.shapes import Array

State = TypeVar("State")


@dataclass(frozen=True)
class Steps:
    """How many, how often the state is saved, where, and the fingerprint of the training that the checkpoints belong to."""

    title: str
    steps: int
    save_every: int
    checkpoints: Path
    training: str


def run_steps(
    state: State, step: Callable[[State, int], tuple[State, Array]], plan: Steps
) -> tuple[State, list[Array]]:
    """Calls ``step(state, number)``, which returns the next state and the loss, from the last checkpoint to the end.

    Returns the state and the losses of this process's steps. SIGTERM and Ctrl-C save, then raise SystemExit.
    """
    losses, first = [], 0
    checkpoints = Checkpoints(plan.checkpoints, plan.training)
    with StopSignals() as stop, closing(checkpoints), progress_bar() as progress:
        if checkpoints.latest() is not None:
            first, state, _ = checkpoints.restore(state)
        bar = progress.add_task(plan.title, total=plan.steps, completed=first)
        for done in range(first + 1, plan.steps + 1):
            state, loss = step(state, done - 1)
            losses.append(loss)
            stops = stop.received is not None
            if done % plan.save_every == 0 or done == plan.steps or stops:
                checkpoints.save(done, state, None)
            progress.update(bar, completed=done)
            if stops:
                raise stop.exit()
    return state, losses
