"""A model measured on held-out documents of one's own: answers against references, and how well running text is predicted.

Rows are for all documents and, where there are several, for each task (``facts.task``) or source.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from alhena.content import Document, Text, read_documents, text_of
from alhena.evaluate import metrics
from alhena.evaluate.answers import answer_questions, is_question
from alhena.evaluate.evaluation import answer_row, print_report
from alhena.evaluate.results import AnsweredQuestion, ReportRow
from alhena.evaluate.scoring import text_nats
from alhena.evaluate.tasks import TaskMetric, reference
from alhena.files import write_atomically, write_json
from alhena.serve.engine import Engine

ALL = "all"
METRICS = {
    "exact_match": ("exact match %", metrics.exact_match),
    "wer": ("word errors %", metrics.word_error_rate),
    "cer": ("character errors %", metrics.character_error_rate),
}


def _name(document: Document) -> str:
    return str(document.facts.get("task", document.source))


def _names(documents: Sequence[Document]) -> list[str]:
    """The names of rows: all, and each task or source where there are several."""
    names = sorted({_name(document) for document in documents})
    return [ALL, *names] if len(names) > 1 else [ALL]


def _kind(document: Document) -> str:
    """``question``, ``text``, or why a document is not measured."""
    if is_question(document):
        return "question" if metrics.normalize(reference(document)) else "the right answer has no words"
    if any(content.role != "document" for content in document.contents):
        return "it does not end with a turn of the model"
    if not all(isinstance(part, Text) for part in document.parts):
        return "running material with media"
    return "text" if text_of(document.contents).strip() else "it has no text"


def _answer_lines(answered: Sequence[AnsweredQuestion]) -> list[ReportRow]:
    lines = []
    for name in _names([a.document for a in answered]):
        for title, metric in METRICS.values():
            row = TaskMetric("answers", name, title, metric, lambda d, name=name: name in (ALL, _name(d)))  # type: ignore[misc]
            lines.append(answer_row(row, answered))
    return [line for line in lines if line is not None]


def _text_lines(engine: Engine, texts: Sequence[Document]) -> tuple[list[ReportRow], dict[str, float]]:
    """Bits per byte of running text, and its perplexity."""
    groups = {name: [d for d in texts if name == _name(d)] for name in {_name(d): None for d in texts}}
    sums = {name: text_nats(engine, some) for name, some in sorted(groups.items())}
    total = tuple(sum(column) for column in zip(*sums.values(), strict=True))
    lines = []
    for name in _names(texts):
        nats, size, _ = total if name == ALL else sums[name]
        some = texts if name == ALL else groups[name]
        level = metrics.byte_entropy([text_of(d.contents) for d in some])
        score = {engine.name: round(nats / math.log(2) / size, 4)}
        lines.append(ReportRow("text", name, "bits per byte", True, len(some), round(level, 3), score, None))
    nats, size, tokens = total
    facts = {
        "perplexity": round(math.exp(nats / max(tokens, 1)), 3),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
    }
    return lines, facts


def _overall(lines: Sequence[ReportRow], model: str) -> dict[str, Any]:
    """Score, chance and interval of all answers, by metric."""
    out: dict[str, Any] = {}
    for key, (title, _) in METRICS.items():
        for line in lines:
            if (line.group, line.name, line.metric) == ("answers", ALL, title):
                out |= {key: line.scores[model], f"{key}_chance": line.chance, f"{key}_interval": line.interval}
                out["cut_answers"] = line.truncated[model]
    return out


def evaluate_held_out(data: Path, folder: Path, out: Path) -> dict[str, Any]:
    """Exact match, WER and CER of the answers, perplexity of running text, on documents of the user's own."""
    engine, kinds = Engine.load(folder), dict[str, list[Document]]()
    for document in read_documents(data):
        kinds.setdefault(_kind(document), []).append(document)
    questions, texts = kinds.pop("question", []), kinds.pop("text", [])
    asked = answer_questions({engine.name: engine}, questions)
    not_measured = Counter({reason: len(some) for reason, some in kinds.items()}) + Counter(asked.skipped)
    lines = _answer_lines(asked.questions) if asked.questions else []
    facts = _overall(lines, engine.name)
    if texts:
        more, found = _text_lines(engine, texts)
        lines, facts = lines + more, facts | found
    counts = {"questions": len(asked.questions), "texts": len(texts), "not_measured": not_measured.total()}
    results = {"model": engine.name, **counts, **facts, "not_measured_reasons": dict(not_measured)}
    results["lines"] = [asdict(line) | {"above_chance": line.above_chance} for line in lines]
    write_json(out / "results.json", results)
    write_atomically(out / "answers.jsonl", "".join(a.to_json() + "\n" for a in asked.questions))
    print_report(lines, not_measured, f"{data} answered by {engine.name}")
    if texts:
        Console().print(f"perplexity of {len(texts):,} texts: {results['perplexity']}")
    return results
