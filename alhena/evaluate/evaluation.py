"""The evaluate stage: one or more models answer the test split, and the report card is written.

test documents, needles ─ prompts ─ Engine ─ answers ─ metrics and judges ─► results.json, answers.jsonl, examples.jsonl ─► the card
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from alhena.content import Document, text_of
from alhena.documents import read_documents
from alhena.evaluate import metrics
from alhena.evaluate.answers import answer_questions
from alhena.evaluate.card.examples import example_lines
from alhena.evaluate.card.history import add_to_history
from alhena.evaluate.card.sources import ANSWERS, EXAMPLES, RESULTS, origin_of
from alhena.evaluate.card.write import write_card
from alhena.evaluate.context.needles import card_needles, needle_rows
from alhena.evaluate.judges import digit_judge
from alhena.evaluate.measure import BITS_PER_BYTE, Measure, Scored, interval_of, score_of
from alhena.evaluate.models.facts import model_facts
from alhena.evaluate.results import SECTIONS, AnsweredQuestion, Evaluation, ReportRow
from alhena.evaluate.scoring import TextLoss, text_losses
from alhena.evaluate.tasks.starter import TASK_METRICS, TaskMetric, chance_level
from alhena.files import write_atomically, write_json
from alhena.serve.engine import Engine

NOT_ABOVE_CHANCE = "✗"


def _row(head: tuple[str, str], measure: Measure, scored: Mapping[str, Sequence[Scored]], chance: float) -> ReportRow:
    """A row of section and name, with intervals; scores are those of the scored items."""
    digits = 3 if measure.name == BITS_PER_BYTE else 2
    intervals = {model: interval_of(measure, items) for model, items in scored.items()}
    return ReportRow(
        *head,
        metric=measure.name,
        lower_is_better=measure.lower_is_better,
        items=len(next(iter(scored.values()))),
        chance=round(chance, digits),
        scores={model: round(score_of(measure, items), digits) for model, items in scored.items()},
        intervals={m: (round(i[0], digits), round(i[1], digits)) for m, i in intervals.items() if i},
        binary=measure.binary,
        corpus=measure.corpus,
        scored=scored,
    )


def answer_row(task: TaskMetric, answered: Sequence[AnsweredQuestion]) -> ReportRow | None:
    """The row of one metric of one task; None when no question belongs to it."""
    questions = [question for question in answered if task.selects(question.document)]
    if not questions:
        return None
    references, models = [question.reference for question in questions], questions[0].answers
    scored = {
        model: [
            Scored(q.document.id, *metrics.item_score(task.metric, q.reference, q.answers[model]), q.answers[model], q.reference)
            for q in questions
        ]
        for model in models
    }  # fmt: skip
    chance = chance_level(task, [question.document for question in questions], references)
    truncated = {name: sum(name in question.truncated for question in questions) for name in models}
    return replace(_row((task.section, task.name), task.measure, scored, chance), truncated=truncated)


def text_row(
    head: tuple[str, str], documents: Sequence[Document], losses: Mapping[str, Sequence[TextLoss]]
) -> ReportRow:
    """Bits per byte of running texts, whose losses by model are given; the chance level is the entropy of single bytes."""
    chance = metrics.byte_entropy([text_of(document.contents) for document in documents])
    scored = {
        model: [Scored(d.id, loss.bits_per_byte, loss.size) for d, loss in zip(documents, of_model, strict=True)]
        for model, of_model in losses.items()
    }
    return _row(head, Measure(BITS_PER_BYTE, True), scored, chance)


def with_unique_ids(documents: Sequence[Document]) -> list[Document]:
    """The documents, those with the id of an earlier one with another id."""
    seen, out = Counter[str](), []
    for document in documents:
        seen[document.id] += 1
        count = seen[document.id]
        out.append(document if count == 1 else replace(document, id=f"{document.id}#{count}"))
    return out


def evaluate(engines: Mapping[str, Engine], documents: Sequence[Document]) -> Evaluation:
    """All rows of the report that the documents have items for, and the answers."""
    documents, rows = with_unique_ids(documents), list[ReportRow]()
    for name in ("text", "code"):
        if texts := [d for d in documents if d.facts.get("task") == name]:
            losses = {model: text_losses(engine, texts) for model, engine in engines.items()}
            rows.append(text_row((name, f"held-out {name}"), texts, losses))
    answers = answer_questions(engines, documents)
    tasks = (*TASK_METRICS, *needle_rows(documents))
    rows += [row for task in tasks if (row := answer_row(task, answers.questions))]
    return Evaluation(sorted(rows, key=lambda row: SECTIONS.index(row.section)), answers)


def _cells(row: ReportRow) -> list[str]:
    cells = []
    for model, score in row.scores.items():
        low, high = row.intervals.get(model, (score, score))
        cells.append(
            f"{row.shown(score)}\n[dim]{row.shown(low)}–{row.shown(high)}[/dim]" if high > low else row.shown(score)
        )
    truncated = max(row.truncated.values(), default=0)
    notes = [NOT_ABOVE_CHANCE] * (not row.above_chance) + [f"{truncated} truncated"] * (truncated > 0)
    return [f"{row.name}\n[dim]{row.metric}[/dim]", str(row.items), row.shown(row.chance), *cells, "\n".join(notes)]


def print_report(rows: Sequence[ReportRow], skipped: Mapping[str, int], title: str = "Report card") -> None:
    """Prints the rows as a table that fits 80 columns, and below it the number of skipped documents by reason."""
    console = Console()
    if rows:
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("capability, metric", overflow="fold")
        for column in ("items", "chance", *rows[0].scores):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")
        for i, row in enumerate(rows):
            last_of_section = i + 1 == len(rows) or rows[i + 1].section != row.section
            table.add_row(*_cells(row), style=None if row.above_chance else "red", end_section=last_of_section)
        if not all(row.above_chance for row in rows):
            table.caption = f"{NOT_ABOVE_CHANCE} not above chance"
        console.print(table)
    for reason, count in skipped.items():
        console.print(f"not measured: {count:,} × {reason}", style="yellow", markup=False)


def write_results(evaluation: Evaluation, folders: Mapping[str, Path], facts: Mapping[str, Any], out: Path) -> None:
    """Writes results.json, answers.jsonl and examples.jsonl, adds the rows to the history of the run, and writes the report card.

    Without rows there is neither history nor card.
    """
    models = [{"name": name} | asdict(model_facts(folder)) for name, folder in folders.items()]
    skipped = dict(evaluation.answers.skipped)
    rows = [row.to_json() for row in evaluation.rows]
    write_json(out / RESULTS, {"models": models, "rows": rows, "skipped": skipped, **facts})
    write_atomically(out / ANSWERS, evaluation.to_json_lines())
    write_atomically(out / EXAMPLES, example_lines(evaluation))
    if evaluation.rows:
        add_to_history(origin_of(out), evaluation.rows)
        write_card([out], out)


def evaluate_models(test: Path, models: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Evaluates models on a split, and on needles in media as long as they read; writes the files of :func:`write_results` to ``out``.

    ``models`` maps names to model folders; all answer the same questions. Returns the number of rows, of rows above chance, and of
    skipped questions. Raises ValueError when no row has an item in the split.
    """
    engines = {name: Engine.load(folder) for name, folder in models.items()}
    documents = list(read_documents(test))
    evaluation = evaluate(engines, [*documents, *card_needles([*engines.values()], documents)])
    rows, skipped = evaluation.rows, evaluation.answers.skipped
    if not rows:
        raise ValueError(
            f"{test}: no document belongs to a task of the report; evaluate it with alhena evaluate --data {test}"
        )
    write_results(evaluation, models, {"digit_judge_accuracy": round(digit_judge()[1], 1)}, out)
    print_report(rows, skipped)
    above = sum(row.above_chance for row in rows)
    return {"rows": len(rows), "above_chance": above, "skipped": sum(skipped.values())}
