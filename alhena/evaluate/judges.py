"""Judges of generated images, independent of the model: a digit classifier, and template matching for colored shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image as Pillow

from alhena.shapes import Bool, Float
from alhena.tokens.images import Pixels

GRID = 8
# Pixels a side at which a generated shape is compared with the templates.
TEMPLATE_SIDE = 48
# Foreground pixels below which an image counts as empty, and the least intersection over union of a match.
MIN_PIXELS, MIN_OVERLAP = 20, 0.6

DigitClassifier = Callable[[np.ndarray], int]


def _digit_features(pixels: Pixels) -> Float[np.ndarray, " 64"]:
    """Darkness of an image as float [64], on the 0..16 scale of scikit-learn's digits."""
    gray = np.asarray(Pillow.fromarray(pixels).convert("L").resize((GRID, GRID), Pillow.Resampling.BOX), np.float64)
    return ((255 - gray) / 255 * 16).reshape(-1)


@cache
def digit_judge() -> tuple[DigitClassifier, float]:
    """A support vector machine trained on half of scikit-learn's handwritten digits, and its accuracy on the other half, in percent."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    data = load_digits()
    train = np.arange(len(data.data)) % 2 == 0
    classifier = SVC(gamma=0.001, C=10).fit(data.data[train], data.target[train])
    accuracy = 100 * float(classifier.score(data.data[~train], data.target[~train]))
    return (lambda pixels: int(classifier.predict(_digit_features(pixels)[None])[0])), accuracy


def foreground(pixels: Pixels) -> Bool[np.ndarray, "height width"]:
    """Mask of the pixels that differ clearly from the light background."""
    return np.abs(pixels.astype(float) - 255).max(-1) > 90


def colour_of(pixels: Pixels, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The name of the palette's color nearest to the median of the foreground; None of an empty image."""
    mask = foreground(pixels)
    if mask.sum() < MIN_PIXELS:
        return None
    median = np.median(pixels[mask], axis=0)
    return min(palette, key=lambda name: float(np.sum((median - np.array(palette[name])) ** 2)))


def _cropped(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "side side"]:
    """The bounding box of the foreground as float [TEMPLATE_SIDE, TEMPLATE_SIDE]."""
    ys, xs = np.nonzero(mask)
    box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    image = Pillow.fromarray(box.astype(np.uint8) * 255).resize(
        (TEMPLATE_SIDE, TEMPLATE_SIDE), Pillow.Resampling.BILINEAR
    )
    return np.asarray(image, np.float64) / 255


@cache
def shape_templates() -> dict[str, np.ndarray]:
    """Masks of the ideal shapes, cropped to their bounding boxes."""
    y, x = (np.mgrid[0:200, 0:200] - 99.5) / 90
    angle, distance = np.arctan2(x, -y), np.hypot(x, y)
    step = np.pi / 5
    # The angle from the nearest point of the star.
    turn = np.abs((angle + step) % (2 * step) - step)
    inner = 0.42
    edge = inner * np.sin(step) / (np.sin(turn) * (1 - inner * np.cos(step)) + inner * np.sin(step) * np.cos(turn))
    masks = {
        "circle": distance < 1,
        "square": np.maximum(np.abs(x), np.abs(y)) < 0.9,
        "triangle": (y < 0.5) & (y > -1 + np.sqrt(3) * np.abs(x)),
        "star": distance < edge,
        "cross": (np.minimum(np.abs(x), np.abs(y)) < 0.36) & (np.maximum(np.abs(x), np.abs(y)) < 1),
        "heart": (x**2 + (0.12 - 1.25 * y - np.sqrt(np.abs(x)) * 0.9) ** 2) < 1,
    }
    return {name: _cropped(mask) for name, mask in masks.items()}


def shape_of(pixels: Pixels) -> str | None:
    """The template with the largest intersection over union with the foreground; None of an empty image or without a match."""
    mask = foreground(pixels)
    if mask.sum() < MIN_PIXELS:
        return None
    shape = _cropped(mask)
    scores = {n: float(np.minimum(shape, t).sum() / np.maximum(shape, t).sum()) for n, t in shape_templates().items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > MIN_OVERLAP else None
