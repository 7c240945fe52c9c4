"""The history of a run: every evaluation adds a record of its rows, from which the scores of each section over time are computed.

RUN/history.jsonl    {"time": "2026-01-31T12:00:00", "rows": [{"section", "name", "metric", "lower_is_better", "chance", "scores"}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alhena.evaluate.results import SECTIONS, ReportRow
from alhena.files import add_line, make_folder, read_lines
from alhena.schema import parsed

HISTORY = "history.jsonl"
# Newest records that are drawn.
MAX_RECORDS = 200
_FIELDS = ("section", "name", "metric", "lower_is_better", "items", "chance", "scores")


@dataclass(frozen=True)
class Point:
    """The score of a section at one evaluation, from chance (0) to the best (100)."""

    time: str
    score: float


@dataclass(frozen=True)
class Series:
    """The scores of one model in one section: of the same rows at every point."""

    model: str
    section: str
    rows: int
    points: tuple[Point, ...]


def share_above_chance(row: ReportRow, score: float) -> float | None:
    """A score from chance (0) to the best value of its metric (100), negative below chance; None where chance is the best."""
    best = row.measure.best
    return None if row.chance == best else 100 * (score - row.chance) / (best - row.chance)


def section_score(rows: Sequence[ReportRow], model: str) -> float | None:
    """The mean of the rows from chance (0) to the best (100); None without rows."""
    shares = [share_above_chance(row, row.scores[model]) for row in rows]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def add_to_history(run: Path, rows: Sequence[ReportRow]) -> None:
    """Adds a record of the rows to the history of a run."""
    make_folder(run)
    now = datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    add_line(run / HISTORY, {"time": now, "rows": [{n: getattr(row, n) for n in _FIELDS} for row in rows]})


def read_history(run: Path) -> list[tuple[str, list[ReportRow]]]:
    """Time and rows of each record."""
    path = run / HISTORY
    records = read_lines(path, time=str, rows=list)[-MAX_RECORDS:]
    return [(record["time"], [parsed(ReportRow, row, path) for row in record["rows"]]) for record in records]


def series(records: Sequence[tuple[str, Sequence[ReportRow]]]) -> list[Series]:
    """The scores of every model in every section over the evaluations that measured it.

    A section at a time has the newest score of each row; only times at which all of today's rows were known are joined.
    """
    state: dict[tuple[str, str], dict[str, ReportRow]] = {}
    times: dict[tuple[str, str], list[tuple[str, Mapping[str, ReportRow]]]] = {}
    for time, rows in records:
        touched = {(model, row.section): row for row in rows for model in row.scores}
        for row in rows:
            for model in row.scores:
                state.setdefault((model, row.section), {})[row.key] = row
        for key in touched:
            times.setdefault(key, []).append((time, dict(state[key])))
    out = []
    for (model, section), known in times.items():
        newest = set(known[-1][1])
        points = [
            Point(time, round(score, 2))
            for time, rows in known
            if set(rows) == newest and (score := section_score([*rows.values()], model)) is not None
        ]
        if points:
            out.append(Series(model, section, len(newest), tuple(points)))
    return sorted(out, key=lambda one: SECTIONS.index(one.section))


def history_json(found: Sequence[Series]) -> list[dict[str, Any]]:
    """As it stands in report.json."""
    return [
        {
            "model": s.model,
            "section": s.section,
            "rows": s.rows,
            "points": [{"time": p.time, "score": p.score} for p in s.points],
        }
        for s in found
    ]
