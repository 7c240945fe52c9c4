"""Comparison of two models on the items that both answered: which differences are beyond chance.

McNemar's exact test where items are right or wrong, a paired bootstrap elsewhere (sacrebleu's for chrF and BLEU). The p-values of all tasks
are corrected together (Holm 1979), so that of twenty tasks without a difference none is reported, in 95 of 100 comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from alhena.evaluate.statistics import holm, mcnemar, paired_bootstrap
from alhena.evaluate.tasks.scores import corpus_metric
from alhena.files import read_json, read_lines

LEVEL = 0.05


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
    # Settings that differ.
    unlike: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        return self.p < LEVEL


def _tasks(folder: Path) -> dict[str, Path]:
    """The results of a folder, or the one of a file, by task."""
    paths = [folder.with_suffix(".json")] if folder.is_file() else sorted(folder.glob("*.json"))
    found = {path.stem: path for path in paths if path.with_suffix(".jsonl").exists() and path.exists()}
    if not found:
        raise ValueError(
            f"{folder}: no results here (TASK.json with TASK.jsonl); `alhena evaluate --tasks` writes them"
        )
    return found


def _outcomes(path: Path) -> dict[str, dict[str, Any]]:
    lines = read_lines(path.with_suffix(".jsonl"), id=str, score=float, answer=str, reference=str)
    return {line["id"]: line for line in lines}


def _corpus_test(
    name: str, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]
) -> tuple[float, float, float]:
    """Scores of both models and the p-value of sacrebleu's paired bootstrap."""
    from sacrebleu.significance import PairedTest

    systems: list[tuple[str, Sequence[str]]] = [("a", [o["answer"] for o in a]), ("b", [o["answer"] for o in b])]
    references = [[o["reference"] for o in a]]
    _, results = PairedTest(systems, {name: corpus_metric(name)}, references, test_type="bs", n_samples=1000)()
    first, second = next(values for key, values in results.items() if key != "System")
    assert not isinstance(first, str) and not isinstance(second, str)
    return first.score, second.score, 1.0 if second.p_value is None else float(second.p_value)


def compare_task(path_a: Path, path_b: Path) -> Compared:
    """One task of two results, uncorrected."""
    settings = [read_json(path, task=str, metric=str, binary=bool, protocol=dict) for path in (path_a, path_b)]
    of_a, of_b = _outcomes(path_a), _outcomes(path_b)
    common = [id for id in of_a if id in of_b]
    if not common:
        raise ValueError(f"{path_a} and {path_b} have no item in common: measure both with the same --limit and --seed")
    if changed := [id for id in common if of_a[id]["reference"] != of_b[id]["reference"]]:
        raise ValueError(
            f"{path_a} and {path_b}: item {changed[0]} has two references: they were measured on other data"
        )
    rows_a, rows_b = ([of[id] for id in common] for of in (of_a, of_b))
    scores_a, scores_b = ([row["score"] for row in rows] for rows in (rows_a, rows_b))
    d = paired_bootstrap(scores_a, scores_b)
    a, b, p, test = 100 * float(np.mean(scores_a)), 100 * float(np.mean(scores_b)), d.p, "paired bootstrap"
    if corpus := settings[0].get("corpus_metric"):
        a, b, p = _corpus_test(corpus, rows_a, rows_b)
    elif settings[0]["binary"]:
        p, test = mcnemar(scores_a, scores_b), "McNemar"
    unlike = tuple(
        name for name, value in settings[0]["protocol"].items() if settings[1]["protocol"].get(name) != value
    )
    rounded = [round(100 * value, 2) for value in (d.mean, d.low, d.high)]
    return Compared(
        settings[0]["task"], settings[0]["metric"], len(common), len(of_a) + len(of_b) - 2 * len(common),
        round(a, 2), round(b, 2), rounded[0], (rounded[1], rounded[2]), p, test, unlike,
    )  # fmt: skip


def compare(a: Path, b: Path) -> list[Compared]:
    """All tasks that both results have, with corrected p-values. Raises ValueError when they have none in common."""
    of_a, of_b = _tasks(a), _tasks(b)
    common = [name for name in of_a if name in of_b]
    if not common:
        raise ValueError(f"{a} has {', '.join(of_a)}, {b} has {', '.join(of_b)}: no task in common")
    compared = [compare_task(of_a[name], of_b[name]) for name in common]
    corrected = holm([c.p for c in compared])
    return [Compared(**(asdict(c) | {"p": float(f"{p:.3g}")})) for c, p in zip(compared, corrected, strict=True)]


def print_comparison(compared: Sequence[Compared], names: tuple[str, str]) -> None:
    """A table, and what differs in words."""
    console, table = Console(), Table(title=f"{names[0]} → {names[1]}", title_justify="left", title_style="bold")
    for column in ("task", "items", "a", "b", "difference [95 %]", "p", ""):
        table.add_column(column, justify="left" if column in ("task", "") else "right")
    for c in compared:
        verdict = ("b is better" if c.b > c.a else "a is better") if c.differs else "within chance"
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
            console.print(f"{c.task}: measured with other settings ({', '.join(c.unlike)})", style="yellow")
    better = [c.task for c in compared if c.differs]
    console.print(
        f"Beyond chance at {LEVEL:.0%}, corrected for {len(compared)} tasks: {', '.join(better) or 'nothing'}"
    )
