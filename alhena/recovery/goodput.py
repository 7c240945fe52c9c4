"""Goodput: the share of the elapsed time that went into useful new steps, from a ledger beside the metrics.

    ledger.jsonl   {"at": 1763.2, "what": "restore", "step": 400}     the time since the line before went into ``what``,
                   {"at": 1771.9, "what": "steps", "step": 410}       after which training stood at ``step``

    started      steps               killed       started again
    │ compile │ ████████ │ save │ ▒▒▒▒ ╳ ┈┈┈┈┈┈┈┈ │ restore │ compile │ ████████ │    █ useful
                                  ▒ repeated: done, but after the checkpoint that the next start went on from
                                  ┈ stopped: from the last line before the kill to the next start

What is elapsed begins with the first start and ends with the last line; the time between two processes counts, as it does for who
waits for the model. The first step of a process is counted as compiling.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from alhena.files import add_line, read_lines, truncate_log

FILE = "ledger.jsonl"
What = Literal["stopped", "restore", "compile", "steps", "validate", "save", "copy", "rollback"]
BACKWARD = ("stopped", "rollback")  # after these, steps beyond the line's own will be done again


class Ledger:
    """Appends to a folder's ledger; one process at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._began = folder / FILE, time.time()
        truncate_log(self._path, sys.maxsize)  # a line that a killed process was writing

    def resumed(self, step: int) -> None:
        """Training begins or goes on, after ``step``."""
        add_line(self._path, {"at": self._began, "what": "stopped", "step": step})
        self.mark("restore", step)

    def mark(self, what: What, step: int) -> None:
        """The time since the last mark went into ``what``."""
        add_line(self._path, {"at": time.time(), "what": what, "step": step})


@dataclass(frozen=True)
class Goodput:
    useful: float  # seconds
    elapsed: float
    other: dict[str, float]  # seconds of what else

    @property
    def share(self) -> float:
        return self.useful / self.elapsed if self.elapsed else 0.0

    def __str__(self) -> str:
        parts = sorted(self.other.items(), key=lambda item: -item[1])
        rest = ", ".join(f"{what} {100 * s / self.elapsed:.1f} %" for what, s in parts if s > 0.0005 * self.elapsed)
        return f"goodput {100 * self.share:.1f} % of {self.elapsed:,.0f} s" + (f" ({rest})" if rest else "")


def goodput(folder: Path) -> Goodput | None:
    """What the ledger of a folder adds up to; None when there is none."""
    lines = read_lines(folder / FILE, at=float, what=str, step=int)
    if not lines:
        return None
    for number, line in enumerate(lines, 1):
        if line["what"] not in get_args(What):
            raise ValueError(
                f"{folder / FILE}, line {number}: {line['what']!r:.40} is not of {get_args(What)}; delete the line"
            )
    steps: list[tuple[int, int, float]] = []  # after which step, up to which, seconds
    other: dict[str, float] = {}
    for before, line in itertools.pairwise(lines):
        seconds, what, step = line["at"] - before["at"], line["what"], line["step"]
        if what == "steps" and step > before["step"]:
            steps.append((before["step"], step, seconds))
            continue
        other[what] = other.get(what, 0.0) + seconds
        if what in BACKWARD:
            steps, repeated = _cut(steps, step)
            other["repeated"] = other.get("repeated", 0.0) + repeated
    return Goodput(sum(seconds for _, _, seconds in steps), lines[-1]["at"] - lines[0]["at"], other)


def _cut(steps: list[tuple[int, int, float]], step: int) -> tuple[list[tuple[int, int, float]], float]:
    """The pieces up to ``step``, and the seconds of what lies beyond.

    >>> _cut([(0, 10, 5.0), (10, 20, 4.0), (20, 30, 3.0)], 15)
    ([(0, 10, 5.0), (10, 15, 2.0)], 5.0)
    """
    kept = [(a, min(b, step), s * (min(b, step) - a) / (b - a)) for a, b, s in steps if a < step]
    return kept, sum(s for *_, s in steps) - sum(s for *_, s in kept)
