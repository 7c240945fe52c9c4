"""Comparison of two models on the items that both answered: which differences are beyond chance.

McNemar's exact test where items are right or wrong, a paired bootstrap elsewhere (sacrebleu's for chrF and BLEU). The p-values of all tasks
are corrected together (Holm 1979), so that of twenty tasks without a difference none is reported, in 95 of 100 comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alhena.evaluate.card.card import LEVEL
from alhena.evaluate.card.write import read_sources
from alhena.evaluate.measure import paired
from alhena.evaluate.results import ReportRow
from alhena.evaluate.statistics import holm


@dataclass(frozen=True)
class Compared:
    """One task: scores of both models on common items in percent, the difference b - a with its 95 % interval, and the corrected p-value."""

    task: str
    metric: str
    items: int
    # Items that only one of them answered.
    left_out: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    p: float
    test: str
    # Whether b is.
    better: bool
    # The protocols of both, where they differ.
    unlike: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        return self.p < LEVEL


def _rows(path: Path) -> dict[str, ReportRow]:
    """The rows of one model at a path, by name. Raises ValueError when there are several models, or none has items."""
    sources = read_sources([path])
    rows = [row for source in sources for row in source.rows if row.scored]
    models = list(dict.fromkeys(model for row in rows for model in row.scores))
    if not rows:
        raise ValueError(f"{path}: no results of items here; `alhena evaluate` writes them")
    if len(models) > 1:
        raise ValueError(
            f"{path} has {', '.join(models)}: two models are compared (`alhena report` shows any number side by side)"
        )
    by_key: dict[str, ReportRow] = {}
    for row in rows:
        by_key.setdefault(row.key, row)
    return by_key


def compare_row(a: ReportRow, b: ReportRow) -> Compared:
    """One row of two results, uncorrected."""
    (of_a,), (of_b,) = (
        ({s.id: s for s in items} for items in a.scored.values()),
        ({s.id: s for s in items} for items in b.scored.values()),
    )
    common = [id for id in of_a if id in of_b]
    if not common:
        raise ValueError(f"{a.name}: the results have no item in common: measure both with the same --limit and --seed")
    if changed := [id for id in common if of_a[id].reference != of_b[id].reference]:
        raise ValueError(f"{a.name}: item {changed[0]} has two references: the results were measured on other data")
    d = paired(a.measure, [of_a[id] for id in common], [of_b[id] for id in common])
    better = d.b < d.a if a.lower_is_better else d.b > d.a
    return Compared(
        a.name, a.metric, len(common), len(of_a) + len(of_b) - 2 * len(common),
        round(d.a, 2), round(d.b, 2), round(d.difference, 2), (round(d.low, 2), round(d.high, 2)), d.p, d.test, better,
        () if a.protocol == b.protocol else (a.protocol, b.protocol),
    )  # fmt: skip


def compare(a: Path, b: Path) -> list[Compared]:
    """All rows that both results have, with corrected p-values. Raises ValueError when they have none in common."""
    of_a, of_b = _rows(a), _rows(b)
    common = [key for key in of_a if key in of_b]
    if not common:
        names = [", ".join(dict.fromkeys(row.name for row in rows.values())) for rows in (of_a, of_b)]
        raise ValueError(f"{a} has {names[0]}, {b} has {names[1]}: no task in common")
    compared = [compare_row(of_a[key], of_b[key]) for key in common]
    corrected = holm([c.p for c in compared])
    return [replace(c, p=float(f"{p:.3g}")) for c, p in zip(compared, corrected, strict=True)]


def print_comparison(compared: Sequence[Compared], names: tuple[str, str]) -> None:
    """A table, and what differs in words."""
    console, table = Console(), Table(title=f"{names[0]} → {names[1]}", title_justify="left", title_style="bold")
    for column in ("task", "items", "a", "b", "difference [95 %]", "p", ""):
        table.add_column(column, justify="left" if column in ("task", "") else "right")
    for c in compared:
        verdict = ("b is better" if c.better else "a is better") if c.differs else "within chance"
        low, high = c.interval
        table.add_row(
            f"{c.task}\n[dim]{c.metric}, {c.test}[/dim]", str(c.items), f"{c.a:.1f}", f"{c.b:.1f}",
            f"{c.difference:+.1f} [{low:+.1f}, {high:+.1f}]", f"{c.p:.3g}", verdict,
        )  # fmt: skip
    console.print(table)
    for c in compared:
        if c.left_out:
            console.print(f"{c.task}: {c.left_out} items that only one of them answered are left out", style="yellow")
        if c.unlike:
            console.print(f"{c.task}: asked in two ways ({'; '.join(c.unlike)})", style="yellow")
    better = [c.task for c in compared if c.differs]
    console.print(
        f"Beyond chance at {LEVEL:.0%}, corrected for {len(compared)} tasks: {', '.join(better) or 'nothing'}"
    )
