"""Alhena trains, tunes and serves natively multimodal models.

Start with `alhena demo`, then `alhena chat runs/starter`. `alhena COMMAND --help` explains the flags of a command.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from alhena.cli.interrupts import end_interrupted, handle_signals, hold_signals, interrupt_behind
from alhena.large_pages import use_large_pages


def _cache_compiled_programs() -> None:
    """Keeps compiled programs between runs, so that a second start compiles nothing. JAX reads these when it is imported."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alhena" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def main() -> None:
    """Entry point: one clear line for every foreseeable error and for interrupts, no traceback."""
    hold_signals()
    # Starts the program again, once.
    use_large_pages()
    try:
        handle_signals()
        # Imported here, where an interrupt is handled.
        import tyro

        from alhena.cli.commands import Command

        command = tyro.cli(Command, prog="alhena", description=__doc__)
        _cache_compiled_programs()
        command()
    except (Exception, KeyboardInterrupt) as error:
        if interrupt := interrupt_behind(error):
            end_interrupted(getattr(interrupt, "number", signal.SIGINT))
        foreseen = isinstance(error, ValueError | OSError | MemoryError) or _is_lost_worker(error)
        if not foreseen or os.environ.get("ALHENA_TRACEBACK"):
            raise
        sys.exit(f"alhena: {_line_of(error)}")


def _is_lost_worker(error: BaseException) -> bool:
    # Not imported above: the program is started twice.
    from concurrent.futures.process import BrokenProcessPool

    return isinstance(error, BrokenProcessPool)


def _line_of(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({error or 'no more could be allocated'}); give the process more, or less to do at a time"
        )
    if _is_lost_worker(error):
        return "a worker process was killed, probably for memory; finished work is saved: type the command again"
    return str(error)


if __name__ == "__main__":
    main()
