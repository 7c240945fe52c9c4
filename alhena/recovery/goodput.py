"""Goodput: the fraction of the elapsed time spent on useful new steps, computed from a ledger of the run.

    ledger.jsonl   {"at": 1763.2, "what": "restore", "step": 400}     the time since the previous line was spent on ``what``,
                   {"at": 1771.9, "what": "steps", "step": 410}       after which training was at ``step``

    started      steps               killed       restarted
    │ compile │ ████████ │ save │ ▒▒▒▒ ╳ ┈┈┈┈┈┈┈┈ │ restore │ compile │ ████████ │    █ useful
                                  ▒ repeated: lost, since the restart resumed from an earlier checkpoint
                                  ┈ stopped: from the last line before the kill to the restart

The elapsed time begins with the first start and ends with the last line; the time between two processes counts. The first step of a
process is counted as compilation.
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
Activity = Literal["stopped", "restore", "compile", "steps", "validate", "save", "copy", "rollback"]
BACKWARD = ("stopped", "rollback")  # after these, steps after the line's step will be repeated


class Ledger:
    """Appends to a folder's ledger; one process at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._started = folder / FILE, time.time()
        truncate_log(self._path, sys.maxsize)  # a line that a killed process was writing

    def resumed(self, step: int) -> None:
        """Training starts or resumes, after ``step``."""
        add_line(self._path, {"at": self._started, "what": "stopped", "step": step})
        self.mark("restore", step)

    def mark(self, what: Activity, step: int) -> None:
        """Records that the time since the last mark was spent on ``what``."""
        add_line(self._path, {"at": time.time(), "what": what, "step": step})


@dataclass(frozen=True)
class Goodput:
    """Seconds of useful steps, of everything, and of the other activities by name."""

    useful: float
    elapsed: float
    other: dict[str, float]

    @property
    def share(self) -> float:
        return self.useful / self.elapsed if self.elapsed else 0.0

    def __str__(self) -> str:
        parts = sorted(self.other.items(), key=lambda item: -item[1])
        rest = ", ".join(f"{what} {100 * s / self.elapsed:.1f} %" for what, s in parts if s > 0.0005 * self.elapsed)
        return f"goodput {100 * self.share:.1f} % of {self.elapsed:,.0f} s" + (f" ({rest})" if rest else "")


def goodput(folder: Path) -> Goodput | None:
    """The goodput of a folder's ledger; None when there is no ledger. Raises ValueError that names the first invalid line."""
    lines = read_lines(folder / FILE, at=float, what=str, step=int)
    if not lines:
        return None
    for number, line in enumerate(lines, 1):
        if line["what"] not in get_args(Activity):
            raise ValueError(
                f"{folder / FILE}, line {number}: {line['what']!r:.40} is none of {get_args(Activity)}; delete the line"
            )
    # Intervals of steps: after which step, up to which, seconds.
    steps: list[tuple[int, int, float]] = []
    other: dict[str, float] = {}
    for before, line in itertools.pairwise(lines):
        seconds, what, step = line["at"] - before["at"], line["what"], line["step"]
        if what == "steps" and step > before["step"]:
            steps.append((before["step"], step, seconds))
            continue
        other[what] = other.get(what, 0.0) + seconds
        if what in BACKWARD:
            steps, repeated = _truncate(steps, step)
            other["repeated"] = other.get("repeated", 0.0) + repeated
    return Goodput(sum(seconds for _, _, seconds in steps), lines[-1]["at"] - lines[0]["at"], other)


def _truncate(steps: list[tuple[int, int, float]], step: int) -> tuple[list[tuple[int, int, float]], float]:
    """The intervals up to ``step``, and the seconds of those after it.

    >>> _truncate([(0, 10, 5.0), (10, 20, 4.0), (20, 30, 3.0)], 15)
    ([(0, 10, 5.0), (10, 15, 2.0)], 5.0)
    """
    before = [(a, min(b, step), s * (min(b, step) - a) / (b - a)) for a, b, s in steps if a < step]
    return before, sum(s for *_, s in steps) - sum(s for *_, s in before)
