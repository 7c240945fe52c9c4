"""Images to patches at variable resolution: the aspect ratio is preserved, the size follows a budget of soft tokens.

An image of 96×64 pixels with 16 pixels a token becomes a grid of 4 rows and 6 columns. Patches of 8×8 come pool-window first, so
that four neighbors in memory are four neighbors in the image and pooling is a mean over consecutive patches:

    pixels  a b | e f      patches, in order: a b c d  e f g h …      soft token 0 = mean(a b c d)
            c d | g h
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image as Pillow

from alhena.model import config
from alhena.shapes import Int, UInt8

Pixels = UInt8[np.ndarray, "_ _ 3"]


def fit_grid(height: int, width: int, budget: int, side: int, max_side: int | None = None) -> tuple[int, int]:
    """Rows and columns of soft tokens, ``side`` pixels each, nearest to the image's own size within ``budget`` tokens.

    Neither is more than ``max_side``, the number of position embeddings along a side of an encoder.

    >>> sizes = (64, 96), (1000, 2000), (5, 5), (10, 4000)
    >>> [fit_grid(*size, 64, 16) for size in sizes]
    [(4, 6), (6, 10), (1, 1), (1, 64)]
    >>> fit_grid(10, 4000, 64, 16, max_side=8)
    (1, 8)
    """
    scale = min(1.0, math.sqrt(budget * side * side / (height * width)))
    rows, columns = max(1, round(height * scale / side)), max(1, round(width * scale / side))
    if max_side is not None:
        rows, columns = min(rows, max_side), min(columns, max_side)
    while rows * columns > budget:
        if columns >= rows:
            columns -= 1
        else:
            rows -= 1
    return rows, columns


def resize(pixels: Pixels, height: int, width: int) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """uint8 [h, w, 3] to [height, width, 3]; the same array when it has that size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.BICUBIC, reducing_gap=3.0))


def patchify(
    pixels: Pixels, c: config.Vision, budget: int
) -> tuple[UInt8[np.ndarray, "patches values"], Int[np.ndarray, "patches 2"]]:
    """Patches uint8 [p, patch²·3] and their (row, column) positions int32 [p, 2], pool windows first."""
    rows, columns = fit_grid(pixels.shape[0], pixels.shape[1], budget, c.pixels_per_token, c.side // c.pool)
    pixels = resize(pixels, rows * c.pixels_per_token, columns * c.pixels_per_token)
    s, p = c.pool, c.patch
    windows = pixels.reshape(rows, s, p, columns, s, p, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    positions = np.stack(np.meshgrid(np.arange(rows * s), np.arange(columns * s), indexing="ij"), -1)
    positions = positions.reshape(rows, s, columns, s, 2).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(windows).reshape(-1, p * p * 3), positions.reshape(-1, 2).astype(np.int32)


def code_grid(height: int, width: int, max_codes: int, stride: int = config.CODES_STRIDE) -> tuple[int, int]:
    """Rows and columns of the image codes of a generated image, at most ``max_codes`` in all."""
    return fit_grid(height, width, max_codes, stride)
