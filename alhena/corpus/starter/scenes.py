"""Scenes: a few coloured shapes on light ground, with questions about colour, shape, number and place.

    ┌──────────────┐   What colour is on the left?        red           What colour is it?   red     (of one figure)
    │  ●red        │   What shape is on the right?        star          What shape is it?    circle
    │        ★blue │   What colour is the star?           blue
    └──────────────┘   Where is the circle from the star? left
                       How many shapes are there?         2
                       Describe.                          a red circle left of a blue star

A picture of one figure is small and costs a quarter of a large one: shapes and colours are learned there first.

In the spirit of CLEVR (Johnson et al. 2017, arXiv:1612.06890), at a size that two cores can learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.figures import Figure, choose_pairs, paint, place
from alhena.corpus.starter.items import Order, Turn, chat, pick, pick_some, picture
from alhena.corpus.starter.splits import HELD_OUT_PAIRS, Split

ONE = ((32, 32), (32, 32), (48, 32), (32, 48))  # of one figure
TWO = ((48, 48), (64, 32), (32, 64), (64, 48))
MORE = ((64, 64), (80, 64), (64, 80))
CLEAR = 10.0  # pixels between two centres before one is called left of or above the other
CLEARER = 1.5  # how many times further apart one way than the other, before there is one right answer


def draw_scene(rng: np.random.Generator, figures: Sequence[Figure], width: int, height: int) -> np.ndarray:
    tint = rng.integers(-10, 11, 3).tolist()
    return paint(width, height, figures, int(rng.integers(240, 256)), tint)


def random_scene(rng: np.random.Generator, split: Split, small: bool = True) -> tuple[list[Figure], int, int]:
    """Figures, width and height; few figures mostly stand in small pictures, where ``small`` allows it."""
    count = pick(rng, (1, 1, 1, 1, 2, 2, 2, 3, 4))
    small = small and rng.random() < 0.85
    width, height = pick(rng, MORE if count > 2 or not small else TWO if count == 2 else ONE)
    pairs = choose_pairs(rng, split, count)
    while len({shape for _, shape in pairs}) < count and rng.random() < 0.6:  # most shapes single: more can be asked
        pairs = choose_pairs(rng, split, count)
    return place(rng, pairs, width, height, (16, 22 if count > 1 else 28)), width, height


def _alone(figures: Sequence[Figure]) -> list[Figure]:
    """The figures whose shape no other has."""
    values = [f.shape for f in figures]
    return [f for f, value in zip(figures, values, strict=True) if values.count(value) == 1]


def _outermost(figures: Sequence[Figure]) -> list[tuple[Figure, str]]:
    """Figures that stand clearly further out than all others, and where."""
    found = []
    for where, across, sign in (
        ("on the left", "x", -1),
        ("on the right", "x", 1),
        ("at the top", "y", -1),
        ("at the bottom", "y", 1),
    ):
        at = [sign * getattr(f, across) for f in figures]
        second, first = np.argsort(at)[-2:]
        if at[first] - at[second] > CLEAR:
            found.append((figures[first], where))
    return found


def naming_turns(figures: Sequence[Figure], attribute: str) -> list[tuple[Figure, Turn]]:
    """Asks for the ``colour`` or ``shape`` of the only figure, or of one that is named by its place alone.

    A question that named the other attribute could be answered from the pairs of training, without looking.
    """
    if len(figures) == 1:
        return [(figures[0], (f"What {attribute} is it?", getattr(figures[0], attribute)))]
    return [(f, (f"What {attribute} is {where}?", getattr(f, attribute))) for f, where in _outermost(figures)]


def finding_turns(figures: Sequence[Figure]) -> list[tuple[Figure, Turn]]:
    """Asks for the colour of a figure named by its shape, among others."""
    return [(f, (f"What colour is the {f.shape}?", f.colour)) for f in _alone(figures) if len(figures) > 1]


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
    known = _alone(figures)
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
    """A description, or several questions in random order that ask of each figure its colour or its shape, never both.

    An answer stands in the context of the next: whoever has just read "red" has learned in training that no star will follow,
    and need not look.
    """
    if rng.random() < 0.1:
        return [("Describe.", caption(figures))]
    by_colour = [f for f in figures if rng.random() < 0.5]
    colours = naming_turns(figures, "colour") + finding_turns(figures)
    asked = pick_some(rng, [turn for f, turn in colours if f in by_colour], 2)
    asked += pick_some(rng, [turn for f, turn in naming_turns(figures, "shape") if f not in by_colour], 2)
    asked += [turn for _, turn in pick_some(rng, relation_turns(figures), 2)]
    if len(figures) > 1 or rng.random() < 0.3:
        asked.append(count_turn(figures))
    return pick_some(rng, asked, len(asked))


def _one_turn(rng: np.random.Generator, order: Order, figures: Sequence[Figure]) -> Turn | None:
    kind = order.task.split("/")[1]
    if kind == "count":
        return count_turn(figures)
    if kind in ("colour", "shape"):
        asked = naming_turns(figures, kind)
    else:
        asked = finding_turns(figures) if kind == "find" else relation_turns(figures)
    turns = [turn for f, turn in asked if order.split != "test" or f.pair in HELD_OUT_PAIRS]
    return pick(rng, turns) if turns else None


def make_figure(order: Order) -> Document:
    """One figure and one question, mostly of its shape: where shapes are learned, at a few tokens a picture."""
    rng = order.rng
    width, height = pick(rng, ONE)
    figures = place(rng, choose_pairs(rng, order.split, 1), width, height, (16, 28))
    ((_, turn),) = naming_turns(figures, "shape" if rng.random() < 0.7 else "colour")
    return chat(order, [picture(draw_scene(rng, figures, width, height))], [turn], figures=[f.name for f in figures])


def make_relation(order: Order) -> Document:
    """Two figures: where each is from the other, and what stands at one of the places."""
    rng, turns = order.rng, list[Turn]()
    while len(turns) < 2:
        width, height = pick(rng, TWO)
        figures = place(rng, choose_pairs(rng, order.split, 2), width, height, (16, 22))
        turns = [turn for _, turn in relation_turns(figures)]
    turns += [turn for _, turn in pick_some(rng, naming_turns(figures, "shape"), 1)]
    media = [picture(draw_scene(rng, figures, width, height))]
    return chat(order, media, pick_some(rng, turns, 3), figures=[f.name for f in figures])


def make(order: Order) -> Document:
    rng = order.rng
    while True:
        figures, width, height = random_scene(rng, order.split, small=order.task != "scenes/count")
        one = _one_turn(rng, order, figures) if "/" in order.task else None
        if one or "/" not in order.task:
            break
    turns = [one] if one else _many_turns(rng, figures)
    return chat(order, [picture(draw_scene(rng, figures, width, height))], turns, figures=[f.name for f in figures])
