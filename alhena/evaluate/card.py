"""The evaluate stage: one or more models answer the test split, and the report card is written.

test documents ─ prompts ─ Engine ─ answers ─ metrics and judges ─► results.json, answers.jsonl, report.html, report.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alhena.artifacts import write_atomically, write_json
from alhena.content import Content, Document, Image, Text, read_documents
from alhena.evaluate import metrics
from alhena.evaluate.judges import digit_judge
from alhena.evaluate.scoring import bits_per_byte, text_nats
from alhena.evaluate.tasks import ANSWERS, Row, chance, reference, verdict
from alhena.model.weights import read_config
from alhena.progress import progress_bar
from alhena.serve.engine import Engine
from alhena.serve.sampler import DRAWING, Sampling

GROUP = 32
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Line:
    """One measured row: a score for each model, the chance level, and the half width of the 95 % interval in points."""

    group: str
    name: str
    metric: str
    lower_is_better: bool
    items: int
    chance: float
    scores: dict[str, float]
    interval: float | None

    @property
    def above_chance(self) -> bool:
        worst = max(self.scores.values()) if self.lower_is_better else min(self.scores.values())
        return worst < self.chance if self.lower_is_better else worst > self.chance


@dataclass(frozen=True)
class Answered:
    """A test document, what was right, and each model's answer."""

    document: Document
    reference: str
    answers: dict[str, str]
    pictures: dict[str, bytes]


def _is_question(document: Document) -> bool:
    return document.contents[-1].role == "model" and len(document.contents) > 1


def _sampling(document: Document, seed: int) -> Sampling:
    """Greedy; drawings with guidance, for the right answer is one."""
    drawn = any(isinstance(part, Image) for part in document.contents[-1].parts)
    return Sampling(max_tokens=ANSWER_TOKENS, seed=seed, guidance=DRAWING if drawn else 1.0)


def respond(engine: Engine, documents: Sequence[Document], advance=lambda done: None) -> list[Content]:
    """Greedy answers, in batches of documents of one task (prompts of one size)."""
    order = sorted(range(len(documents)), key=lambda i: str(documents[i].facts.get("task")))
    out: dict[int, Content] = {}
    for start in range(0, len(order), GROUP):
        group = order[start : start + GROUP]
        prompts = [documents[i].contents[:-1] for i in group]
        samplings = [_sampling(documents[i], i) for i in group]
        for i, answer in zip(group, engine.generate(prompts, samplings), strict=True):
            out[i] = answer.content
        advance(len(group))
    return [out[i] for i in range(len(documents))]


def ask_all(engines: Mapping[str, Engine], documents: Sequence[Document]) -> list[Answered]:
    """Every question to every model, under a progress bar."""
    questions = [d for d in documents if _is_question(d)]
    answers: list[dict[str, str]] = [{} for _ in questions]
    pictures: list[dict[str, bytes]] = [{} for _ in questions]
    with progress_bar() as progress:
        for name, engine in engines.items():
            bar = progress.add_task(f"ask {name}", total=len(questions))
            contents = respond(engine, questions, lambda done, bar=bar: progress.update(bar, advance=done))
            for i, content in enumerate(contents):
                answers[i][name] = verdict(questions[i], content.parts)
                drawn = [part.data for part in content.parts if isinstance(part, Image)]
                pictures[i] |= {name: drawn[0]} if drawn else {}
    return [Answered(d, reference(d), a, p) for d, a, p in zip(questions, answers, pictures, strict=True)]


def answer_line(row: Row, answered: Sequence[Answered]) -> Line | None:
    """The score of each model on one row; None when the split has no such item."""
    some = [a for a in answered if row.chosen(a.document)]
    if not some:
        return None
    references = [a.reference for a in some]
    scores = {name: round(row.metric(references, [a.answers[name] for a in some]), 2) for name in some[0].answers}
    first = next(iter(scores.values()))
    interval = round(metrics.wilson(min(first, 100), len(some)), 1) if row.metric is metrics.exact else None
    level = chance(row, [a.document for a in some], references)
    return Line(row.group, row.name, row.metric_name, row.lower_is_better, len(some), round(level, 2), scores, interval)


