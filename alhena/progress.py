"""Progress of all long work: a bar in a terminal, and a log line a minute where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Seconds between log lines of one task.
INTERVAL = 60.0


def _columns() -> tuple[ProgressColumn, ...]:
    text, count = TextColumn("{task.description:20}"), MofNCompleteColumn()
    return text, BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn()


class LoggedProgress(Progress):
    """A Progress that prints ``title: done of total, elapsed, remaining``: every INTERVAL seconds, and when a task is complete.

    A task may have the field ``note``: a text that is appended to its line, such as training losses.
    """

    def __init__(self, console: Console | None = None, get_time: Callable[[], float] = time.monotonic) -> None:
        super().__init__(*_columns(), console=console, get_time=get_time, auto_refresh=False)
        self._printed: dict[TaskID, tuple[float, float]] = {}

    def start(self) -> None:
        """No live display."""

    def stop(self) -> None:
        for task in self.tasks:
            self._print(task)

    def get_renderables(self) -> Iterator[Any]:
        """Nothing to display."""
        yield from ()

    def add_task(self, *arguments: Any, **more: Any) -> TaskID:
        added = super().add_task(*arguments, **more)
        self._printed[added] = self.get_time(), -1.0
        return added

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._print_if_due(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_if_due(task_id)

    def _print_if_due(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        if task.finished or self.get_time() - self._printed[task_id][0] >= INTERVAL:
            self._print(task)

    def _print(self, task: Task) -> None:
        """Prints the line of a task, unless its count has not changed since the last line."""
        if self._printed[task.id][1] == task.completed:
            return
        self._printed[task.id] = self.get_time(), task.completed
        total = "" if task.total is None else f" of {task.total:,.0f}"
        left = _clock(task.time_remaining)
        remaining = f", {left} remaining" if left and not task.finished else ""
        note = f" · {task.fields['note']}" if task.fields.get("note") else ""
        line = f"{task.description}: {task.completed:,.0f}{total}, {_clock(task.elapsed)} elapsed{remaining}{note}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def progress_bar(console: Console | None = None) -> Progress:
    """A Progress to use as a context manager: live in a terminal, a log line a minute elsewhere."""
    console = console or Console()
    return Progress(*_columns(), console=console) if console.is_terminal else LoggedProgress(console)
