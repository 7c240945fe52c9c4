"""What an evaluation gives: answers, measured rows, and what could not be measured with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alhena.content import Document
from alhena.evaluate.metrics import matches


@dataclass(frozen=True)
class AnsweredQuestion:
    """A test document, what was right, and each model's answer."""

    document: Document
    reference: str
    answers: dict[str, str]
    images: dict[str, bytes]
    truncated: frozenset[str] = frozenset()  # models whose answer ended at the limit of tokens

    def to_json(self) -> str:
        """One line of answers.jsonl."""
        right = {name: matches(self.reference, answer) == 1 for name, answer in self.answers.items()}
        row = {"id": self.document.id, "task": self.document.facts.get("task"), "reference": self.reference}
        return json.dumps(row | {"answers": self.answers, "right": right, "cut": sorted(self.truncated)}, ensure_ascii=False)


@dataclass(frozen=True)
class ReportRow:
    """One measured row: a score for each model, the chance level, and the half width of the 95 % interval of the first score."""

    group: str
    name: str
    metric: str
    lower_is_better: bool
    items: int
    chance: float
    scores: dict[str, float]
    interval: float | None
    truncated: dict[str, int] = field(default_factory=dict)  # answers that ended at the limit of tokens

    @property
    def above_chance(self) -> bool:
        worst = max(self.scores.values()) if self.lower_is_better else min(self.scores.values())
        return worst < self.chance if self.lower_is_better else worst > self.chance


@dataclass(frozen=True)
class AnswerSet:
    """Every question that all models answered, and how many could not be asked, by reason."""

    questions: Sequence[AnsweredQuestion]
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """The rows of a report and the answers behind them."""

    rows: Sequence[ReportRow]
    answers: AnswerSet
