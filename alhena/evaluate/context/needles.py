"""Needles in long recordings and videos (alhena/corpus/starter/needles.py): a map by length and depth, and rows of the report card.

The card has the longest medium that all of its models read at once, with the needle at the beginning, in the middle and at the end. A
map has any length whose prompt a model reads, in several clips where one is too long; other lengths are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from alhena.content import Document
from alhena.corpus.starter import needles
from alhena.corpus.starter.needles import Haystack, make_all
from alhena.evaluate import metrics
from alhena.evaluate.answers import generate_answers, prompt_of
from alhena.evaluate.card.heat_map import HeatMap
from alhena.evaluate.context.grid import Grid
from alhena.evaluate.models.interface import Advance, no_advance
from alhena.evaluate.tasks.starter import ACCURACY, TaskMetric, predicted_answer, reference, task_of
from alhena.media.limits import LIMITS
from alhena.serve.engine import Engine
from alhena.tokens.encode import Encoder

NAMES: dict[needles.Medium, str] = {"audio": "number in a long recording", "video": "digit in one of many frames"}
# Seconds or frames of all items that are made, encoded and asked at a time.
AT_ONCE: dict[needles.Medium, int] = {"audio": 1800, "video": 4096}
# Of the card: depths, items of each (fewer where the split has fewer of the task that is asked in the same words), and lengths at most.
CARD_DEPTHS, CARD_ITEMS = (0.0, 0.5, 1.0), 10
CARD_LENGTHS: dict[needles.Medium, int] = {"audio": 30, "video": 32}
SHORT_TASKS: dict[needles.Medium, str] = {"audio": "speech", "video": "video/order"}
_ROWS = {"needles/audio": "number spoken in {} s of noise", "needles/video": "digit in one of {} frames"}


def longest_clip(engine: Engine, medium: needles.Medium) -> float:
    """The seconds or frames that a model reads at once."""
    encoder = engine.encoder
    budget = encoder.budget if isinstance(encoder, Encoder) else encoder.settings.budgets
    if medium == "video":
        return min(budget.clip_frames, LIMITS.video_frames)
    # A shorter one holds no number: it is made all the same, and the model refuses it.
    return max(needles.SHORTEST["audio"], min(budget.audio_seconds, LIMITS.audio_seconds))


# ── the map ────────────────────────────────────────────────────────────────────────────────────────────────


def _check(engine: Engine, hay: Haystack) -> None:
    """Raises ValueError when a model cannot be asked for a needle in so long a medium."""
    (document,) = make_all([hay], 0)
    try:
        engine.encode(prompt_of(engine, document))
    except ValueError as error:
        unit = needles.UNITS[hay.medium]
        raise ValueError(f"{engine.name}, {hay.length:,} {unit} of {hay.medium}: {error}") from None


def _answers(engine: Engine, documents: Sequence[Document], advance: Advance) -> list[str]:
    out = []
    for document, answer in zip(documents, generate_answers(engine, documents, advance), strict=True):
        if isinstance(answer, str):
            raise ValueError(f"{document.id}: {answer}")
        out.append(predicted_answer(document, answer.content.parts))
    return out


def _cell(engine: Engine, hay: Haystack, g: Grid, first: int, advance: Advance) -> tuple[float, list[str]]:
    """The percentage of right answers to items that are numbered from ``first`` on, and their references."""
    references, predicted = list[str](), list[str]()
    size = max(1, AT_ONCE[hay.medium] // hay.length)
    for start in range(0, g.items, size):
        documents = make_all([hay] * min(size, g.items - start), g.seed, first + start)
        references += map(reference, documents)
        predicted += _answers(engine, documents, advance)
    return round(metrics.same_numbers(references, predicted), 2), references


def needle_map(engine: Engine, g: Grid, advance: Advance = no_advance) -> HeatMap:
    """Accuracy in percent by length and depth. Raises ValueError for a length that the model cannot read."""
    assert g.medium != "text"
    medium, clip = g.medium, longest_clip(engine, g.medium)
    _check(engine, Haystack(medium, max(g.lengths), 0.0, clip))
    rows, references = list[tuple[float, ...]](), list[str]()
    for length in g.lengths:
        row = []
        for depth in g.depths:
            score, of_cell = _cell(engine, Haystack(medium, length, depth, clip), g, len(references), advance)
            row.append(score)
            references += of_cell
        rows.append(tuple(row))
    chance = round(metrics.constant_chance(metrics.same_numbers, references), 1)
    return HeatMap(g.lengths, g.depths, tuple(rows), g.items, NAMES[medium], engine.name, chance, g.unit)


# ── the card ───────────────────────────────────────────────────────────────────────────────────────────────


def card_needles(engines: Sequence[Engine], documents: Sequence[Document]) -> list[Document]:
    """Needles in the media of which a split has short ones."""
    out: list[Document] = []
    for medium, task in SHORT_TASKS.items():
        items = min(CARD_ITEMS, sum(task_of(document) == task for document in documents))
        clip = min(longest_clip(engine, medium) for engine in engines)
        length = max(needles.SHORTEST[medium], min(CARD_LENGTHS[medium], math.floor(clip)))
        out += make_all([Haystack(medium, length, depth, clip) for depth in CARD_DEPTHS for _ in range(items)], 0)
    return out


def needle_rows(documents: Sequence[Document]) -> list[TaskMetric]:
    """A row of the card for needles of each length that the documents have."""

    def row(task: str, length: object) -> TaskMetric:
        def selects(document: Document) -> bool:
            return (task_of(document), document.facts.get("length")) == (task, length)

        return TaskMetric("long context", _ROWS[task].format(length), ACCURACY, metrics.same_numbers, selects)

    found = dict.fromkeys((task_of(d), d.facts.get("length")) for d in documents if task_of(d) in _ROWS)
    return [row(task, length) for task, length in found]
