"""Processes that end when they should: children with their parent, long work after it has saved.

    alhena launch ─┬─ child            Linux ends a child when its parent ends, however that ended (prctl, PR_SET_PDEATHSIG)
                   └─ child ─ worker   a worker of a pool waits for the end of the process that made the pool

Run as a script, this file becomes the command that it is given, bound to its parent. A function between fork and exec
(``preexec_fn``) would not be safe in a process with threads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

_PR_SET_PDEATHSIG = 1
_NOTICE = b"\nalhena: stops as soon as its state is saved; Ctrl-C again stops it at once\n"


def start_child(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts a command that is killed when the calling process ends. The calling thread has to outlive the child.

    On systems without ``prctl`` the command is an ordinary child.
    """
    own = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid())]
    return subprocess.Popen([*own, *command], env=dict(environment))


def _become(parent: int, command: list[str]) -> None:
    """Binds this process to its parent and executes ``command`` in its place, which keeps the process id and the bond."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that ended before the call above sends no signal: the process has another parent by now.
    if os.getppid() != parent:
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"alhena: {command[0]}: {error.strerror}")


def end_with_parent() -> None:
    """The ``initializer`` of a process pool: its workers end when the process that made the pool ends, and on Ctrl-C."""
    import multiprocessing
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        # A pipe whose other end only the parent holds: it is ready when the parent has ended, also by SIGKILL.
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


class StopSignals:
    """Context manager: notes SIGTERM and SIGINT instead of ending the process; a second SIGINT ends it at once.

    The loop inside looks at ``received`` between its steps, saves, and raises :meth:`exit`. Outside the main thread, where Python
    allows no handlers, nothing is noted.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self.received: signal.Signals | None = None
        self._signals, self._interrupts = signals, 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            # No exception: unwinding through a compiler at work crashes the process.
            os._exit(128 + number)
        if self.received is None:
            self.received = signal.Signals(number)
            os.write(2, _NOTICE)

    def exit(self) -> SystemExit:
        """The exception that ends the process with the shell's code for the signal: 130 for SIGINT, 143 for SIGTERM."""
        return SystemExit(128 + (self.received or signal.SIGTERM))


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
