"""Several processes, one training: joining them, and starting them again when one of them is lost.

alhena launch 2 -- pretrain runs/starter --recipe …      on one machine; elsewhere a scheduler starts the processes (docs/scale-out.md)

supervisor ─┬─ process 0 ──────╳ killed           all are stopped and started again; they go on from the newest copy that an intact
            └─ process 1 ──────  stopped          pod has in memory (replicas.py), or else from the last checkpoint
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alhena.processes import StopSignals, start_child
from alhena.recovery.memory_checkpoint import SLOT

COORDINATOR, PROCESSES, PROCESS = "ALHENA_COORDINATOR", "ALHENA_PROCESSES", "ALHENA_PROCESS"
AUTO = "auto"  # as the coordinator: ask the cluster (Slurm, Open MPI, Kubernetes, Cloud TPU)
PATHWAYS = "pathways"  # as the coordinator: this one process drives all slices, through Pathways
JOIN_TIMEOUT = 300  # seconds until all have joined
GRACE = 120  # seconds for saving after SIGTERM; after them what still runs is killed
_ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
Watch = Callable[[Sequence[subprocess.Popen]], None]


def initialize_distributed() -> None:
    """Joins the processes that the environment tells of; nothing when it tells of none. Raises ValueError when they cannot be joined."""
    where = os.environ.get(COORDINATOR)
    if not where:
        return
    if where == PATHWAYS:
        try:
            import pathwaysutils
        except ImportError:
            raise ValueError(
                f"{COORDINATOR}={where}: pathwaysutils is not installed (pip install pathwaysutils)"
            ) from None
        pathwaysutils.initialize()
        return
    import jax

    given = {} if where == AUTO else {"coordinator_address": where}
    if where != AUTO:
        missing = [name for name in (PROCESSES, PROCESS) if not os.environ.get(name, "").isdigit()]
        if missing:
            raise ValueError(f"{COORDINATOR}={where}: {' and '.join(missing)} must be numbers too")
        given |= {"num_processes": int(os.environ[PROCESSES]), "process_id": int(os.environ[PROCESS])}  # type: ignore[dict-item]
    try:
        jax.distributed.initialize(**given, initialization_timeout=JOIN_TIMEOUT)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"cannot join the other processes ({COORDINATOR}={where}): {reason}") from None


@dataclass(frozen=True)
class Outcome:
    """How a supervised training ended: the exit code, and how often it was started again."""

    code: int
    restarts: int


def _start(command: Sequence[str], slots: Sequence[int]) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    own = {COORDINATOR: where, PROCESSES: str(len(slots))}
    numbers = [{PROCESS: str(i), SLOT: str(slot)} for i, slot in enumerate(slots)]
    return [start_child(command, os.environ | own | number) for number in numbers]


def _kill(running: Sequence[subprocess.Popen]) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)  # one that waits for a lost peer hears nothing else
    for process in running:
        process.wait()


def _let_save(running: Sequence[subprocess.Popen]) -> None:
    """Sends SIGTERM to all and waits until they have saved and ended, ``GRACE`` seconds at most."""
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE
    while any(p.poll() is None for p in running) and time.monotonic() < until:
        time.sleep(0.1)


def _wait(running: Sequence[subprocess.Popen], watch: Watch, stop: StopSignals) -> list[int | None]:
    """The exit codes when all have ended well or one has not, or after a signal to this process; then none runs any more."""
    try:
        while all(p.poll() in (None, 0) for p in running) and any(p.poll() is None for p in running):
            if stop.received:
                _let_save(running)
                raise stop.exit()
            watch(running)
            time.sleep(0.1)
        codes = [p.poll() for p in running]
        if any(code in _ASKED for code in codes):
            # One was asked to end, and all of them save: the first to end is not always the one that writes last.
            _let_save(running)
        return codes
    finally:
        _kill(running)


def supervise(
    command: Sequence[str],
    processes: int,
    most: int,
    tell: Callable[[str], None],
    watch: Watch = lambda _: None,
    elastic: bool = False,
) -> Outcome:
    """Runs ``command`` as so many processes on this machine until all end well; after a loss all begin again, ``most`` times.

    A process that was killed by a signal is a loss; one that ends with an error of its own would end so again, and ends them all.
    ``watch`` is called several times a second with the running processes. ``elastic``: the one that was lost stays out, and the others
    go on alone, each with what it has in memory. SIGTERM and Ctrl-C let the processes save and end, then raise SystemExit; processes
    that outlive this one are killed.
    """
    slots = list(range(processes))
    with StopSignals() as stop:
        for restarts in range(most + 1):
            codes = _wait(_start(command, slots), watch, stop)
            lost = [(i, code) for i, code in enumerate(codes) if code not in (None, 0)]
            if not lost:
                return Outcome(0, restarts)
            where, code = min(lost, key=lambda found: found[1] or 0)
            if code is None or code > 0:
                return Outcome(code or 1, restarts)
            left = [slot for n, slot in enumerate(slots) if n != where] if elastic and len(slots) > 1 else slots
            which = "all" if left == slots else f"the other {len(left)}"
            what = f"process {slots[where]} of {processes} was killed by signal {-code}"
            tell(f"{what}; {which} are started again ({restarts + 1} of {most})")
            slots = left
    return Outcome(1, most)
