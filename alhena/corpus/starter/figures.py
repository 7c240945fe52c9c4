"""Coloured shapes, drawn four times too large and shrunk, so that edges are smooth.

[Figure("red", "circle", 20, 30, 18), …]  ──  paint  ──►  uint8 [height, width, 3]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from alhena.corpus.starter.items import pick
from alhena.corpus.starter.splits import COLOURS, HELD_OUT_PAIRS, PAIRS, TRAIN_PAIRS, Pair, Split

OVERSAMPLING = 4


@dataclass(frozen=True)
class Figure:
    colour: str
    shape: str
    x: float  # centre, in pixels
    y: float
    size: float

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    if shape == "square":
        side = radius * 0.88
        return [(x - side, y - side), (x + side, y - side), (x + side, y + side), (x - side, y + side)]
    if shape == "triangle":
        corners, radii, y = 3, [radius * 1.12], y + radius * 0.2
    elif shape == "cross":
        far, near = radius, radius * 0.36
        corner = [(far, -near), (far, near), (near, near)]  # one arm's, turned four times
        turned = [corner, [(-y, x) for x, y in corner], [(-x, -y) for x, y in corner], [(y, -x) for x, y in corner]]
        return [(x + dx, y + dy) for arm in turned for dx, dy in arm]
    elif shape == "heart":  # the well-known curve of Weisstein's MathWorld, 16 sin³t and four cosines
        turn = [2 * math.pi * k / 48 for k in range(48)]
        across = [math.sin(t) ** 3 for t in turn]
        up = [(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 for t in turn]
        return [(x + radius * dx, y - radius * (dy + 0.12)) for dx, dy in zip(across, up, strict=True)]
    elif shape == "star":
        corners, radii, y = 10, [radius * 1.1, radius * 0.46], y + radius * 0.06
    else:
        raise ValueError(f"unknown shape {shape!r}")
    turns = [2 * math.pi * k / corners - math.pi / 2 for k in range(corners)]
    return [(x + math.cos(t) * r, y + math.sin(t) * r) for t, r in zip(turns, radii * corners, strict=False)]


def paint(
    width: int, height: int, figures: Sequence[Figure], background: int = 255, tint: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """Draws figures on a grey level; ``tint`` is added to every figure's colour."""
    k = OVERSAMPLING
    image = Pillow.new("RGB", (width * k, height * k), (background,) * 3)
    draw = ImageDraw.Draw(image)
    for f in figures:
        red, green, blue = (min(max(c + t, 0), 255) for c, t in zip(COLOURS[f.colour], tint, strict=True))
        x, y, radius = f.x * k, f.y * k, f.size * k / 2
        if f.shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), (red, green, blue))
        else:
            draw.polygon(_outline(f.shape, x, y, radius), (red, green, blue))
    return np.asarray(image.reduce(k))


def choose_pairs(rng: np.random.Generator, split: Split, count: int) -> list[Pair]:
    """Colour and shape of ``count`` figures. In the test split the first is always a held-out pair."""
    if split != "test":
        return [pick(rng, TRAIN_PAIRS) for _ in range(count)]
    return [pick(rng, HELD_OUT_PAIRS), *(pick(rng, PAIRS) for _ in range(count - 1))]


def place(
    rng: np.random.Generator, pairs: Sequence[Pair], width: int, height: int, sizes: tuple[float, float]
) -> list[Figure]:
    """Puts figures where none touches another; sizes shrink towards the smaller bound until they fit."""
    small, large = sizes
    for attempt in range(1000):
        top = large - (large - small) * min(attempt / 40, 1)
        placed: list[Figure] = []
        for colour, shape in pairs:
            size = rng.uniform(small, top)
            x, y = rng.uniform(size / 2 + 1, width - size / 2 - 1), rng.uniform(size / 2 + 1, height - size / 2 - 1)
            if all(math.hypot(x - f.x, y - f.y) > (size + f.size) * 0.56 + 1 for f in placed):
                placed.append(Figure(colour, shape, x, y, size))
        if len(placed) == len(pairs):
            return placed
    raise ValueError(f"{len(pairs)} figures of at least {small} pixels do not fit into {width}x{height}")
