"""Scenes: a few colored figures on a light background, with questions about color, shape, count and position.

    ┌──────────────┐   What colour is on the left?        red           What colour is it?   red     (of one figure)
    │  ●red        │   What shape is on the right?        star          What shape is it?    circle
    │        ★blue │   What colour is the star?           blue
    └──────────────┘   Where is the circle from the star? left
                       How many shapes are there?         2
                       Describe.                          a red circle left of a blue star

An image of one figure has a quarter of the patches of a large one; most training of colors and shapes uses it.

Modeled on CLEVR (Johnson et al. 2017, arXiv:1612.06890), at a size that two CPU cores can train on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from alhena.content import Document
from alhena.corpus.starter.images.figures import Figure, draw_figures, place_figures, sample_pairs
from alhena.corpus.starter.items import ItemSpec, Turn, chat, pick, png_image, sample
from alhena.corpus.starter.splits import HELD_OUT_PAIRS, Split

# Width and height of images, by the number of figures.
SIZES_OF_ONE = ((32, 32), (32, 32), (48, 32), (32, 48))
SIZES_OF_TWO = ((48, 48), (64, 32), (32, 64), (64, 48))
SIZES_OF_MORE = ((64, 64), (80, 64), (64, 80))
# A relation (left, above, …) needs this distance of the centers along its axis, in pixels, and this multiple of the other axis's.
MIN_DISTANCE = 10.0
MIN_DISTANCE_RATIO = 1.5


def draw_scene(
    rng: np.random.Generator, figures: Sequence[Figure], width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """An image with a random background and a random tint."""
    tint = rng.integers(-10, 11, 3).tolist()
    return draw_figures(width, height, figures, int(rng.integers(240, 256)), tint)


def random_scene(rng: np.random.Generator, split: Split, small: bool = True) -> tuple[list[Figure], int, int]:
    """Figures, width and height. With ``small``, 85 % of images with one or two figures are small."""
    count = pick(rng, (1, 1, 1, 1, 2, 2, 2, 3, 4))
    small = small and rng.random() < 0.85
    width, height = pick(rng, SIZES_OF_MORE if count > 2 or not small else SIZES_OF_TWO if count == 2 else SIZES_OF_ONE)
    pairs = sample_pairs(rng, split, count)
    # Mostly unique shapes: they allow more questions.
    while len({shape for _, shape in pairs}) < count and rng.random() < 0.6:
        pairs = sample_pairs(rng, split, count)
    return place_figures(rng, pairs, width, height, (16, 22 if count > 1 else 28)), width, height


def _with_unique_shape(figures: Sequence[Figure]) -> list[Figure]:
    """Figures whose shape occurs once."""
    shapes = [f.shape for f in figures]
    return [f for f in figures if shapes.count(f.shape) == 1]


def _outermost(figures: Sequence[Figure]) -> list[tuple[Figure, str]]:
    """The outermost figure in each direction where the next one is ``MIN_DISTANCE`` away, with that direction."""
    outermost = []
    for where, axis, sign in (
        ("on the left", "x", -1),
        ("on the right", "x", 1),
        ("at the top", "y", -1),
        ("at the bottom", "y", 1),
    ):
        coordinates = [sign * getattr(f, axis) for f in figures]
        second, first = np.argsort(coordinates)[-2:]
        if coordinates[first] - coordinates[second] > MIN_DISTANCE:
            outermost.append((figures[first], where))
    return outermost


def naming_turns(figures: Sequence[Figure], attribute: str) -> list[tuple[Figure, Turn]]:
    """Questions for the ``colour`` or ``shape`` of the only figure, or of figures given by their position.

    They do not name the other attribute: pairs of training would reveal the answer without the image.
    """
    if len(figures) == 1:
        return [(figures[0], (f"What {attribute} is it?", getattr(figures[0], attribute)))]
    return [(f, (f"What {attribute} is {where}?", getattr(f, attribute))) for f, where in _outermost(figures)]


def finding_turns(figures: Sequence[Figure]) -> list[tuple[Figure, Turn]]:
    """Questions for the color of a figure given by its shape, where there are several figures."""
    return [(f, (f"What colour is the {f.shape}?", f.colour)) for f in _with_unique_shape(figures) if len(figures) > 1]


def count_turn(figures: Sequence[Figure]) -> Turn:
    """The question for the number of figures."""
    return "How many shapes are there?", str(len(figures))


def _relation(a: Figure, b: Figure) -> str | None:
    """Direction from ``b`` to ``a``, or None when it is ambiguous."""
    across, down = a.x - b.x, a.y - b.y
    if abs(across) > max(MIN_DISTANCE, MIN_DISTANCE_RATIO * abs(down)):
        return "left" if across < 0 else "right"
    if abs(down) > max(MIN_DISTANCE, MIN_DISTANCE_RATIO * abs(across)):
        return "above" if down < 0 else "below"
    return None


def relation_turns(figures: Sequence[Figure]) -> list[tuple[Figure, Turn]]:
    """Questions for the position of one figure relative to another; both have unique shapes."""
    unique = _with_unique_shape(figures)
    return [
        (a, (f"Where is the {a.shape} from the {b.shape}?", relation))
        for a in unique
        for b in unique
        if (relation := _relation(a, b))
    ]


def caption(figures: Sequence[Figure]) -> str:
    """A list of the figures from left to right; two figures with the relation along their more distant axis.

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


