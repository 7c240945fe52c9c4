"""Evaluation of a model on a user's own held-out documents: answers against references, and perplexity of running text.

There is a row for all documents and, where there are several, for each task (``facts.task``) or source.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from alhena.content import Document, Text, text_of
from alhena.documents import read_documents
from alhena.evaluate import metrics
from alhena.evaluate.answers import answer_questions, is_question
from alhena.evaluate.card.sources import RESULTS
from alhena.evaluate.evaluation import answer_row, print_report, text_row, with_unique_ids, write_results
from alhena.evaluate.results import AnsweredQuestion, AnswerSet, Evaluation, ReportRow
from alhena.evaluate.scoring import TextLoss, text_losses
from alhena.evaluate.tasks.starter import CER, EXACT, WER, TaskMetric, reference, task_of
from alhena.files import read_json
from alhena.serve.engine import Engine

SECTION, ALL = "your documents", "all"
METRICS = {
    "exact_match": (EXACT, metrics.exact_match),
    "wer": (WER, metrics.word_error_rate),
    "cer": (CER, metrics.character_error_rate),
}


def _row_names(documents: Sequence[Document]) -> list[str]:
    """``all``, and each task or source where there are several."""
    names = sorted({task_of(document) for document in documents})
    return [ALL, *names] if len(names) > 1 else [ALL]


def _kind(document: Document) -> str:
    """``question``, ``text``, or the reason why a document is not measured."""
    if is_question(document):
        return "question" if metrics.normalize(reference(document)) else "the reference answer has no words"
    if any(content.role != "document" for content in document.contents):
        return "it does not end with a model turn"
    if not all(isinstance(part, Text) for part in document.parts):
        return "running text with media"
    return "text" if text_of(document.contents).strip() else "it has no text"


def is_running_text(document: Document) -> bool:
    """Whether a document is text without turns and media."""
    return _kind(document) == "text"


def _answer_rows(answered: Sequence[AnsweredQuestion]) -> list[ReportRow]:
    rows = []
    for name in _row_names([question.document for question in answered]):

        def selects(document: Document, name: str = name) -> bool:
            return name in (ALL, task_of(document))

        rows += [answer_row(TaskMetric(SECTION, name, *metric, selects), answered) for metric in METRICS.values()]
    return [row for row in rows if row is not None]


def _text_rows(engine: Engine, texts: Sequence[Document]) -> tuple[list[ReportRow], dict[str, float]]:
    """Rows of bits per byte, and the perplexity and bits per byte of all texts."""
    groups = {name: [d for d in texts if name == task_of(d)] for name in {task_of(d): None for d in texts}}
    losses = dict(zip((d.id for d in texts), text_losses(engine, texts), strict=True))
    rows = []
    for name in _row_names(texts):
        group = texts if name == ALL else groups[name]
        rows.append(text_row((SECTION, name), group, {engine.name: [losses[d.id] for d in group]}))
    total = sum(losses.values(), TextLoss(0.0, 0, 0))
    facts = {
        "perplexity": round(math.exp(total.nats / max(total.tokens, 1)), 3),
        "bits_per_byte": round(total.bits_per_byte, 4),
    }
    return rows, facts


def _overall(rows: Sequence[ReportRow], model: str) -> dict[str, Any]:
    """Score, chance level and interval of all answers, by metric."""
    out: dict[str, Any] = {}
    for key, (title, _) in METRICS.items():
        for row in rows:
            if (row.name, row.metric) == (ALL, title):
                out |= {
                    key: row.scores[model],
                    f"{key}_chance": row.chance,
                    f"{key}_interval": row.intervals.get(model),
                }
                out["truncated_answers"] = row.truncated[model]
    return out


def evaluate_held_out(data: Path, folder: Path, out: Path) -> dict[str, Any]:
    """Exact match, WER and CER of the answers and perplexity of running text, on a user's own documents.

    ``folder`` is a model folder. Writes the files of a report card to ``out``, and returns the content of results.json.
    """
    engine, kinds = Engine.load(folder), dict[str, list[Document]]()
    for document in with_unique_ids([*read_documents(data)]):
        kinds.setdefault(_kind(document), []).append(document)
    questions, texts = kinds.pop("question", []), kinds.pop("text", [])
    answers = answer_questions({engine.name: engine}, questions)
    not_measured = Counter({reason: len(group) for reason, group in kinds.items()}) + Counter(answers.skipped)
    rows = _answer_rows(answers.questions) if answers.questions else []
    facts = _overall(rows, engine.name)
    if texts:
        text_rows, text_facts = _text_rows(engine, texts)
        rows, facts = rows + text_rows, facts | text_facts
    counts = {"questions": len(answers.questions), "texts": len(texts), "not_measured": not_measured.total()}
    evaluation = Evaluation(rows, AnswerSet(answers.questions, not_measured))
    write_results(evaluation, {engine.name: folder}, {"model": engine.name, **counts, **facts}, out)
    print_report(rows, not_measured, f"{engine.name} on {data}")
    if texts:
        Console().print(f"perplexity of {len(texts):,} texts: {facts['perplexity']}")
    return read_json(out / RESULTS)
