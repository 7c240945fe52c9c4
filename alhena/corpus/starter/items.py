"""Order and its answer: one item to be made, and the Document that comes of it.

    Order("scenes/colour", "test", index=3, seed=0)  ──  a maker  ──►  Document("scenes/colour/test/3", …)

Each Order brings its own random generator, seeded by (seed, task, split, index): an item is the same whoever makes it,
in whatever sequence. In training a task is a source as a whole (``scenes``) and a document asks several questions about
one picture; in validation and test a task is a row of the report card (``scenes/colour``) and a document asks one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from alhena.content import Content, Document, Image, Part, Text
from alhena.corpus.starter.splits import SPLITS, Split
from alhena.media import encode_png

T = TypeVar("T")
Turn = tuple[str, str]  # a question and its answer


@dataclass(frozen=True)
class Order:
    task: str
    split: Split
    index: int
    seed: int

    @property
    def source(self) -> str:
        return self.task.split("/")[0]

    @property
    def id(self) -> str:
        return f"{self.task}/{self.split}/{self.index}"

    @cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.task.encode()), SPLITS.index(self.split), self.index])


Maker = Callable[[Order], Document]


def pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    """One of ``values``, all equally likely."""
    return values[int(rng.integers(len(values)))]


def pick_some(rng: np.random.Generator, values: Sequence[T], count: int) -> list[T]:
    """``count`` different ones of ``values``, in random order."""
    return [values[int(i)] for i in rng.permutation(len(values))[:count]]


def picture(pixels: np.ndarray) -> Image:
    return Image(encode_png(pixels))


def running(order: Order, parts: Sequence[Part], language: str = "en", **facts: Any) -> Document:
    """A Document of running material: prose, code, an interleaved page."""
    return Document(
        (Content("document", tuple(parts)),), order.id, order.source, language, {"task": order.task, **facts}
    )


def chat(order: Order, media: Sequence[Part], turns: Sequence[Turn], language: str = "en", **facts: Any) -> Document:
    """A Document of turns; the media stand before the first question.

    >>> order = Order("scenes", "train", index=0, seed=0)
    >>> [c.role for c in chat(order, [], [("How many?", "3"), ("What is red?", "star")]).contents]
    ['user', 'model', 'user', 'model']
    """
    contents: list[Content] = []
    for i, (question, answer) in enumerate(turns):
        contents.append(Content("user", (*(media if i == 0 else ()), Text(question))))
        contents.append(Content("model", (Text(answer),)))
    return Document(tuple(contents), order.id, order.source, language, {"task": order.task, **facts})