def text_line(name: str, engines: Mapping[str, Engine], documents: Sequence[Document]) -> Line | None:
    """Bits per byte of held-out running text, against single bytes."""
    if not documents:
        return None
    texts = [part.text for d in documents for part in d.parts if isinstance(part, Text)]
    scores = {model: round(bits_per_byte(engine, documents), 3) for model, engine in engines.items()}
    return Line(
        "text", name, "bits per byte", True, len(documents), round(metrics.byte_entropy(texts), 3), scores, None
    )


def measure(engines: Mapping[str, Engine], documents: Sequence[Document]) -> tuple[list[Line], list[Answered]]:
    """All rows of the card."""
    running = {name: [d for d in documents if d.facts.get("task") == name] for name in ("text", "code")}
    lines = [text_line(f"held-out {name}", engines, some) for name, some in running.items()]
    answered = ask_all(engines, documents)
    lines += [answer_line(row, answered) for row in ANSWERS]
    return [line for line in lines if line is not None], answered


def show(lines: Sequence[Line]) -> None:
    """The card as a table in the terminal."""
    table = Table(title="report card", title_justify="left", title_style="bold")
    for column in ("", "capability", "metric", "items", "chance", *lines[0].scores):
        table.add_column(column, justify="right" if column in ("items", "chance", *lines[0].scores) else "left")
    for line in lines:
        style = None if line.above_chance else "red"
        scores = [
            f"{value:.2f}" if line.metric == "bits per byte" else f"{value:.1f}" for value in line.scores.values()
        ]
        table.add_row(line.group, line.name, line.metric, str(line.items), f"{line.chance:.1f}", *scores, style=style)
    Console().print(table)


def _row_of(a: Answered) -> str:
    task, right = a.document.facts.get("task"), {n: metrics.matches(a.reference, x) == 1 for n, x in a.answers.items()}
    return json.dumps(
        {"id": a.document.id, "task": task, "reference": a.reference, "answers": a.answers, "right": right},
        ensure_ascii=False,
    )


def report_card(test: Path, models: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Asks every model the test split; writes results.json, answers.jsonl, report.html and report.png to ``out``."""
    from alhena.evaluate.report import write_report

    engines = {name: Engine.load(folder) for name, folder in models.items()}
    lines, answered = measure(engines, list(read_documents(test)))
    facts = read_config(next(iter(models.values())))[1]
    sizes = {name: (folder / "weights.safetensors").stat().st_size for name, folder in models.items()}
    judge = round(digit_judge()[1], 1)
    results = {"model": facts, "bytes": sizes, "digit_judge_accuracy": judge, "lines": [asdict(line) for line in lines]}
    write_json(out / "results.json", results)
    write_atomically(out / "answers.jsonl", "".join(_row_of(a) + "\n" for a in answered))
    write_report(lines, answered, results, out)
    show(lines)
    return {"rows": len(lines), "above_chance": sum(line.above_chance for line in lines)}


def held_out_card(data: Path, folder: Path, out: Path) -> dict[str, Any]:
    """Exact match, WER and CER of the answers, perplexity of running text, on documents of the user's own."""
    import math

    documents, engine = list(read_documents(data)), Engine.load(folder)
    answered = ask_all({engine.name: engine}, documents)
    running = [
        d
        for d in documents
        if all(c.role == "document" and all(isinstance(p, Text) for p in c.parts) for c in d.contents)
    ]
    skipped = len(documents) - len(answered) - len(running)
    results: dict[str, Any] = {
        "model": engine.name,
        "questions": len(answered),
        "texts": len(running),
        "not_measured": skipped,
    }
    if answered:
        references, said = [a.reference for a in answered], [a.answers[engine.name] for a in answered]
        for name, metric in (
            ("exact_match", metrics.exact),
            ("wer", metrics.word_errors),
            ("cer", metrics.character_errors),
        ):
            results[name] = round(metric(references, said), 2)
            results[f"{name}_chance"] = round(metrics.constant_chance(metric, references), 2)
    if running:
        nats, size, tokens = text_nats(engine, running)
        results |= {
            "perplexity": round(math.exp(nats / tokens), 3),
            "bits_per_byte": round(nats / math.log(2) / size, 4),
        }
    write_json(out / "results.json", results)
    write_atomically(out / "answers.jsonl", "".join(_row_of(a) + "\n" for a in answered))
    table = Table(title=f"{data} answered by {engine.name}", title_justify="left", title_style="bold")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)
    return results
