"""Alhena trains, tunes and serves natively multimodal models.

Start with `alhena demo`, then `alhena chat runs/starter`. `alhena COMMAND --help` explains the flags of a command.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import tyro

from alhena.cli.build import Compress, Corpus, Curate, Demo, Pretrain, Tokenize
from alhena.cli.scaling import Launch, Plan, Replay, Runs, Scale
from alhena.cli.serving import Chat, Serve
from alhena.cli.tuning import Evaluate, Tune
from alhena.cli.weights import Check, Export, Import
from alhena.large_pages import use_large_pages

Command = (
    Demo
    | Corpus
    | Curate
    | Tokenize
    | Pretrain
    | Tune
    | Compress
    | Evaluate
    | Chat
    | Serve
    | Import
    | Export
    | Check
    | Launch
    | Replay
    | Runs
    | Scale
    | Plan
)


def _cache_compiled_programs() -> None:
    """Keeps compiled programs between runs, so that a second start compiles nothing. JAX reads these when it is imported."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alhena" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


class _Terminated(KeyboardInterrupt):
    """SIGTERM outside a training loop: ends a command in the same way as Ctrl-C."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an error is, or that a library replaced by an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _end_interrupted(interrupt: KeyboardInterrupt) -> NoReturn:
    """Ends the process with the shell's code for the signal: 130 for SIGINT, 143 for SIGTERM.

    The interpreter's own exit would wait for threads, and crash while one of them compiles.
    """
    number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    with suppress(OSError, ValueError):
        print("\nalhena: interrupted; type the same command again to resume", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + number)


def main() -> None:
    """Entry point: one clear line for every foreseeable error, no traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    use_large_pages()
    try:
        command = tyro.cli(Command, prog="alhena", description=__doc__)
        _cache_compiled_programs()
        command()
    except (Exception, KeyboardInterrupt) as error:
        if interrupt := _interrupt_behind(error):
            _end_interrupted(interrupt)
        foreseen = isinstance(error, ValueError | OSError | MemoryError | BrokenProcessPool)
        if not foreseen or os.environ.get("ALHENA_TRACEBACK"):
            raise
        sys.exit(f"alhena: {_line_of(error)}")


def _line_of(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({error or 'no more could be allocated'}); give the process more, or less to do at a time"
        )
    if isinstance(error, BrokenProcessPool):
        return "a worker process was killed, probably for memory; finished work is saved: type the command again"
    return str(error)


if __name__ == "__main__":
    main()
