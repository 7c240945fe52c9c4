"""Scenes: a few coloured shapes on light ground, with questions about colour, shape, number and place.

    ┌──────────────┐   What colour is the circle?           red
    │  ●red        │   What shape is blue?                  star
    │        ★blue │   How many shapes are there?           2
    └──────────────┘   Where is the circle from the star?   left
                       Describe.                            a red circle left of a blue star

A picture of one shape may be small; it asks what it is and costs a quarter of a large one.

In the spirit of CLEVR (Johnson et al. 2017, arXiv:1612.06890), at a size that two cores can learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.figures import Figure, choose_pairs, paint, place
from alhena.corpus.starter.items import Order, Turn, chat, pick, pick_some, picture
from alhena.corpus.starter.splits import HELD_OUT_PAIRS, Split

SIZES = ((64, 64), (64, 64), (96, 64), (64, 96))
SMALL = ((32, 32), (48, 32), (32, 48), (48, 48))  # of one shape
CLEAR = 12.0  # pixels between two centres before one is called left of or above the other
CLEARER = 1.5  # how many times further apart one way than the other, before there is one right answer


def draw_scene(rng: np.random.Generator, figures: Sequence[Figure], width: int, height: int) -> np.ndarray:
    tint = rng.integers(-10, 11, 3).tolist()
    return paint(width, height, figures, int(rng.integers(240, 256)), tint)


def random_scene(rng: np.random.Generator, split: Split, small: bool = True) -> tuple[list[Figure], int, int]:
    """Figures, width and height; pictures of a single shape are small half the time, where ``small`` allows it."""
    count = pick(rng, (1, 1, 2, 2, 3, 4))
    width, height = pick(rng, SMALL if small and count == 1 and rng.random() < 0.6 else SIZES)
    pairs = choose_pairs(rng, split, count)
    while len({shape for _, shape in pairs}) < count and rng.random() < 0.6:  # most shapes single: more can be asked
        pairs = choose_pairs(rng, split, count)
    largest = 22 if len(pairs) > 2 else 26 if min(width, height) < 64 else 30
    return place(rng, pairs, width, height, (15, largest)), width, height


def alone(figures: Sequence[Figure], attribute: str) -> list[Figure]:
    """The figures whose ``shape`` (or ``colour``) no other figure has."""
    values = [getattr(f, attribute) for f in figures]
    return [f for f, value in zip(figures, values, strict=True) if values.count(value) == 1]


def colour_turns(figures: Sequence[Figure]) -> list[tuple[Figure, Turn]]:
    return [(f, (f"What colour is the {f.shape}?", f.colour)) for f in alone(figures, "shape")]


def shape_turns(figures: Sequence[Figure]) -> list[tuple[Figure, Turn]]:
    return [(f, (f"What shape is {f.colour}?", f.shape)) for f in alone(figures, "colour")]


def count_turn(figures: Sequence[Figure]) -> Turn:
    return "How many shapes are there?", str(len(figures))


def _way(a: Figure, b: Figure) -> str | None:
    """Where ``a`` is from ``b``; None when it is not clear."""
    across, down = a.x - b.x, a.y - b.y
    if abs(across) > max(CLEAR, CLEARER * abs(down)):
        return "left" if across < 0 else "right"
    if abs(down) > max(CLEAR, CLEARER * abs(across)):
        return "above" if down < 0 else "below"
    return None


def relation_turns(figures: Sequence[Figure]) -> list[tuple[Figure, Turn]]:
    known = alone(figures, "shape")
    return [
        (a, (f"Where is the {a.shape} from the {b.shape}?", way)) for a in known for b in known if (way := _way(a, b))
    ]


def caption(figures: Sequence[Figure]) -> str:
    """The figures in reading order; two of them with the clearer of their relations.

    >>> caption([Figure("blue", "star", 40, 20, 14), Figure("red", "circle", 10, 22, 14)])
    'a red circle left of a blue star'
    """

    def name(f: Figure) -> str:
        return f"{'an' if f.colour == 'orange' else 'a'} {f.name}"

    if len(figures) != 2:
        return ", ".join(name(f) for f in sorted(figures, key=lambda f: f.x))
    a, b = figures
    across = abs(a.x - b.x) > abs(a.y - b.y)
    a, b = sorted(figures, key=lambda f: f.x if across else f.y)
    return f"{name(a)} {'left of' if across else 'above'} {name(b)}"


def _many_turns(rng: np.random.Generator, figures: Sequence[Figure]) -> list[Turn]:
    """One of each kind and a description, in random order; two relations where the scene has them, for they are the hardest."""
    turns = [turn for _, turn in pick_some(rng, relation_turns(figures), 2)]
    turns += [turn for _, turn in pick_some(rng, colour_turns(figures), 1) + pick_some(rng, shape_turns(figures), 1)]
    turns += [count_turn(figures), ("Describe.", caption(figures))]
    return pick_some(rng, turns, len(turns))


def _one_turn(rng: np.random.Generator, order: Order, figures: Sequence[Figure]) -> Turn | None:
    kind = order.task.split("/")[1]
    if kind == "count":
        return count_turn(figures)
    asked = {"colour": colour_turns, "shape": shape_turns, "relation": relation_turns}[kind](figures)
    turns = [turn for f, turn in asked if order.split != "test" or f.pair in HELD_OUT_PAIRS]
    return pick(rng, turns) if turns else None


def make(order: Order) -> Document:
    rng = order.rng
    while True:
        figures, width, height = random_scene(rng, order.split, small=order.task != "scenes/count")
        one = _one_turn(rng, order, figures) if "/" in order.task else None
        if one or "/" not in order.task:
            break
    turns = [one] if one else _many_turns(rng, figures)
    return chat(order, [picture(draw_scene(rng, figures, width, height))], turns, figures=[f.name for f in figures])
