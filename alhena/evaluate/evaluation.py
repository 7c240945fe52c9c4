"""The evaluate stage: one or more models answer the test split, and the report is written.

test documents ─ prompts ─ Engine ─ answers ─ metrics and judges ─► results.json, answers.jsonl, report.html, report.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from alhena.content import Document, Text
from alhena.documents import read_documents
from alhena.evaluate import metrics
from alhena.evaluate.answers import answer_questions
from alhena.evaluate.judges import digit_judge
from alhena.evaluate.report import formatted, write_report
from alhena.evaluate.results import AnsweredQuestion, Evaluation, ReportRow
from alhena.evaluate.scoring import bits_per_byte
from alhena.evaluate.tasks.starter import BITS_PER_BYTE, TASK_METRICS, TaskMetric, chance_level
from alhena.files import write_atomically, write_json
from alhena.model.storage.weights import WEIGHTS, read_config
from alhena.serve.engine import Engine

NOT_ABOVE_CHANCE = "✗"


def answer_row(task: TaskMetric, answered: Sequence[AnsweredQuestion]) -> ReportRow | None:
    """The row of one metric of one task; None when no question belongs to it."""
    questions = [question for question in answered if task.selects(question.document)]
    if not questions:
        return None
    references = [question.reference for question in questions]
    answers = {name: [question.answers[name] for question in questions] for name in questions[0].answers}
    interval = metrics.confidence_interval(task.metric, references, next(iter(answers.values())))
    return ReportRow(
        group=task.group,
        name=task.name,
        metric=task.metric_name,
        lower_is_better=task.lower_is_better,
        items=len(questions),
        chance=round(chance_level(task, [question.document for question in questions], references), 2),
        scores={name: round(task.metric(references, predicted), 2) for name, predicted in answers.items()},
        interval=interval if interval is None else round(interval, 1),
        truncated={name: sum(name in question.truncated for question in questions) for name in answers},
    )


def text_row(name: str, engines: Mapping[str, Engine], documents: Sequence[Document]) -> ReportRow | None:
    """Bits per byte of held-out running text; the chance level is the entropy of single bytes. None without documents."""
    if not documents:
        return None
    texts = [part.text for document in documents for part in document.parts if isinstance(part, Text)]
    chance = round(metrics.byte_entropy(texts), 3)
    scores = {model: round(bits_per_byte(engine, documents), 3) for model, engine in engines.items()}
    return ReportRow("text", name, BITS_PER_BYTE, True, len(documents), chance, scores, None)


def evaluate(engines: Mapping[str, Engine], documents: Sequence[Document]) -> Evaluation:
    """All rows of the report that the documents have items for, and the answers."""
    texts = {name: [d for d in documents if d.facts.get("task") == name] for name in ("text", "code")}
    rows = [text_row(f"held-out {name}", engines, group) for name, group in texts.items()]
    answers = answer_questions(engines, documents)
    rows += [answer_row(task, answers.questions) for task in TASK_METRICS]
    return Evaluation([row for row in rows if row is not None], answers)


def _cells(row: ReportRow) -> list[str]:
    scores = [formatted(row, value) for value in row.scores.values()]
    interval = "–" if row.interval is None else f"{row.interval:.1f}"
    truncated = max(row.truncated.values(), default=0)
    notes = [NOT_ABOVE_CHANCE] * (not row.above_chance) + [f"{truncated} truncated"] * (truncated > 0)
    chance = formatted(row, row.chance)
    return [f"{row.name}\n[dim]{row.metric}[/dim]", str(row.items), chance, *scores, interval, "\n".join(notes)]


def print_report(rows: Sequence[ReportRow], skipped: Mapping[str, int], title: str = "Report card") -> None:
    """Prints the rows as a table that fits 80 columns, and below it the number of skipped documents by reason."""
    console = Console()
    if rows:
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("capability, metric", overflow="fold")
        for column in ("items", "chance", *rows[0].scores, "± 95 %"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")
        for i, row in enumerate(rows):
            last_of_group = i + 1 == len(rows) or rows[i + 1].group != row.group
            table.add_row(*_cells(row), style=None if row.above_chance else "red", end_section=last_of_group)
        if not all(row.above_chance for row in rows):
            table.caption = f"{NOT_ABOVE_CHANCE} not above chance"
        console.print(table)
    for reason, count in skipped.items():
        console.print(f"not measured: {count:,} × {reason}", style="yellow", markup=False)


def evaluate_models(test: Path, models: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Evaluates models on a split; writes results.json, answers.jsonl, report.html and report.png to ``out``.

    ``models`` maps names to model folders; all answer the same questions. Returns the number of rows, of rows above chance, and of
    skipped questions. Raises ValueError when no row has an item in the split.
    """
    engines = {name: Engine.load(folder) for name, folder in models.items()}
    evaluation = evaluate(engines, list(read_documents(test)))
    rows, answers = evaluation.rows, evaluation.answers
    if not rows:
        raise ValueError(
            f"{test}: no document belongs to a task of the report; evaluate it with alhena evaluate --data {test}"
        )
    results = {
        "model": read_config(next(iter(models.values())))[1],
        "bytes": {name: (folder / WEIGHTS).stat().st_size for name, folder in models.items()},
        "digit_judge_accuracy": round(digit_judge()[1], 1),
        "rows": [asdict(row) for row in rows],
        "skipped": answers.skipped,
    }
    write_json(out / "results.json", results)
    write_atomically(out / "answers.jsonl", answers.to_json_lines())
    write_report(evaluation, results, out)
    print_report(rows, answers.skipped)
    above = sum(row.above_chance for row in rows)
    return {"rows": len(rows), "above_chance": above, "skipped": sum(answers.skipped.values())}
