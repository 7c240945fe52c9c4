"""SIGINT and SIGTERM outside training loops: a command ends with one line, soon, and without a crash.

    signal ─┬─ Python handler ─► Interrupted ─► unwinding, or a destructor or callback that loses it ─► end_interrupted
            └─ watcher thread ─► GRACE seconds ───────────────────────────────────────────────────────► end_interrupted

Python runs a handler only between bytecodes, so not while XLA compiles, and a library may discard the exception: hence the watcher. Training loops replace the handler and save first (:class:`alhena.processes.StopSignals`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds for unwinding: removing partial files, restoring the terminal.
GRACE = 5


class Interrupted(KeyboardInterrupt):
    """A signal; ``number`` is SIGINT or SIGTERM."""

    def __init__(self, number: int) -> None:
        self.number = number


def hold_signals() -> None:
    """Delays signals until :func:`handle_signals`; also across an exec, in which a new interpreter starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def handle_signals() -> None:
    """Lets SIGINT and SIGTERM raise :class:`Interrupted`, and starts the watcher. A signal that is ignored stays ignored (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    sys.unraisablehook = _end_if_interrupted
    received, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(received,), name="interrupts", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _raise(number: int, frame: object) -> None:
    raise Interrupted(number)


def _end_if_interrupted(lost: Any) -> None:
    """For exceptions that Python discards, such as those raised in destructors and in XLA's callback of the garbage collector."""
    if isinstance(lost.exc_value, Interrupted):
        end_interrupted(lost.exc_value.number)
    sys.__unraisablehook__(lost)


def _watch(received: int) -> None:
    # Each signal writes its number, at once, whatever the main thread does.
    while number := os.read(received, 1):
        if signal.getsignal(number[0]) is _raise:
            time.sleep(GRACE)
            end_interrupted(number[0])


def interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an error is, or that a library replaced with an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def end_interrupted(number: int) -> NoReturn:
    """Ends the process with the shell's code for the signal: 130 for SIGINT, 143 for SIGTERM.

    Not by an exception: the interpreter's exit would wait for threads, and crash while one of them compiles.
    """
    with suppress(OSError, ValueError):
        print("\nalhena: interrupted; type the same command again to resume", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + number)
