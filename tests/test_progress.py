"""Progress without a terminal: a line a minute, and one at the end."""

from __future__ import annotations

import io

from rich.console import Console

from alhena.progress import LoggedProgress, progress_bar


def test_a_line_a_minute_shows_progress_and_remaining_time():
    now, out = [0.0], io.StringIO()
    with LoggedProgress(Console(file=out, width=40), get_time=lambda: now[0]) as progress:
        task = progress.add_task("train [a]", total=1200)
        for _ in range(1200):
            now[0] += 0.5
            progress.update(task, advance=1, note="loss 1.5")
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "train [a]: 120 of 1,200, 0:01:00 elapsed, 0:09:00 remaining · loss 1.5"
    assert lines[-1] == "train [a]: 1,200 of 1,200, 0:10:00 elapsed · loss 1.5"


def test_short_work_prints_one_line_and_work_of_unknown_length_its_count():
    out = io.StringIO()
    with progress_bar(Console(file=out)) as progress:
        known, unknown = progress.add_task("known", total=3), progress.add_task("unknown", total=None)
        for _ in range(3):
            progress.advance(known)
            progress.advance(unknown)
    assert [line.partition(",")[0] for line in out.getvalue().splitlines()] == ["known: 3 of 3", "unknown: 3"]


def test_a_terminal_gets_a_bar():
    assert not isinstance(progress_bar(Console(file=io.StringIO(), force_terminal=True)), LoggedProgress)


def test_progress_starts_from_the_completed_count(capsys):
    with progress_bar() as progress:
        task = progress.add_task("learn", total=5, completed=3)
        for _ in range(3, 5):
            progress.update(task, advance=1)
    assert capsys.readouterr().out.startswith("learn: 5 of 5")
