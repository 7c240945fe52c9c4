"""Results of an evaluation: answers, report rows, and the questions that were skipped with their reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alhena.content import Document
from alhena.evaluate.metrics import matches


@dataclass(frozen=True)
class AnsweredQuestion:
    """A test document, its reference, and by model: the predicted answer, the first generated image (PNG), and truncation."""

    document: Document
    reference: str
    answers: dict[str, str]
    images: dict[str, bytes]
    # Models whose answer ended at the limit of tokens.
    truncated: frozenset[str] = frozenset()

    def to_json(self) -> str:
        """One line of answers.jsonl."""
        correct = {name: matches(self.reference, answer) == 1 for name, answer in self.answers.items()}
        record = {
            "id": self.document.id,
            "task": self.document.facts.get("task"),
            "reference": self.reference,
            "answers": self.answers,
            "correct": correct,
            "truncated": sorted(self.truncated),
        }
        return json.dumps(record, ensure_ascii=False)


@dataclass(frozen=True)
class ReportRow:
    """One metric of one task: the score of each model, the chance level, and the half width of the 95 % interval of the first score."""

    group: str
    name: str
    metric: str
    lower_is_better: bool
    items: int
    chance: float
    scores: dict[str, float]
    interval: float | None
    # Answers of each model that ended at the limit of tokens.
    truncated: dict[str, int] = field(default_factory=dict)

    @property
    def above_chance(self) -> bool:
        worst = max(self.scores.values()) if self.lower_is_better else min(self.scores.values())
        return worst < self.chance if self.lower_is_better else worst > self.chance


@dataclass(frozen=True)
class AnswerSet:
    """The questions that all models answered, and the number of skipped ones by reason."""

    questions: Sequence[AnsweredQuestion]
    skipped: Mapping[str, int]

    def to_json_lines(self) -> str:
        """The content of answers.jsonl."""
        return "".join(question.to_json() + "\n" for question in self.questions)


@dataclass(frozen=True)
class Evaluation:
    """The rows of a report and the answers behind them."""

    rows: Sequence[ReportRow]
    answers: AnswerSet
