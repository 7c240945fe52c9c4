"""Drawn scenes: coloured shapes on a light ground, with questions on colour, shape, number and place."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from alhena.content import Document, Image
from alhena.corpus.starter.splits import COLOURS, HELD_OUT_PAIRS, SHAPES, Question, Split, quiz
from alhena.media import encode_png

SCALE = 4  # drawn large, then shrunk: smooth edges
SIZES = ((64, 64), (64, 64), (96, 64), (64, 96))  # width, height
NUMBER_WORDS = ("no", "one", "two", "three", "four")
TASKS = ("scenes/colour", "scenes/shape", "scenes/count", "scenes/relation")


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape (a circle has many)."""
    if shape == "square":
        half = radius * 0.85
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    corners, inner = {"circle": (40, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    angles = -np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    reach = radius * np.where(np.arange(corners) % 2, inner, 1.0) if shape == "star" else np.full(corners, radius)
    low = radius * 0.2 if shape == "triangle" else 0.0  # centres the triangle in its circle
    return list(zip((x + reach * np.cos(angles)).tolist(), (y + low + reach * np.sin(angles)).tolist(), strict=True))


def paint(things: list[Thing], width: int, height: int, ground: tuple[int, ...] = (255, 255, 255)) -> np.ndarray:
    """uint8 [height, width, 3]."""
    canvas = Pillow.new("RGB", (width * SCALE, height * SCALE), ground)
    draw = ImageDraw.Draw(canvas)
    for t in things:
        points = [(px * SCALE, py * SCALE) for px, py in outline(t.shape, t.x, t.y, t.radius)]
        draw.polygon(points, fill=COLOURS[t.colour])
    return np.asarray(canvas.resize((width, height), Pillow.Resampling.BOX))


def choose_pair(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
    pairs = [(c, s) for c in COLOURS for s in SHAPES if ((c, s) in HELD_OUT_PAIRS) == held_out]
    return pairs[rng.integers(len(pairs))]


def arrange(rng: np.random.Generator, number: int, width: int, height: int, split: Split, distinct: bool) -> list[Thing]:
    """Places ``number`` shapes apart from each other; in the test split the first is a held-out combination."""
    things: list[Thing] = []
    while len(things) < number:
        colour, shape = choose_pair(rng, split == "test" and not things)
        if distinct and any(t.colour == colour or t.shape == shape for t in things):
            continue
        for _ in range(30):
            radius = rng.uniform(8, 12)
            x, y = rng.uniform(radius + 1, width - radius - 1), rng.uniform(radius + 1, height - radius - 1)
            if all(np.hypot(t.x - x, t.y - y) > t.radius + radius for t in things):
                things.append(Thing(colour, shape, x, y, radius))
                break
        else:
            things = []  # no room left: begin again
    return things


def questions(rng: np.random.Generator, things: list[Thing]) -> list[Question]:
    """Every kind of question that has one right answer, about the first thing where it can be."""
    shapes, colours, out = Counter(t.shape for t in things), Counter(t.colour for t in things), []
    for t in things:
        if shapes[t.shape] == 1:
            out.append(("scenes/colour", f"What colour is the {t.shape}?", t.colour))
        if colours[t.colour] == 1:
            out.append(("scenes/shape", f"What shape is {t.colour}?", t.shape))
    out.append(("scenes/count", "How many shapes?", str(len(things))))
    named = [t for t in things if shapes[t.shape] == 1]
    for a in named:
        for b in named:
            dx, dy = b.x - a.x, b.y - a.y
            if a is b or max(abs(dx), abs(dy)) < 10:
                continue
            words = ("left of", "right of") if abs(dx) > abs(dy) else ("above", "below")
            truth = words[0] if (dx if abs(dx) > abs(dy) else dy) > 0 else words[1]
            said = words[rng.integers(2)]
            out.append(("scenes/relation", f"Is the {a.shape} {said} the {b.shape}?", "yes" if said == truth else "no"))
    return out


def describe(things: list[Thing]) -> str:
    """From left to right.

    >>> describe([Thing("red", "circle", 40, 20, 9), Thing("blue", "star", 10, 20, 9)])
    'a blue star, a red circle'
    """
    return ", ".join(f"a {t.name}" for t in sorted(things, key=lambda t: t.x))


def make(rng: np.random.Generator, split: Split, i: int) -> Document:
    """A scene and its questions: several in training, one of task ``i`` mod 4 in the other splits."""
    task = TASKS[i % len(TASKS)]
    while True:
        width, height = SIZES[rng.integers(len(SIZES))]
        distinct = task == "scenes/relation" or rng.random() < 0.6
        number = int(rng.integers(2 if task == "scenes/relation" else 1, 5))
        things = arrange(rng, number, width, height, split, distinct)
        asked = questions(rng, things)
        if split == "train":
            chosen = [asked[k] for k in rng.permutation(len(asked))[:5]]
            if rng.random() < 0.3:
                chosen.insert(int(rng.integers(len(chosen) + 1)), ("scenes/caption", "Describe.", describe(things)))
            break
        first = [q for q in asked if q[0] == task]
        if first and (task not in TASKS[:2] or first[0][2] in (things[0].colour, things[0].shape)):
            chosen = first[:1]
            break
    ground = tuple(int(v) for v in rng.integers(235, 256, 3))
    return quiz("scenes", (Image(encode_png(paint(things, width, height, ground))),), chosen, {"things": [t.name for t in things]})