def _train_turns(rng: np.random.Generator, figures: Sequence[Figure]) -> list[Turn]:
    """A description, or several questions in random order, for the color or the shape of each figure but never both.

    Earlier answers are in the context of later ones. After "red", the shapes of held-out pairs could be excluded without the image.
    """
    if rng.random() < 0.1:
        return [("Describe.", caption(figures))]
    by_color = [f for f in figures if rng.random() < 0.5]
    color_turns = naming_turns(figures, "colour") + finding_turns(figures)
    turns = sample(rng, [turn for f, turn in color_turns if f in by_color], 2)
    turns += sample(rng, [turn for f, turn in naming_turns(figures, "shape") if f not in by_color], 2)
    turns += [turn for _, turn in sample(rng, relation_turns(figures), 2)]
    if len(figures) > 1 or rng.random() < 0.3:
        turns.append(count_turn(figures))
    return sample(rng, turns, len(turns))


def _evaluation_turn(rng: np.random.Generator, spec: ItemSpec, figures: Sequence[Figure]) -> Turn | None:
    """A question of the task's kind (in the test, for a held-out pair), or None where the scene allows none."""
    kind = spec.task.split("/")[1]
    if kind == "count":
        return count_turn(figures)
    if kind in ("colour", "shape"):
        candidates = naming_turns(figures, kind)
    else:
        candidates = finding_turns(figures) if kind == "find" else relation_turns(figures)
    turns = [turn for f, turn in candidates if spec.split != "test" or f.pair in HELD_OUT_PAIRS]
    return pick(rng, turns) if turns else None


def make_figure(spec: ItemSpec) -> Document:
    """One figure and one question, mostly for its shape: small images train shapes at low cost."""
    rng = spec.rng
    width, height = pick(rng, SIZES_OF_ONE)
    figures = place_figures(rng, sample_pairs(rng, spec.split, 1), width, height, (16, 28))
    ((_, turn),) = naming_turns(figures, "shape" if rng.random() < 0.7 else "colour")
    return chat(spec, [png_image(draw_scene(rng, figures, width, height))], [turn], figures=[f.name for f in figures])


def make_relation(spec: ItemSpec) -> Document:
    """Two figures: where each is from the other, and the shape at one of the positions."""
    rng, turns = spec.rng, list[Turn]()
    while len(turns) < 2:
        width, height = pick(rng, SIZES_OF_TWO)
        figures = place_figures(rng, sample_pairs(rng, spec.split, 2), width, height, (16, 22))
        turns = [turn for _, turn in relation_turns(figures)]
    turns += [turn for _, turn in sample(rng, naming_turns(figures, "shape"), 1)]
    media = [png_image(draw_scene(rng, figures, width, height))]
    return chat(spec, media, sample(rng, turns, 3), figures=[f.name for f in figures])


def make(spec: ItemSpec) -> Document:
    """One to four figures; one question of the task's kind, or several."""
    rng = spec.rng
    while True:
        figures, width, height = random_scene(rng, spec.split, small=spec.task != "scenes/count")
        turn = _evaluation_turn(rng, spec, figures) if "/" in spec.task else None
        if turn or "/" not in spec.task:
            break
    turns = [turn] if turn else _train_turns(rng, figures)
    return chat(spec, [png_image(draw_scene(rng, figures, width, height))], turns, figures=[f.name for f in figures])
