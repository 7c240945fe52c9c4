"""Splits: the test split holds combinations that are absent from training, of parts that are present there.

    training    red circle   blue circle   blue star              parts: red, blue, circle, star
    test                                               red star   a new combination of the same parts

This measures compositional generalization: a model that memorizes training items fails on the test
(Lake & Baroni 2018, arXiv:1711.00350). Held out of training and validation, by task:

    scenes, spoken, drawing, video, pages   pairs (color, shape)              HELD_OUT_PAIRS
    video                                   pairs (shape, direction)          HELD_OUT_MOVES
    speech, pages                           numbers from 21 to 99             HELD_OUT_NUMBERS
    speech                                  commands that name a held-out pair
    digits, video, pages                    strings of two and more digits    is_held_out_string
    translation                             requests (item, language), both directions; the lists of ``names`` state
                                            every fact as prose, so the test requires known facts in a new form
    ocr, pages                              words                             split_of("word", …)
    text, code                              modules                           split_of("module", …)
    retrieval                               sets of keys                      split_of("keys", …)
    tools                                   pairs (tool, first value), words to repeat, pairs of values in a sentence
                                                                              split_of("tools" | "repeat" | "json", …)
    reasoning                               (start, first step, second step) of sums, and sums of five and six steps
                                                                              split_of("reasoning", …)

Scans of handwritten digits are split one by one (``split_of("digit", index)``): no scan of the test split appears in
training, in any source. Single digits and answers such as "3" occur in both splits, with new images.
Validation items are other samples of the training distribution.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

COLORS = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 205, 30),
    "purple": (145, 50, 175),
    "orange": (245, 130, 30),
    "pink": (245, 115, 180),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
DIRECTIONS = ("left", "right", "up", "down")

# (color, shape), or (shape, direction).
Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)
HELD_OUT_PAIRS: tuple[Pair, ...] = (
    ("red", "star"),
    ("green", "circle"),
    ("blue", "triangle"),
    ("yellow", "square"),
    ("purple", "heart"),
    ("orange", "cross"),
)
TRAIN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
HELD_OUT_MOVES: tuple[Pair, ...] = (
    ("circle", "left"),
    ("square", "up"),
    ("triangle", "right"),
    ("star", "down"),
    ("cross", "up"),
    ("heart", "left"),
)
TRAIN_MOVES: tuple[Pair, ...] = tuple((s, d) for s in SHAPES for d in DIRECTIONS if (s, d) not in HELD_OUT_MOVES)
HELD_OUT_NUMBERS: tuple[int, ...] = (23, 28, 34, 39, 41, 47, 52, 56, 65, 69, 74, 78, 83, 87, 92, 96)
TRAIN_NUMBERS: tuple[int, ...] = tuple(n for n in range(100) if n not in HELD_OUT_NUMBERS)


def hash_fraction(*key: object) -> float:
    """A hash of ``key`` as a fraction in 0..1, the same on every machine.

    >>> hash_fraction("word", "moon") == hash_fraction("word", "moon"), 0 <= hash_fraction("word", "sun") < 1
    (True, True)
    """
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(*key: object) -> Split:
    """The split of an item by the hash of ``key``: 70 % train, 10 % validation, 20 % test."""
    fraction = hash_fraction(*key)
    return "train" if fraction < 0.7 else "validation" if fraction < 0.8 else "test"


def is_held_out_string(digits: str) -> bool:
    """Whether a string of two or more digits is held out for the test (one in six)."""
    return len(digits) > 1 and hash_fraction("string", digits) < 1 / 6


def is_held_out_request(item: str, language: str) -> bool:
    """Whether translating ``item`` between English and ``language`` is held out for the test (one in eight)."""
    return hash_fraction("request", item, language) < 1 / 8
