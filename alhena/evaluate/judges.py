"""Judges of drawings, independent of the model: a classifier of real handwritten digits, and a check of pixels for shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image as Pillow

GRID = 8
TEMPLATE_SIDE = 48  # pixels a side at which a drawn shape is compared with the ideal ones

Digit = Callable[[np.ndarray], int]


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Ink of uint8 [h, w, 3] as float [64], on the 0..16 scale of the real digits."""
    gray = np.asarray(Pillow.fromarray(pixels).convert("L").resize((GRID, GRID), Pillow.Resampling.BOX), np.float64)
    return ((255 - gray) / 255 * 16).reshape(-1)


@cache
def digit_judge() -> tuple[Digit, float]:
    """A support vector machine trained on half of scikit-learn's real digits, and its accuracy on the other half, in percent."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    data = load_digits()
    train = np.arange(len(data.data)) % 2 == 0
    machine = SVC(gamma=0.001, C=10).fit(data.data[train], data.target[train])
    accuracy = 100 * float(machine.score(data.data[~train], data.target[~train]))
    return (lambda pixels: int(machine.predict(_shrink(pixels)[None])[0])), accuracy


def foreground(pixels: np.ndarray) -> np.ndarray:
    """Bool [h, w]: what is clearly not the light ground."""
    return np.abs(pixels.astype(float) - 255).max(-1) > 90


def colour_of(pixels: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's colour nearest to the median of the foreground; None of an empty picture."""
    mask = foreground(pixels)
    if mask.sum() < 20:
        return None
    middle = np.median(pixels[mask], axis=0)
    return min(palette, key=lambda name: float(np.sum((middle - np.array(palette[name])) ** 2)))


def _fitted(mask: np.ndarray) -> np.ndarray:
    """The foreground's bounding box as float [SIDE, SIDE]."""
    ys, xs = np.nonzero(mask)
    box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    image = Pillow.fromarray(box.astype(np.uint8) * 255).resize((TEMPLATE_SIDE, TEMPLATE_SIDE), Pillow.Resampling.BILINEAR)
    return np.asarray(image, np.float64) / 255


@cache
def shape_templates() -> dict[str, np.ndarray]:
    """Perfect shapes, cut to their bounding boxes."""
    y, x = (np.mgrid[0:200, 0:200] - 99.5) / 90
    angle, distance = np.arctan2(x, -y), np.hypot(x, y)
    step = np.pi / 5
    turn = np.abs((angle + step) % (2 * step) - step)  # angle from the nearest point of the star
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
    return {name: _fitted(mask) for name, mask in masks.items()}


def shape_of(pixels: np.ndarray) -> str | None:
    """The ideal shape that overlaps best with the foreground; None when there is hardly any or none fits."""
    mask = foreground(pixels)
    if mask.sum() < 20:
        return None
    drawn = _fitted(mask)
    scores = {n: float(np.minimum(drawn, s).sum() / np.maximum(drawn, s).sum()) for n, s in shape_templates().items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.6 else None
