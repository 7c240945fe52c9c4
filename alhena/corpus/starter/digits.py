"""Real handwritten digits (scikit-learn's copy of the UCI set, Alpaydin & Kaynak 1998): one to three of them make a number."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image as Pillow

from alhena.content import Document, Image
from alhena.corpus.starter.splits import Split, belongs, is_held_out, quiz
from alhena.media import encode_png

SIDE = 32


@cache
def by_digit(split: Split) -> tuple[np.ndarray, ...]:
    """For each digit, its images uint8 [n, 8, 8] (0 is paper, 255 is ink); test images occur in no other split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.clip(data.images * 16, 0, 255).astype(np.uint8)
    keep = np.array([belongs(("digit image", n), split) for n in range(len(images))])
    return tuple(images[keep & (data.target == digit)] for digit in range(10))


def ink(image: np.ndarray, side: int = SIDE, scale: float = 0.9, dx: int = 0, dy: int = 0) -> np.ndarray:
    """An 8×8 digit enlarged smoothly onto float [side, side], 0 paper to 1 ink."""
    size = round(side * scale)
    large = np.asarray(Pillow.fromarray(image).resize((size, size), Pillow.Resampling.BICUBIC), np.float32) / 255
    out = np.zeros((side, side), np.float32)
    low = (side - size) // 2
    x, y = np.clip(low + dx, 0, side - size), np.clip(low + dy, 0, side - size)
    out[y : y + size, x : x + size] = large
    return out


def write(stroke: np.ndarray, dark: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Ink 0..1 as uint8 [height, width, 3] between two colours."""
    return np.round(light + stroke[..., None] * (dark - light)).clip(0, 255).astype(np.uint8)


def number(rng: np.random.Generator, split: Split, digits: str) -> np.ndarray:
    """A handwritten number: SIDE pixels a digit, in one pair of colours."""
    pieces = []
    for d in digits:
        pool = by_digit(split)[int(d)]
        dx, dy = rng.integers(-2, 3, 2)
        pieces.append(ink(pool[rng.integers(len(pool))], scale=rng.uniform(0.75, 1.0), dx=int(dx), dy=int(dy)))
    dark, light = rng.uniform(0, 90, 3), rng.uniform(190, 255, 3)
    if rng.random() < 0.3:
        dark, light = light, dark
    return write(np.concatenate(pieces, 1), dark, light)


def choose(rng: np.random.Generator, split: Split) -> str:
    """One to three digits; a number of several digits keeps to its split."""
    while True:
        digits = "".join(str(d) for d in rng.integers(0, 10, rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])))
        if len(digits) == 1 or is_held_out(("number", digits)) == (split == "test"):
            return digits


def make(rng: np.random.Generator, split: Split, i: int) -> Document:
    digits = choose(rng, split)
    question = ("digits", "Which number is this?", digits)
    return quiz("digits", (Image(encode_png(number(rng, split, digits))),), [question], {"digits": digits})
