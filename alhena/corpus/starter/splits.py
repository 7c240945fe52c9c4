"""What the test split holds: combinations never seen in training, of parts that were each seen.

    scenes, video, spoken,   the (colour, shape) pairs of HELD_OUT_PAIRS never occur in training or validation;
    drawing, pages           a test question is about such a pair
    video                    nor do the (shape, direction) pairs of HELD_OUT_MOVES
    digits, speech           numbers and handwritten images are divided by a hash
    ocr                      words are divided by a hash
    translation              (word, language, direction) triples are divided by a hash
    charts, retrieval        value tuples and key sets are divided by a hash
    text, code               modules of the standard library are divided by a hash

The hash is of the content itself, so no seed, count or order can move an item across the line.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from alhena.content import Content, Document, Image, Audio, Part, Text, Video

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 205, 20),
    "purple": (140, 50, 170),
    "orange": (245, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = ("left", "right", "up", "down")
HELD_OUT_PAIRS = frozenset(
    [("red", "star"), ("green", "triangle"), ("blue", "square"), ("yellow", "circle"), ("orange", "triangle"), ("purple", "star")]
)
HELD_OUT_MOVES = frozenset([("circle", "up"), ("square", "left"), ("triangle", "down"), ("star", "right")])


def is_held_out(key: object, share: float = 0.2) -> bool:
    """Whether an item belongs to the test split, by a hash of its content.

    >>> abs(np.mean([is_held_out(n) for n in range(2000)]) - 0.2) < 0.03
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def belongs(key: object, split: Split, share: float = 0.2) -> bool:
    """Whether an item may appear in a split: held-out items in test only, all others in train and validation only."""
    return is_held_out(key, share) == (split == "test")


def ask(question: str, *media: Image | Audio | Video) -> Content:
    return Content("user", (*media, Text(question)) if question else tuple(media))


def reply(*parts: Part | str) -> Content:
    return Content("model", tuple(Text(p) if isinstance(p, str) else p for p in parts))


def page(*parts: Part | str) -> Content:
    return Content("document", tuple(Text(p) if isinstance(p, str) else p for p in parts))


Question = tuple[str, str, str]  # task, question, answer


def quiz(
    source: str, media: tuple[Image | Audio | Video, ...], questions: list[Question], facts: dict[str, object], language: str = "en"
) -> Document:
    """Media, then question and answer turns; the id is left to the builder."""
    contents: list[Content] = []
    for i, (_, question, answer) in enumerate(questions):
        contents += [ask(question, *(media if i == 0 else ())), reply(answer)]
    return Document(tuple(contents), "", source, language, {"task": questions[0][0], **facts})
