"""ItemSpec, the specification of one item, and constructors of the Document made from it.

    ItemSpec("scenes/colour", "test", index=3, seed=0)  ──  Factory  ──►  Document("scenes/colour/test/3", …)

The random generator of an item is seeded by (seed, task, split, index): an item does not depend on the process that makes it,
nor on the order of items. In training a task is a source (``scenes``) and a document holds several questions about one image.
In validation and test a task is one row of the report (``scenes/colour``) and a document holds one question.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from alhena.content import Content, Document, Image, Part, Text
from alhena.corpus.starter.splits import SPLITS, Split
from alhena.media import encode_png

T = TypeVar("T")
# A question and its answer.
Turn = tuple[str, str]


@dataclass(frozen=True)
class ItemSpec:
    """Task, split and index of one item, and the seed of the corpus."""

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


Factory = Callable[[ItemSpec], Document]


def pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    """One of ``values``, uniformly."""
    return values[int(rng.integers(len(values)))]


def sample(rng: np.random.Generator, values: Sequence[T], count: int) -> list[T]:
    """``count`` of ``values`` (all, where there are fewer) without replacement, in random order."""
    return [values[int(i)] for i in rng.permutation(len(values))[:count]]


def png_image(pixels: UInt8[np.ndarray, "height width 3"]) -> Image:
    return Image(encode_png(pixels))


def plain_document(spec: ItemSpec, parts: Sequence[Part], language: str = "en", **facts: Any) -> Document:
    """A Document without turns: prose, code, or an interleaved page."""
    return Document((Content("document", tuple(parts)),), spec.id, spec.source, language, {"task": spec.task, **facts})


def chat(spec: ItemSpec, media: Sequence[Part], turns: Sequence[Turn], language: str = "en", **facts: Any) -> Document:
    """A Document of turns; the media precede the first question.

    >>> spec = ItemSpec("scenes", "train", index=0, seed=0)
    >>> [c.role for c in chat(spec, [], [("How many?", "3"), ("What is red?", "star")]).contents]
    ['user', 'model', 'user', 'model']
    """
    contents: list[Content] = []
    for i, (question, answer) in enumerate(turns):
        contents.append(Content("user", (*(media if i == 0 else ()), Text(question))))
        contents.append(Content("model", (Text(answer),)))
    return Document(tuple(contents), spec.id, spec.source, language, {"task": spec.task, **facts})
