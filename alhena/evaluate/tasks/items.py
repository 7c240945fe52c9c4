"""Item, Form, Task: what a benchmark is made of.

Item   one question with its references, choices and worked solution
Form   how an item is asked, how a shot answers, and what of an output is its answer
Task   where items come from, the forms, the metric, the standard protocol, and the figures of the Gemini 1.0 report
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alhena.content import Part, Text
from alhena.evaluate.models.interface import Prompt

Split = Literal["test", "validation", "shots"]
# Protocols (alhena/evaluate/protocols.py), and what a log-likelihood of a choice is divided by.
Kind = Literal["choices", "greedy", "cot", "majority", "routed"]
Normalization = Literal["none", "tokens", "bytes"]


@dataclass(frozen=True)
class Item:
    """A question. ``group`` is its subject, language or subtask: shots come from the same one."""

    id: str
    question: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    # Worked steps that lead to the reference, for shots with chain of thought.
    solution: str = ""
    group: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    # Images, audio or video, before the question.
    media: tuple[Part, ...] = ()

    @property
    def reference(self) -> str:
        return self.references[0]


def no_header(item: Item) -> str:
    return ""


@dataclass(frozen=True)
class Form:
    """How items are asked: with or without chain of thought."""

    # The question, up to where the model continues.
    ask: Callable[[Item], str]
    # What follows it in a shot.
    answer: Callable[[Item], str]
    # The answer in an output; empty where there is none.
    extract: Callable[[Item, str], str]
    max_tokens: int
    stop: tuple[str, ...] = ()
    # Stands before everything.
    header: Callable[[Item], str] = no_header

    def prompt(self, item: Item, shots: Sequence[Item]) -> Prompt:
        """Header, shots and question as one prompt; adjacent texts are joined."""
        parts: list[Part] = [Text(self.header(item))]
        for shot in shots:
            parts += [*shot.media, Text(f"{self.ask(shot)}{self.answer(shot)}\n\n")]
        parts += [*item.media, Text(self.ask(item))]
        joined: list[Part] = []
        for part in parts:
            if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
                joined[-1] = Text(joined[-1].text + part.text)
            else:
                joined.append(part)
        return tuple(part for part in joined if part != Text(""))


@dataclass(frozen=True)
class Reported:
    """Figures of the Gemini 1.0 report (2023) for Ultra and Pro, and under which protocol; None: it has none."""

    ultra: float | None = None
    pro: float | None = None
    protocol: str = ""


@dataclass(frozen=True)
class Metric:
    """A score of each item, from 0 to 1, and of all of them.

    ``corpus``: the score of a whole set of answers where it is no mean, of references by item and answers, in percent.
    """

    name: str
    score: Callable[[Item, str], float]
    # Scores are 0 or 1, and McNemar's test applies.
    binary: bool = True
    corpus: Literal["chrF", "BLEU"] | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark. ``read`` gives the items of a split under the folder of the benchmark, or none where it has no such split."""

    name: str
    family: str
    read: Callable[[Path, Split], Iterable[Item]]
    direct: Form
    metric: Metric
    kind: Kind
    shots: int
    reported: Reported = Reported()
    reasoned: Form | None = None
    # Whether shots are of the item's own group.
    shots_of_group: bool = False
    normalization: Normalization = "none"
    # Answers with the same key are one answer in a vote.
    vote_key: Callable[[str], str] = str.strip
    # Score of an answer that ignores the question, where it does not follow from the choices or the references.
    chance: float | None = None
    # What differs from the publisher's protocol.
    note: str = ""

    def form(self, kind: Kind) -> Form:
        """The form in which a protocol asks first. Raises ValueError where the task has none."""
        if kind in ("choices", "greedy"):
            return self.direct
        if self.reasoned is None:
            raise ValueError(f"{self.name} has no chain of thought; ask it with --protocol greedy")
        return self.reasoned
