"""Processes: children that end with their parent, signals that end long work after it has saved, values gathered from all processes.

    alhena launch ─┬─ child            Linux ends a child when its parent ends, however that ended (prctl, PR_SET_PDEATHSIG)
                   └─ child ─ worker   a worker of a pool waits for the end of the process that made the pool

Run as a script, this file executes the command in its arguments, bound to its parent. A function between fork and exec
(``preexec_fn``) would not be safe in a process with threads. The script starts without site packages, so this file imports none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
_NOTICE = b"\nalhena: stopping as soon as the state is saved; Ctrl-C again stops at once\n"


def start_child(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts a command that is killed when the calling process ends. The calling thread must outlive the child.

    On systems without ``prctl`` the command is an ordinary child process.
    """
    launcher = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid())]
    return subprocess.Popen([*launcher, *command], env=dict(environment))


def _execute(parent: int, command: list[str]) -> None:
    """Binds this process to its parent and executes ``command`` in its place, which inherits the process id and the binding."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # If the parent ended before the call above, no signal will come: this process has another parent now.
    if os.getppid() != parent:
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"alhena: {command[0]}: {error.strerror}")


def end_with_parent() -> None:
    """An ``initializer`` for process pools: workers end when the process that made the pool ends, and on Ctrl-C."""
    import multiprocessing
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait_for_parent() -> None:
        # A pipe whose other end only the parent has open: it is ready when the parent has ended, also by SIGKILL.
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_parent, name="end with parent", daemon=True).start()


class StopSignals:
    """Context manager: records SIGTERM and SIGINT instead of ending the process; a second SIGINT ends it at once.

    The loop inside checks ``received`` between its steps, saves, and raises :meth:`exit`. Outside the main thread, where Python
    allows no handlers, no signal is recorded.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self.received: signal.Signals | None = None
        self._signals, self._interrupts = signals, 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in self._signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            # No exception: unwinding through a running compilation crashes the process.
            os._exit(128 + number)
        if self.received is None:
            self.received = signal.Signals(number)
            os.write(2, _NOTICE)

    def exit(self) -> SystemExit:
        """The exception that ends the process with the shell's code for the signal: 130 for SIGINT, 143 for SIGTERM."""
        return SystemExit(128 + (self.received or signal.SIGTERM))


def gather_from_processes(value: Any) -> list[Any]:
    """The values (JSON) that all processes of a training pass, in the order of their index."""
    import numpy as np
    from jax.experimental import multihost_utils

    local = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(local)])).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(local)] = local
    gathered = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


if __name__ == "__main__":
    _execute(int(sys.argv[1]), sys.argv[2:])
