"""What the test split holds: combinations that training has never shown, of parts that it has.

    seen in training    red circle   blue circle   blue star        parts: red, blue, circle, star
    asked in the test                                    red star   a new combination of the same parts

A model that stores what it saw fails on the right-hand column; one that takes the world apart does not
(Lake & Baroni 2018, arXiv:1711.00350). What is held out of training and validation, by task:

    scenes, spoken, drawing, video, pages   pairs (colour, shape)             HELD_OUT_PAIRS
    video                                   pairs (shape, direction)          HELD_OUT_MOVES
    speech, pages                           numbers from 21 to 99             HELD_OUT_NUMBERS
    speech                                  commands that name a held-out pair
    digits, video, pages                    strings of two and more digits    is_held_out_string
    translation                             requests (item, language), both directions; the lists of ``names`` state
                                            every fact once as prose, so the test asks for known facts in a new form
    ocr, pages                              words                             split_of("word", …)
    text, code                              modules                           split_of("module", …)
    retrieval                               sets of keys                      split_of("keys", …)

Scans of handwritten digits are split one by one (``split_of("digit", index)``): none of the test split appears in
training, in any source. Single digits and answers like "yes" or "3" occur in both splits; there the pictures are new.
Validation items come from the training distribution, drawn anew.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

COLOURS = {
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

Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
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


def share(*key: object) -> float:
    """A number in 0..1 that depends on ``key`` alone, the same on every machine.

    >>> share("word", "moon") == share("word", "moon"), 0 <= share("word", "sun") < 1
    (True, True)
    """
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(*key: object) -> Split:
    """70 % train, 10 % validation, 20 % test."""
    at = share(*key)
    return "train" if at < 0.7 else "validation" if at < 0.8 else "test"


def is_held_out_string(digits: str) -> bool:
    """Whether a string of two or more digits is kept for the test (one in six)."""
    return len(digits) > 1 and share("string", digits) < 1 / 6


def is_held_out_request(item: str, language: str) -> bool:
    """Whether translating ``item`` between English and ``language`` is kept for the test (one in eight)."""
    return share("request", item, language) < 1 / 8
