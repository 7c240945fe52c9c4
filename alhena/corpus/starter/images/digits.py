"""Handwritten digits: 8x8 scans from scikit-learn (UCI, Alpaydin & Kaynak 1998).

4 7  ──  two scans side by side, upscaled to 32x32 each  ──►  "Which number is this?"  "47"
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as Pillow

from alhena.content import Document
from alhena.corpus.starter.items import ItemSpec, chat, pick, png_image
from alhena.corpus.starter.splits import SPLITS, Split, is_held_out_string, split_of

SIDE = 32


@lru_cache(maxsize=1)
def _scans() -> dict[tuple[Split, int], list[np.ndarray]]:
    """Intensities float32 [8, 8] in 0..1, by split and digit."""
    # This import takes a second; only workers that make digits need it.
    from sklearn.datasets import load_digits

    by_digit: dict[tuple[Split, int], list[np.ndarray]] = {(s, d): [] for s in SPLITS for d in range(10)}
    data = load_digits()
    for index, (image, digit) in enumerate(zip(data.images, data.target, strict=True)):
        by_digit[split_of("digit", index), int(digit)].append((image / 16).astype(np.float32))
    return by_digit


def scans(split: Split, digit: int) -> list[np.ndarray]:
    """Intensities float32 [8, 8] in 0..1 of all scans of a digit in a split."""
    return _scans()[split, digit]


def upscale(scan: Float[np.ndarray, "8 8"], side: int) -> Float[np.ndarray, "side side"]:
    """Bicubic interpolation to ``side`` x ``side``."""
    return np.asarray(Pillow.fromarray(scan).resize((side, side), Pillow.Resampling.BICUBIC)).clip(0, 1)


def render_digit(
    rng: np.random.Generator, split: Split, digit: int, sides: tuple[int, int]
) -> Float[np.ndarray, "32 32"]:
    """Intensities of a random scan of the digit, at a random size within ``sides`` (inclusive) and a random position."""
    side = int(rng.integers(sides[0], sides[1] + 1))
    x, y = rng.integers(0, SIDE - side + 1, 2)
    canvas = np.zeros((SIDE, SIDE), np.float32)
    canvas[y : y + side, x : x + side] = upscale(pick(rng, scans(split, digit)), side)
    return canvas


def to_gray(
    intensity: Float[np.ndarray, "height width"], background: float, foreground: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Gray pixels: ``background`` where the intensity is 0, ``foreground`` where it is 1."""
    gray = (background + (foreground - background) * intensity).round().clip(0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def random_string(rng: np.random.Generator, split: Split, length: int) -> str:
    """``length`` random digits: a held-out string in the test split, and none elsewhere. Single digits occur in every split."""
    while True:
        string = "".join(str(d) for d in rng.integers(0, 10, length))
        if length == 1 or is_held_out_string(string) == (split == "test"):
            return string


def draw_digits(rng: np.random.Generator, split: Split, string: str) -> UInt8[np.ndarray, "32 width 3"]:
    """Digits side by side, dark on light or light on dark."""
    intensity = np.hstack([render_digit(rng, split, int(d), (25, SIDE)) for d in string])
    light, dark = rng.uniform(225, 255), rng.uniform(0, 60)
    return to_gray(intensity, *((light, dark) if rng.random() < 0.6 else (dark, light)))


def make(spec: ItemSpec) -> Document:
    """A number of one to three digits to read."""
    rng = spec.rng
    string = random_string(rng, spec.split, (1, 2, 1, 2, 3)[spec.index % 5])
    pixels = draw_digits(rng, spec.split, string)
    return chat(spec, [png_image(pixels)], [("Which number is this?", string)], number=string)
