"""Training with several processes: distributed initialization, and a supervisor that restarts them when one is lost.

alhena launch 2 -- pretrain runs/starter --recipe …      on one machine; elsewhere a scheduler starts the processes (docs/scale-out.md)

supervisor ─┬─ process 0 ──────╳ killed           all are stopped and restarted; they resume from the newest copy that an intact pod
            └─ process 1 ──────  stopped          has in memory (memory_checkpoint.py), or else from the last checkpoint on disk
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from alhena.processes import StopSignals, start_child
from alhena.recovery.memory_checkpoint import SLOT

COORDINATOR, PROCESSES, PROCESS = "ALHENA_COORDINATOR", "ALHENA_PROCESSES", "ALHENA_PROCESS"
AUTO = "auto"  # as the coordinator: ask the cluster (Slurm, Open MPI, Kubernetes, Cloud TPU)
PATHWAYS = "pathways"  # as the coordinator: this one process drives all slices, through Pathways
JOIN_TIMEOUT = 300  # seconds until all have joined
GRACE = 120  # seconds for saving after SIGTERM; then processes that still run are killed
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
Watch = Callable[[Sequence[subprocess.Popen]], object]


def initialize_distributed() -> None:
    """Joins the processes of this training as the environment describes; does nothing without COORDINATOR. Raises ValueError on failure."""
    coordinator = os.environ.get(COORDINATOR)
    if not coordinator:
        return
    if coordinator == PATHWAYS:
        try:
            import pathwaysutils
        except ImportError:
            raise ValueError(
                f"{COORDINATOR}={coordinator}: pathwaysutils is not installed (pip install pathwaysutils)"
            ) from None
        pathwaysutils.initialize()
        return
    arguments: dict[str, Any] = {}
    if coordinator != AUTO:
        missing = [name for name in (PROCESSES, PROCESS) if not os.environ.get(name, "").isdigit()]
        if missing:
            raise ValueError(f"{COORDINATOR}={coordinator}: {' and '.join(missing)} must be numbers too")
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": int(os.environ[PROCESSES]),
            "process_id": int(os.environ[PROCESS]),
        }
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=JOIN_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"cannot join the other processes ({COORDINATOR}={coordinator}): {reason}") from None


@dataclass(frozen=True)
class Outcome:
    """How a supervised training ended: the exit code, and the number of restarts."""

    code: int
    restarts: int


def _start(command: Sequence[str], slots: Sequence[int]) -> list[subprocess.Popen]:
    """Starts one process per slot, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {COORDINATOR: coordinator, PROCESSES: str(len(slots))}
    each = [{PROCESS: str(i), SLOT: str(slot)} for i, slot in enumerate(slots)]
    return [start_child(command, os.environ | shared | variables) for variables in each]


def _kill(running: Sequence[subprocess.Popen]) -> None:
    for process in running:
        if process.poll() is None:
            # A process that waits for a lost peer reacts to no other signal.
            process.send_signal(signal.SIGKILL)
    for process in running:
        process.wait()


def _let_save(running: Sequence[subprocess.Popen]) -> None:
    """Sends SIGTERM to all and waits until they have saved and ended, at most ``GRACE`` seconds."""
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while any(p.poll() is None for p in running) and time.monotonic() < deadline:
        time.sleep(0.1)


def _wait(running: Sequence[subprocess.Popen], watch: Watch, stop: StopSignals) -> list[int | None]:
    """Waits until all succeed, one fails, or a signal comes. Returns the exit codes; no process runs afterwards."""
    try:
        while all(p.poll() in (None, 0) for p in running) and any(p.poll() is None for p in running):
            if stop.received:
                _let_save(running)
                raise stop.exit()
            watch(running)
            time.sleep(0.1)
        codes = [p.poll() for p in running]
        if any(code in _STOPPED for code in codes):
            # A stop was requested, and all of them save: the first to end is not always the one that writes last.
            _let_save(running)
        return codes
    finally:
        _kill(running)


def supervise(
    command: Sequence[str],
    processes: int,
    max_restarts: int,
    log: Callable[[str], object],
    watch: Watch = lambda _: None,
    elastic: bool = False,
) -> Outcome:
    """Runs ``command`` as several processes on this machine until all succeed; restarts all after a loss, ``max_restarts`` times.

    A process that was killed by a signal is a loss. One that ends with an error would do so again, and ends them all. ``watch`` is
    called several times a second with the running processes. With ``elastic``, the lost process is not restarted: the others resume
    without it, each from its copies in memory. SIGTERM and Ctrl-C let the processes save and end, then raise SystemExit. Processes
    that would outlive this one are killed.
    """
    slots = list(range(processes))
    with StopSignals() as stop:
        for restarts in range(max_restarts + 1):
            codes = _wait(_start(command, slots), watch, stop)
            lost = [(i, code) for i, code in enumerate(codes) if code not in (None, 0)]
            if not lost:
                return Outcome(0, restarts)
            index, code = min(lost, key=lambda item: item[1] or 0)
            if code is None or code > 0:
                return Outcome(code or 1, restarts)
            remaining = [slot for n, slot in enumerate(slots) if n != index] if elastic and len(slots) > 1 else slots
            restarted = "all" if remaining == slots else f"the other {len(remaining)}"
            loss = f"process {slots[index]} of {processes} was killed by signal {-code}"
            log(f"{loss}; {restarted} are restarted ({restarts + 1} of {max_restarts})")
            slots = remaining
    return Outcome(1, max_restarts)
