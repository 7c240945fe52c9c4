"""Scenes: a few coloured shapes on light ground, with questions about colour, shape, number and place.

    ┌──────────────┐   What colour is the circle?           red
    │  ●red        │   What shape is blue?                  star
    │        ★blue │   How many shapes are there?           2
    └──────────────┘   Is the circle left of the star?      yes
                       Describe.                            a red circle left of a blue star

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
CLEAR = 12.0  # pixels between two centres before one is called left of or above the other


def draw_scene(rng: np.random.Generator, figures: Sequence[Figure], width: int, height: int) -> np.ndarray:
    tint = rng.integers(-10, 11, 3).tolist()
    return paint(width, height, figures, int(rng.integers(240, 256)), tint)


def random_scene(rng: np.random.Generator, split: Split, width: int, height: int) -> list[Figure]:
    count = int(rng.integers(1, 5))
    pairs = choose_pairs(rng, split, count)
    while len({shape for _, shape in pairs}) < count and rng.random() < 0.6:  # most shapes single: more can be asked
        pairs = choose_pairs(rng, split, count)
    return place(rng, pairs, width, height, (14, 28 if len(pairs) < 3 else 22))


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


def _relations(a: Figure, b: Figure) -> list[str]:
    """What is clearly true of ``a`` towards ``b``."""
    across = ["left of"] if b.x - a.x > CLEAR else ["right of"] if a.x - b.x > CLEAR else []
    return across + (["above"] if b.y - a.y > CLEAR else ["below"] if a.y - b.y > CLEAR else [])


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def relation_turns(rng: np.random.Generator, figures: Sequence[Figure], truth: bool) -> list[tuple[Figure, Turn]]:
    """All questions of one answer, in random order."""
    known = alone(figures, "shape")
    found = []
    for a in known:
        for b in known:
            for relation in _relations(a, b) if a is not b else []:
                asked = relation if truth else OPPOSITE[relation]
                found.append((a, (f"Is the {a.shape} {asked} the {b.shape}?", "yes" if truth else "no")))
    return pick_some(rng, found, len(found))


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
    """Two relations where the scene has them, for they are the hardest to learn; three of the other kinds."""
    related = [turn for truth in (True, False) for _, turn in relation_turns(rng, figures, truth)[:1]]
    others = [turn for _, turn in pick_some(rng, colour_turns(figures), 2) + pick_some(rng, shape_turns(figures), 2)]
    others.append(count_turn(figures))
    if rng.random() < 0.5:
        others.append(("Describe.", caption(figures)))
    turns = related + pick_some(rng, others, 3)
    return pick_some(rng, turns, len(turns))


def _one_turn(rng: np.random.Generator, order: Order, figures: Sequence[Figure]) -> Turn | None:
    kind = order.task.split("/")[1]
    if kind == "count":
        return count_turn(figures)
    asked = (
        colour_turns(figures)
        if kind == "colour"
        else shape_turns(figures)
        if kind == "shape"
        else relation_turns(rng, figures, truth=order.index % 2 == 0)
    )
    turns = [turn for f, turn in asked if order.split != "test" or f.pair in HELD_OUT_PAIRS]
    return pick(rng, turns) if turns else None


def make(order: Order) -> Document:
    rng = order.rng
    width, height = pick(rng, SIZES)
    while True:
        figures = random_scene(rng, order.split, width, height)
        one = _one_turn(rng, order, figures) if "/" in order.task else None
        if one or "/" not in order.task:
            break
    turns = [one] if one else _many_turns(rng, figures)
    return chat(order, [picture(draw_scene(rng, figures, width, height))], turns, figures=[f.name for f in figures])
