"""Images to patches at variable resolution: the aspect ratio is preserved, the size follows a budget of soft tokens.

An image of 96×64 pixels with 16 pixels a token becomes a grid of 4 rows and 6 columns. Patches of 8×8 come pool-window first, so
that four neighbors in memory are four neighbors in the image and pooling is a mean over consecutive patches:

    pixels  a b | e f      patches, in order: a b c d  e f g h …      soft token 0 = mean(a b c d)
            c d | g h

The encoders of open models have rules of their own (:func:`preprocess` knows them all): Gemma 3 resizes to a square, Gemma 4 enlarges
small images too, until the budget is used up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image as Pillow

from alhena.content import Resolution
from alhena.model import config
from alhena.shapes import Int, UInt8

Pixels = UInt8[np.ndarray, "_ _ 3"]
# Patches and their (row, column) positions, pool windows first.
Patches = tuple[UInt8[np.ndarray, "patches values"], Int[np.ndarray, "patches 2"]]
# Soft tokens that Gemma 4 may use for an image.
GEMMA4_BUDGETS = (70, 140, 280, 560, 1120)
# Those of a resolution that a request asks for: of an image, and of a frame of a video, of which there are many.
GEMMA4_RESOLUTIONS: Mapping[Resolution, int] = {"low": 70, "medium": 280, "high": 560, "ultra high": 1120}
GEMMA4_FRAME_RESOLUTIONS: Mapping[Resolution, int] = {"low": 70, "medium": 140, "high": 280}
# The fraction of the soft tokens that an image has by default, where an encoder reads images at their own size.
FRACTIONS: Mapping[Resolution, float] = {"low": 1 / 4, "medium": 1 / 2, "high": 1}


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


def _cut(pixels: Pixels, c: config.VisionEncoder) -> Patches:
    """Patches uint8 [p, patch²·3] and their positions int32 [p, 2], of an image whose sides are multiples of a soft token's."""
    rows, columns = (side // c.pixels_per_token for side in pixels.shape[:2])
    s, p = c.pool, c.patch
    windows = pixels.reshape(rows, s, p, columns, s, p, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    positions = np.stack(np.meshgrid(np.arange(rows * s), np.arange(columns * s), indexing="ij"), -1)
    positions = positions.reshape(rows, s, columns, s, 2).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(windows).reshape(-1, p * p * 3), positions.reshape(-1, 2).astype(np.int32)


def _resampled(pixels: Pixels, grid: tuple[int, int], c: config.VisionEncoder, filter: Pillow.Resampling) -> Pixels:
    """uint8 [h, w, 3] to ``grid`` rows and columns of soft tokens, antialiased."""
    rows, columns = (n * c.pixels_per_token for n in grid)
    return np.asarray(Pillow.fromarray(pixels).resize((columns, rows), filter))


def patchify(pixels: Pixels, c: config.Vision, budget: int) -> Patches:
    """Patches uint8 [p, patch²·3] and their (row, column) positions int32 [p, 2], pool windows first.

    With ``mean_pool`` every image is resized to a square of one size; a ValueError is raised for a budget below it.
    """
    side = c.side // c.pool
    if not c.mean_pool:
        rows, columns = fit_grid(pixels.shape[0], pixels.shape[1], budget, c.pixels_per_token, side)
        return _cut(resize(pixels, rows * c.pixels_per_token, columns * c.pixels_per_token), c)
    if budget < side**2:
        raise ValueError(f"a budget of {budget} soft tokens an image; this encoder makes {side**2} of each")
    return _cut(_resampled(pixels, (side, side), c, Pillow.Resampling.BILINEAR), c)


def gemma4_grid(height: int, width: int, budget: int, side: int = 48) -> tuple[int, int]:
    """Rows and columns of soft tokens, ``side`` pixels each, that Gemma 4 resizes an image to: nearly all of the budget, rounded down.

    Raises ValueError for a budget that Gemma 4 does not have.

    >>> sizes = (480, 640), (48, 48), (37, 1000), (1000, 3), (1, 1), (5, 5000)
    >>> [gemma4_grid(*size, 280) for size in sizes]
    [(14, 19), (16, 16), (3, 86), (280, 1), (16, 16), (1, 280)]
    """
    if budget not in GEMMA4_BUDGETS:
        raise ValueError(
            f"a budget of {budget} soft tokens an image; Gemma 4 has {', '.join(map(str, GEMMA4_BUDGETS))}"
        )
    factor = math.sqrt(budget * side * side / (height * width))
    rows, columns = math.floor(factor * height / side), math.floor(factor * width / side)
    # One is zero when the image is so elongated that a side falls below one token.
    if rows == 0:
        return 1, min(width // height, budget)
    if columns == 0:
        return min(height // width, budget), 1
    return rows, columns


def preprocess(pixels: Pixels, c: config.VisionEncoder, budget: int) -> Patches:
    """Patches and positions of an image as the encoder ``c`` was trained on them, in at most ``budget`` soft tokens.

    Every ``pool``² patches are one soft token. Raises ValueError for a budget or an image that the encoder cannot have.
    """
    if isinstance(c, config.Vision):
        return patchify(pixels, c, budget)
    height, width = pixels.shape[:2]
    rows, columns = gemma4_grid(height, width, budget, c.pixels_per_token)
    if max(rows, columns) * c.pool > c.side:
        raise ValueError(
            f"an image of {width} x {height} pixels has {rows} x {columns} soft tokens; "
            f"this encoder has positions for {c.side // c.pool} along a side"
        )
    return _cut(_resampled(pixels, (rows, columns), c, Pillow.Resampling.BICUBIC), c)


def resolution_budget(
    resolution: Resolution | None, pixels: Pixels, c: config.VisionEncoder, default: int, is_frame: bool = False
) -> int:
    """The budget of soft tokens of an image or of a frame of a video at a resolution; ``default`` is that of None.

    Raises ValueError for a resolution that the encoder does not have.
    """
    if resolution is None:
        return default
    if isinstance(c, config.Vision):
        if c.mean_pool:
            raise ValueError(
                f"media resolution {resolution}: this model's encoder makes {(c.side // c.pool) ** 2} tokens of every image"
            )
        rows, columns = fit_grid(pixels.shape[0], pixels.shape[1], default, c.pixels_per_token, c.side // c.pool)
        budgets = {name: max(1, int(rows * columns * fraction)) for name, fraction in FRACTIONS.items()}
    else:
        budgets = dict(GEMMA4_FRAME_RESOLUTIONS if is_frame else GEMMA4_RESOLUTIONS)
    if resolution not in budgets:
        raise ValueError(f"media resolution {resolution}: this model's encoder has {', '.join(budgets)}")
    return budgets[resolution]


def frame_indices(total: int, count: int) -> list[int]:
    """Indices of the ``count`` frames of a video that Gemma 4 looks at, among ``total``; all of a shorter one.

    >>> frame_indices(10, 4), frame_indices(3, 4)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    return list(range(total)) if total < count else [i * total // count for i in range(count)]


def code_grid(height: int, width: int, max_codes: int, stride: int = config.CODES_STRIDE) -> tuple[int, int]:
    """Rows and columns of the image codes of a generated image, at most ``max_codes`` in all."""
    return fit_grid(height, width, max_codes, stride)
