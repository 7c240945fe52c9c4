"""Rendered words to read (OCR): words of the standard library's prose, random strings and numbers, in several fonts."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from alhena.content import Document, Image
from alhena.corpus.starter.splits import Split, belongs, quiz
from alhena.media import encode_png

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Oblique")
HEIGHT = 32
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


@cache
def vocabulary(split: Split) -> tuple[str, ...]:
    """Words of 3 to 7 letters of Python's own documentation, those of one split."""
    from pydoc_data.topics import topics

    words = sorted(set(re.findall(r"\b[a-z]{3,7}\b", " ".join(topics.values()))))
    return tuple(word for word in words if belongs(("word", word), split))


def choose(rng: np.random.Generator, split: Split) -> str:
    if rng.random() < 0.75:
        words = vocabulary(split)
        return words[rng.integers(len(words))]
    while True:
        word = "".join(rng.choice(LETTERS, rng.integers(3, 6)))
        if belongs(("word", word), split):
            return word


def render(rng: np.random.Generator, word: str) -> np.ndarray:
    """uint8 [32, width, 3], the width a multiple of 16 that the word fills."""
    face = font(FONTS[rng.integers(len(FONTS))], int(rng.integers(18, 23)))
    left, top, right, bottom = face.getbbox(word)
    width = max(32, -(-(int(right - left) + 6) // 16) * 16)
    ink, paper = tuple(rng.integers(0, 90, 3).tolist()), tuple(rng.integers(215, 256, 3).tolist())
    canvas = Pillow.new("RGB", (width, HEIGHT), paper)
    baseline = (HEIGHT - 22) / 2 + rng.uniform(-2, 2)
    ImageDraw.Draw(canvas).text((3 - left + rng.uniform(0, 2), baseline), word, fill=ink, font=face)
    return np.asarray(canvas)


def make(rng: np.random.Generator, split: Split, i: int) -> Document:
    word = choose(rng, split)
    return quiz("ocr", (Image(encode_png(render(rng, word))),), [("ocr", "Read the text.", word)], {"word": word})
