"""Images to patches at variable resolution: the shape is kept, the size follows a budget of soft tokens.

An image of 96×64 pixels with 16 pixels a token becomes a grid of 4 rows and 6 columns. Patches of 8×8 come pool-window first, so
that four neighbors in memory are four neighbors in the picture and pooling is a mean over consecutive patches:

    pixels  a b | e f      patches, in order: a b c d  e f g h …      soft token 0 = mean(a b c d)
            c d | g h
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image as Pillow

from alhena.model import config


def fit(height: int, width: int, budget: int, side: int, most: int | None = None) -> tuple[int, int]:
    """Rows and columns of soft tokens, ``side`` pixels each, nearest to the image's own size within ``budget`` tokens.

    Neither is more than ``most``: an encoder knows so many places and no more.

    >>> fit(64, 96, 64, 16), fit(1000, 2000, 64, 16), fit(5, 5, 64, 16), fit(10, 4000, 64, 16), fit(10, 4000, 64, 16, 8)
    ((4, 6), (6, 10), (1, 1), (1, 64), (1, 8))
    """
    scale = min(1.0, math.sqrt(budget * side * side / (height * width)))
    rows, columns = max(1, round(height * scale / side)), max(1, round(width * scale / side))
    if most is not None:
        rows, columns = min(rows, most), min(columns, most)
    while rows * columns > budget:
        if columns >= rows:
            columns -= 1
        else:
            rows -= 1
    return rows, columns


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] to [height, width, 3]; the same array when nothing is to be done."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.BICUBIC, reducing_gap=3.0))


def patchify(pixels: np.ndarray, c: config.Vision, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [h, w, 3] to patches uint8 [p, patch²·3] and their rows and columns int32 [p, 2], pool windows first."""
    rows, columns = fit(pixels.shape[0], pixels.shape[1], budget, c.pixels_per_token, c.side // c.pool)
    pixels = resize(pixels, rows * c.pixels_per_token, columns * c.pixels_per_token)
    s, p = c.pool, c.patch
    windows = pixels.reshape(rows, s, p, columns, s, p, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    places = np.stack(np.meshgrid(np.arange(rows * s), np.arange(columns * s), indexing="ij"), -1)
    places = places.reshape(rows, s, columns, s, 2).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(windows).reshape(-1, p * p * 3), places.reshape(-1, 2).astype(np.int32)


def code_grid(height: int, width: int, most: int, stride: int = config.CODES_STRIDE) -> tuple[int, int]:
    """Rows and columns of image codes of a drawing, at most ``most`` in all."""
    return fit(height, width, most, stride)
