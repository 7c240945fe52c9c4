"""Handwritten digits: real 8x8 scans that come with scikit-learn (UCI, Alpaydin & Kaynak 1998).

4 7  ──  two scans side by side, enlarged to 32x32 each  ──►  "Which number is this?"  "47"
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image as Pillow

from alhena.content import Document
from alhena.corpus.starter.items import Order, chat, pick, picture
from alhena.corpus.starter.splits import SPLITS, Split, is_held_out_string, split_of

SIDE = 32


@lru_cache(maxsize=1)
def _scans() -> dict[tuple[Split, int], list[np.ndarray]]:
    """Ink in 0..1 [8, 8], by split and digit."""
    from sklearn.datasets import load_digits  # a second of imports that only the workers who need it pay

    found: dict[tuple[Split, int], list[np.ndarray]] = {(s, d): [] for s in SPLITS for d in range(10)}
    data = load_digits()
    for index, (image, digit) in enumerate(zip(data.images, data.target, strict=True)):
        found[split_of("digit", index), int(digit)].append((image / 16).astype(np.float32))
    return found


def scans(split: Split, digit: int) -> list[np.ndarray]:
    return _scans()[split, digit]


def enlarge(scan: np.ndarray, side: int) -> np.ndarray:
    """Ink [8, 8] to ink [side, side], bicubic."""
    return np.asarray(Pillow.fromarray(scan).resize((side, side), Pillow.Resampling.BICUBIC)).clip(0, 1)


def ink(rng: np.random.Generator, split: Split, digit: int, sides: tuple[int, int], box: int = SIDE) -> np.ndarray:
    """Ink [box, box]: a random scan of the digit at a random size and place inside the box."""
    side = int(rng.integers(sides[0], sides[1] + 1))
    x, y = rng.integers(0, box - side + 1, 2)
    page = np.zeros((box, box), np.float32)
    page[y : y + side, x : x + side] = enlarge(pick(rng, scans(split, digit)), side)
    return page


def shade(page: np.ndarray, paper: float, pen: float) -> np.ndarray:
    """Ink [h, w] to grey pixels uint8 [h, w, 3]."""
    grey = (paper + (pen - paper) * page).round().clip(0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def random_string(rng: np.random.Generator, split: Split, length: int) -> str:
    """Digits of that length: held out in the test, never elsewhere (single digits are in every split)."""
    while True:
        string = "".join(str(d) for d in rng.integers(0, 10, length))
        if length == 1 or is_held_out_string(string) == (split == "test"):
            return string


def draw_string(rng: np.random.Generator, split: Split, string: str) -> np.ndarray:
    """The digits side by side, dark on light or light on dark."""
    page = np.hstack([ink(rng, split, int(d), (25, SIDE)) for d in string])
    light, dark = rng.uniform(225, 255), rng.uniform(0, 60)
    return shade(page, *((light, dark) if rng.random() < 0.6 else (dark, light)))


def make(order: Order) -> Document:
    rng = order.rng
    string = random_string(rng, order.split, (1, 2, 1, 2, 3)[order.index % 5])
    pixels = draw_string(rng, order.split, string)
    return chat(order, [picture(pixels)], [("Which number is this?", string)], number=string)
