"""Colored figures (circle, star, …), rendered at four times the resolution and averaged for antialiasing.

[Figure("red", "circle", 20, 30, 18), …]  ──  draw_figures  ──►  uint8 [height, width, 3]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow
from PIL import ImageDraw

from alhena.corpus.starter.items import pick
from alhena.corpus.starter.splits import COLORS, HELD_OUT_PAIRS, PAIRS, TRAIN_PAIRS, Pair, Split

OVERSAMPLING = 4


@dataclass(frozen=True)
class Figure:
    """A colored shape with its center and its size in pixels. ``colour`` is spelled as in the questions of the corpus."""

    colour: str
    shape: str
    x: float
    y: float
    size: float

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a polygon."""
    if shape == "square":
        side = radius * 0.88
        return [(x - side, y - side), (x + side, y - side), (x + side, y + side), (x - side, y + side)]
    if shape == "triangle":
        corners, radii, y = 3, [radius * 1.12], y + radius * 0.2
    elif shape == "cross":
        length, half_width = radius, radius * 0.36
        # Corners of one arm, rotated by quarter turns.
        arm = [(length, -half_width), (length, half_width), (half_width, half_width)]
        arms = [arm, [(-y, x) for x, y in arm], [(-x, -y) for x, y in arm], [(y, -x) for x, y in arm]]
        return [(x + dx, y + dy) for corners_of_arm in arms for dx, dy in corners_of_arm]
    elif shape == "heart":
        # The heart curve of Weisstein's MathWorld: 16 sin³t, and four cosines.
        angles = [2 * math.pi * k / 48 for k in range(48)]
        across = [math.sin(t) ** 3 for t in angles]
        up = [(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 for t in angles]
        return [(x + radius * dx, y - radius * (dy + 0.12)) for dx, dy in zip(across, up, strict=True)]
    elif shape == "star":
        corners, radii, y = 10, [radius * 1.1, radius * 0.46], y + radius * 0.06
    else:
        raise ValueError(f"unknown shape {shape!r}")
    angles = [2 * math.pi * k / corners - math.pi / 2 for k in range(corners)]
    return [(x + math.cos(t) * r, y + math.sin(t) * r) for t, r in zip(angles, radii * corners, strict=False)]


def draw_figures(
    width: int, height: int, figures: Sequence[Figure], background: int = 255, tint: Sequence[int] = (0, 0, 0)
) -> UInt8[np.ndarray, "height width 3"]:
    """An image of figures on a gray ``background``; ``tint`` (RGB) is added to the color of every figure."""
    k = OVERSAMPLING
    image = Pillow.new("RGB", (width * k, height * k), (background,) * 3)
    draw = ImageDraw.Draw(image)
    for f in figures:
        red, green, blue = (min(max(c + t, 0), 255) for c, t in zip(COLORS[f.colour], tint, strict=True))
        x, y, radius = f.x * k, f.y * k, f.size * k / 2
        if f.shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), (red, green, blue))
        else:
            draw.polygon(_outline(f.shape, x, y, radius), (red, green, blue))
    return np.asarray(image.reduce(k))


def sample_pairs(rng: np.random.Generator, split: Split, count: int) -> list[Pair]:
    """Color and shape of ``count`` figures. In the test split the first one is a held-out pair."""
    if split != "test":
        return [pick(rng, TRAIN_PAIRS) for _ in range(count)]
    return [pick(rng, HELD_OUT_PAIRS), *(pick(rng, PAIRS) for _ in range(count - 1))]


def place_figures(
    rng: np.random.Generator, pairs: Sequence[Pair], width: int, height: int, sizes: tuple[float, float]
) -> list[Figure]:
    """Figures at random positions without contact, by rejection sampling.

    The upper bound of ``sizes`` falls towards the lower one within 40 attempts.
    """
    small, large = sizes
    for attempt in range(1000):
        limit = large - (large - small) * min(attempt / 40, 1)
        placed: list[Figure] = []
        for color, shape in pairs:
            size = rng.uniform(small, limit)
            x, y = rng.uniform(size / 2 + 1, width - size / 2 - 1), rng.uniform(size / 2 + 1, height - size / 2 - 1)
            if all(math.hypot(x - f.x, y - f.y) > (size + f.size) * 0.56 + 1 for f in placed):
                placed.append(Figure(color, shape, x, y, size))
        if len(placed) == len(pairs):
            return placed
    raise ValueError(f"{len(pairs)} figures of at least {small} pixels do not fit into {width}x{height}")
