"""Requests to draw: the answer of the model turn is an Image, not a text.

"Draw a red circle."   ──►  ┌────┐          "Draw the digit 7."  ──►  ┌────┐
                            │ ●  │  32x32                             │  7 │  32x32, dark on white
                            └────┘                                    └────┘
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from alhena.content import Content, Document, Image
from alhena.corpus.starter.digits import SIDE, ink, shade
from alhena.corpus.starter.figures import Figure, paint
from alhena.corpus.starter.items import Order, chat, picture
from alhena.corpus.starter.splits import HELD_OUT_PAIRS, TRAIN_PAIRS, Pair, Split


def draw_digit(rng: np.random.Generator, split: Split, digit: int) -> np.ndarray:
    """uint8 [32, 32, 3]: a centered dark digit on white."""
    return shade(ink(rng, split, digit, (30, SIDE)), 255, rng.uniform(0, 30))


def draw_shape(rng: np.random.Generator, pair: Pair) -> np.ndarray:
    """uint8 [32, 32, 3]: one centered shape on white."""
    x, y = SIDE / 2 + rng.uniform(-1, 1, 2)
    return paint(SIDE, SIDE, [Figure(*pair, x, y, rng.uniform(25, 28))])


def _answer(order: Order, request: str, image: Image, **facts: Any) -> Document:
    document = chat(order, [], [(request, "")], **facts)
    return replace(document, contents=(document.contents[0], Content("model", (image,))))


def make(order: Order) -> Document:
    rng, at = order.rng, order.index
    if order.task == "drawing/digit" or (order.task == "drawing" and at % 2):
        digit = (at // 2 if order.task == "drawing" else at) % 10
        image = picture(draw_digit(rng, order.split, digit))
        return _answer(order, f"Draw the digit {digit}.", image, digit=digit)
    pairs = HELD_OUT_PAIRS if order.split == "test" else TRAIN_PAIRS
    colour, shape = pairs[(at // 2 if order.task == "drawing" else at) % len(pairs)]
    request = f"Draw {'an' if colour == 'orange' else 'a'} {colour} {shape}."
    return _answer(order, request, picture(draw_shape(rng, (colour, shape))), colour=colour, shape=shape)
