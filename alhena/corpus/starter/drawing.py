"""Requests to draw: a coloured shape or a handwritten digit; the picture is the model's turn."""

from __future__ import annotations

import numpy as np

from alhena.content import Document, Image
from alhena.corpus.starter.digits import by_digit, ink, write
from alhena.corpus.starter.scenes import Thing, choose_pair, paint
from alhena.corpus.starter.splits import Split, ask, reply
from alhena.media import encode_png

SIZES = ((32, 32), (32, 32), (32, 32), (48, 32), (32, 48))
WHITE, BLACK = np.full(3, 255.0), np.full(3, 20.0)


def draw_shape(rng: np.random.Generator, colour: str, shape: str) -> np.ndarray:
    width, height = SIZES[rng.integers(len(SIZES))]
    x, y = width / 2 + rng.uniform(-1, 1), height / 2 + rng.uniform(-1, 1)
    return paint([Thing(colour, shape, x, y, rng.uniform(10.5, 12.5))], width, height)


def draw_digit(rng: np.random.Generator, split: Split, digit: int) -> np.ndarray:
    pool = by_digit(split)[digit]
    return write(ink(pool[rng.integers(len(pool))], scale=1.0), BLACK, WHITE)


def make(rng: np.random.Generator, split: Split, i: int) -> Document:
    """Digits and shapes in turn; in the test split the shape's colour and form were never seen together."""
    if i % 2:
        digit = (i // 2) % 10
        pixels, request = draw_digit(rng, split, digit), f"Draw the digit {digit}."
        facts: dict[str, object] = {"task": "drawing/digit", "digit": digit}
    else:
        colour, shape = choose_pair(rng, split == "test")
        pixels, request = draw_shape(rng, colour, shape), f"Draw a {colour} {shape}."
        facts = {"task": "drawing/shape", "colour": colour, "shape": shape}
    return Document((ask(request), reply(Image(encode_png(pixels)))), "", "drawing", "en", facts)
