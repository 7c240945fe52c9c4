"""The evaluate stage: one or more models answer the test split, and the report card is written.

test documents ─ prompts ─ Engine ─ answers ─ metrics and judges ─► results.json, answers.jsonl, report.html, report.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alhena.content import Document, Text, read_documents
from alhena.evaluate import metrics
from alhena.evaluate.answers import answer_questions
from alhena.evaluate.judges import digit_judge
from alhena.evaluate.report import write_report
from alhena.evaluate.results import AnsweredQuestion, ReportRow, Evaluation
from alhena.evaluate.scoring import bits_per_byte
from alhena.evaluate.tasks import TASK_METRICS, TaskMetric, chance
from alhena.files import write_atomically, write_json
from alhena.model.weights import read_config
from alhena.serve.engine import Engine

NOT_ABOVE_CHANCE = "✗"


def answer_row(row: TaskMetric, answered: Sequence[AnsweredQuestion]) -> ReportRow | None:
    """The score of each model on one row; None when the split has no such item."""
    some = [a for a in answered if row.selects(a.document)]
    if not some:
        return None
    references = [a.reference for a in some]
    said = {name: [a.answers[name] for a in some] for name in some[0].answers}
    scores = {name: round(row.metric(references, answers), 2) for name, answers in said.items()}
    half = metrics.confidence_interval(row.metric, references, next(iter(said.values())))
    return ReportRow(
        row.group,
        row.name,
        row.metric_name,
        row.lower_is_better,
        len(some),
        round(chance(row, [a.document for a in some], references), 2),
        scores,
        half if half is None else round(half, 1),
        {name: sum(name in a.truncated for a in some) for name in said},
    )


def text_row(name: str, engines: Mapping[str, Engine], documents: Sequence[Document]) -> ReportRow | None:
    """Bits per byte of held-out running text, against single bytes."""
    if not documents:
        return None
    texts = [part.text for d in documents for part in d.parts if isinstance(part, Text)]
    scores = {model: round(bits_per_byte(engine, documents), 3) for model, engine in engines.items()}
    return ReportRow(
        "text", name, "bits per byte", True, len(documents), round(metrics.byte_entropy(texts), 3), scores, None
    )


def evaluate(engines: Mapping[str, Engine], documents: Sequence[Document]) -> Evaluation:
    """All rows of the card."""
    running = {name: [d for d in documents if d.facts.get("task") == name] for name in ("text", "code")}
    lines = [text_row(f"held-out {name}", engines, some) for name, some in running.items()]
    asked = answer_questions(engines, documents)
    lines += [answer_row(row, asked.questions) for row in TASK_METRICS]
    return Evaluation([line for line in lines if line is not None], asked)


def _cells(line: ReportRow) -> list[str]:
    digits = 2 if line.metric == "bits per byte" else 1
    half = "–" if line.interval is None else f"{line.interval:.1f}"
    cut = str(max(line.truncated.values(), default=0) or "–")
    mark = "" if line.above_chance else NOT_ABOVE_CHANCE
    scores = [f"{value:.{digits}f}" for value in line.scores.values()]
    return [line.group, line.name, line.metric, str(line.items), f"{line.chance:.{digits}f}", *scores, half, cut, mark]


def print_report(lines: Sequence[ReportRow], not_asked: Mapping[str, int], title: str = "report card") -> None:
    """The rows as a table in the terminal, and under it what could not be asked."""
    console = Console()
    if lines:
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("", "capability", "metric"):
            table.add_column(column)
        for column in ("items", "chance", *lines[0].scores, "± 95 %", "cut off"):
            table.add_column(column, justify="right")
        table.add_column("")
        for line in lines:
            table.add_row(*_cells(line), style=None if line.above_chance else "red")
        if not all(line.above_chance for line in lines):
            table.caption = f"{NOT_ABOVE_CHANCE} not above chance"
        console.print(table)
    for reason, count in not_asked.items():
        console.print(f"not measured: {count:,} × {reason}", style="yellow", markup=False)


def evaluate_models(test: Path, models: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Asks every model the test split; writes results.json, answers.jsonl, report.html and report.png to ``out``."""
    engines = {name: Engine.load(folder) for name, folder in models.items()}
    measured = evaluate(engines, list(read_documents(test)))
    lines, asked = measured.rows, measured.answers
    if not lines:
        raise ValueError(
            f"{test}: no document that the report card has a row for; measure it with alhena evaluate --data"
        )
    results = {
        "model": read_config(next(iter(models.values())))[1],
        "bytes": {name: (folder / "weights.safetensors").stat().st_size for name, folder in models.items()},
        "digit_judge_accuracy": round(digit_judge()[1], 1),
        "lines": [asdict(line) for line in lines],
        "not_asked": asked.skipped,
    }
    write_json(out / "results.json", results)
    write_atomically(out / "answers.jsonl", "".join(a.to_json() + "\n" for a in asked.questions))
    write_report(lines, asked.questions, results, out)
    print_report(lines, asked.skipped)
    above = sum(line.above_chance for line in lines)
    return {"rows": len(lines), "above_chance": above, "not_asked": sum(asked.skipped.values())}
