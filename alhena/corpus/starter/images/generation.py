"""Image generation: the model turn is an Image, not a text.

"Draw a red circle."   ──►  ┌────┐          "Draw the digit 7."  ──►  ┌────┐
                            │ ●  │  32x32                             │  7 │  32x32, dark on white
                            └────┘                                    └────┘
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import UInt8

from alhena.content import Content, Document, Image
from alhena.corpus.starter.images.digits import SIDE, render_digit, to_gray
from alhena.corpus.starter.images.figures import Figure, draw_figures
from alhena.corpus.starter.items import ItemSpec, chat, png_image
from alhena.corpus.starter.splits import HELD_OUT_PAIRS, TRAIN_PAIRS, Pair, Split


def draw_digit(rng: np.random.Generator, split: Split, digit: int) -> UInt8[np.ndarray, "32 32 3"]:
    """A centered dark digit on white."""
    return to_gray(render_digit(rng, split, digit, (30, SIDE)), 255, rng.uniform(0, 30))


def draw_shape(rng: np.random.Generator, pair: Pair) -> UInt8[np.ndarray, "32 32 3"]:
    """A centered shape on white."""
    x, y = SIDE / 2 + rng.uniform(-1, 1, 2)
    return draw_figures(SIDE, SIDE, [Figure(*pair, x, y, rng.uniform(25, 28))])


def _image_answer(spec: ItemSpec, request: str, image: Image, **facts: Any) -> Document:
    document = chat(spec, [], [(request, "")], **facts)
    return replace(document, contents=(document.contents[0], Content("model", (image,))))


def make(spec: ItemSpec) -> Document:
    """A request and its image. Training items alternate shapes and digits, each in fixed order."""
    rng, index = spec.rng, spec.index
    if spec.task == "drawing/digit" or (spec.task == "drawing" and index % 2):
        digit = (index // 2 if spec.task == "drawing" else index) % 10
        image = png_image(draw_digit(rng, spec.split, digit))
        return _image_answer(spec, f"Draw the digit {digit}.", image, digit=digit)
    pairs = HELD_OUT_PAIRS if spec.split == "test" else TRAIN_PAIRS
    color, shape = pairs[(index // 2 if spec.task == "drawing" else index) % len(pairs)]
    request = f"Draw {'an' if color == 'orange' else 'a'} {color} {shape}."
    return _image_answer(spec, request, png_image(draw_shape(rng, (color, shape))), colour=color, shape=shape)
