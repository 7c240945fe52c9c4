"""Results of an evaluation: answers, rows of the report card, and the questions that were skipped with their reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from alhena.content import Document
from alhena.evaluate.measure import Measure, Scored
from alhena.evaluate.metrics import matches

# The sections of the report card in their order; the family of a benchmark is one of them.
SECTIONS = (
    "text", "code", "mathematics", "multilingual", "long context", "image", "video", "image generation", "audio",
    "combinations", "tools", "safety", "your documents",
)  # fmt: skip


@dataclass(frozen=True)
class AnsweredQuestion:
    """A test document, its reference, and by model: the predicted answer, the first generated image (PNG), and truncation."""

    document: Document
    reference: str
    answers: dict[str, str]
    images: dict[str, bytes]
    # Models whose answer ended at the limit of tokens.
    truncated: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """A line of answers.jsonl, without its rows."""
        correct = {name: matches(self.reference, answer) == 1 for name, answer in self.answers.items()}
        return {
            "id": self.document.id,
            "task": self.document.facts.get("task"),
            "reference": self.reference,
            "answers": self.answers,
            "correct": correct,
            "truncated": sorted(self.truncated),
        }


def row_key(section: str, name: str, metric: str) -> str:
    """What tells rows apart."""
    return f"{section}/{name}/{metric}"


@dataclass(frozen=True)
class ReportRow:
    """One metric of one task: of each model its score and 95 % interval, and the chance level; all in the unit of the metric."""

    section: str
    name: str
    metric: str
    lower_is_better: bool
    items: int
    chance: float
    scores: dict[str, float]
    # Of models for which there is one.
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    # Answers of each model that ended at the limit of tokens.
    truncated: dict[str, int] = field(default_factory=dict)
    # What the score of all items is made of (alhena/evaluate/measure.py).
    binary: bool = False
    corpus: str | None = None
    by_group: bool = False
    # How the items were asked, and what differs from the publisher's way.
    protocol: str = ""
    note: str = ""
    # Figures of the Gemini 1.0 report, and how it asked.
    ultra: float | None = None
    pro: float | None = None
    reported: str = ""
    # The items behind the score of each model; they are stored elsewhere.
    scored: Mapping[str, Sequence[Scored]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.section not in SECTIONS:
            raise ValueError(f"there is no section {self.section!r}; sections are {', '.join(SECTIONS)}")

    @property
    def key(self) -> str:
        return row_key(self.section, self.name, self.metric)

    @property
    def measure(self) -> Measure:
        return Measure(self.metric, self.lower_is_better, self.binary, self.corpus, self.by_group)

    def shown(self, value: float) -> str:
        """A score or chance level with the digits of its metric."""
        return f"{value:.2f}" if self.measure.scale == 1 else f"{value:.1f}"

    @property
    def above_chance(self) -> bool:
        """Whether the worst model is better than chance."""
        worst = max(self.scores.values()) if self.lower_is_better else min(self.scores.values())
        return worst < self.chance if self.lower_is_better else worst > self.chance

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "scored"}


@dataclass(frozen=True)
class AnswerSet:
    """The questions that all models answered, and the number of skipped ones by reason."""

    questions: Sequence[AnsweredQuestion]
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """The rows of a report and the answers behind them."""

    rows: Sequence[ReportRow]
    answers: AnswerSet

    def to_json_lines(self) -> str:
        """The content of answers.jsonl: questions and texts, with their weight and scores in each row that they belong to."""
        lines = {question.document.id: question.to_json() for question in self.answers.questions}
        for row in self.rows:
            for model, items in row.scored.items():
                for item in items:
                    rows = lines.setdefault(item.id, {"id": item.id}).setdefault("rows", {})
                    of_row = rows.setdefault(row.key, {"weight": item.weight, "scores": {}})
                    of_row["scores"][model] = round(item.score, 6)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
