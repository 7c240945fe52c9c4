"""The progress bar of all long work: what, how far, how long, how long still."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(console: Console | None = None) -> Progress:
    """A rich Progress with the house's columns."""
    text, count = TextColumn("{task.description:20}"), MofNCompleteColumn()
    return Progress(text, BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
