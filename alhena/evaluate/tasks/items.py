"""Item, Form, Task: what a benchmark is made of.

Item   one question with its references, choices and worked solution
Form   how an item is asked, how a shot answers, and what of an output is its answer
Task   where items come from, the forms, the metric, the standard protocol, and the figures of the Gemini 1.0 report
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alhena.content import Part, Text
from alhena.evaluate.models.interface import Prompt
from alhena.evaluate.tasks.media_files import Medium, load

Split = Literal["test", "validation", "shots"]
# Protocols (alhena/evaluate/benchmarks/protocols.py), and what a log-likelihood of a choice is divided by.
Kind = Literal["choices", "greedy", "cot", "majority", "routed"]
Normalization = Literal["none", "tokens", "bytes"]
# Stands in a question where a medium of the item belongs.
MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


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
    # Images, audio or video: at the marks in the question, those without one before it.
    media: tuple[Medium | Part, ...] = ()

    @property
    def reference(self) -> str:
        return self.references[0]

    def is_same(self, other: Item) -> bool:
        """Both ask the same, of the same media."""
        return (self.question, self.facts, self.media) == (other.question, other.facts, other.media)


def loaded(items: Sequence[Item]) -> list[Item | str]:
    """The items with the bytes of their media, or why one of them cannot be read."""
    parts = load(medium for item in items for medium in item.media if isinstance(medium, Medium))

    def with_media(item: Item) -> Item | str:
        media = [parts[medium] if isinstance(medium, Medium) else medium for medium in item.media]
        reasons = [part for part in media if isinstance(part, str)]
        return (
            reasons[0] if reasons else replace(item, media=tuple(part for part in media if not isinstance(part, str)))
        )

    return [with_media(item) for item in items]


def interleaved(text: str, media: Sequence[Part]) -> list[Part]:
    """Media at the marks of a text, in order; where there are more media than marks, the first of them before the text.

    >>> [part.text for part in interleaved(f"See {MARK}!", [Text("(a)"), Text("(b)")])]
    ['(a)', 'See ', '(b)', '!']
    """
    first, *pieces = text.split(MARK, len(media)) if media else [text]
    before = len(media) - len(pieces)
    parts: list[Part] = [*media[:before], Text(first)]
    for part, piece in zip(media[before:], pieces, strict=True):
        parts += [part, Text(piece)]
    return parts


def no_header(item: Item) -> str:
    return ""


def _parts(item: Item) -> list[Part]:
    """The media of an item that is loaded."""
    assert not any(isinstance(medium, Medium) for medium in item.media)
    return [medium for medium in item.media if not isinstance(medium, Medium)]


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
    # Names what a generated image shows, where the answer is an image.
    judge: Callable[[Item, bytes], str] | None = None

    def prompt(self, item: Item, shots: Sequence[Item]) -> Prompt:
        """Header, shots and question as one prompt; adjacent texts are joined. Media are loaded."""
        parts: list[Part] = [Text(self.header(item))]
        for shot in shots:
            parts += interleaved(f"{self.ask(shot)}{self.answer(shot)}\n\n", _parts(shot))
        parts += interleaved(self.ask(item), _parts(item))
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


def one(item: Item) -> float:
    return 1.0


@dataclass(frozen=True)
class Metric:
    """A score of each item, 1 for a perfect answer (0 for an error rate), and of all of them.

    ``corpus``: the score of a whole set of answers where it is no mean, of references by item and answers, in percent.
    """

    name: str
    score: Callable[[Item, str], float]
    # Scores are 0 or 1, and McNemar's test applies.
    binary: bool = True
    corpus: Literal["chrF", "BLEU"] | None = None
    lower_is_better: bool = False
    # What an item counts in the mean: the length of its reference where a rate is that of all words together.
    weight: Callable[[Item], float] = one
    # The score is the mean of those of the groups.
    by_group: bool = False


@dataclass(frozen=True)
class Task:
    """A benchmark. ``read`` gives the items of a split under the folder of the benchmark, or none where it has no such split."""

    name: str
    # A section of the report card.
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
