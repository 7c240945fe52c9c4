"""Rendered words to read (OCR): words of the standard library's prose, random letters, and numbers.

"Read the text."   ┌──────────┐
                   │  module  │  32 pixels high, as wide as the word needs  ──►  "module"
                   └──────────┘
"""

from __future__ import annotations

import re
import string
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from alhena.content import Document
from alhena.corpus.starter.items import Order, chat, pick, picture
from alhena.corpus.starter.splits import SPLITS, Split, split_of

HEIGHT, NARROWEST, WIDEST = 32, 64, 160
FONTS = ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique")


@lru_cache(maxsize=1)
def _words() -> dict[Split, list[str]]:
    from pydoc_data.topics import topics  # half a megabyte of text that only the workers who need it read

    words = sorted(set(re.findall(r"\b[a-z]{3,6}\b", " ".join(topics.values()))))
    return {split: [word for word in words if split_of("word", word) == split] for split in SPLITS}


@lru_cache(maxsize=64)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the DejaVu fonts that come with matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def random_word(rng: np.random.Generator, split: Split) -> str:
    """Two in three from prose, the others letters or digits at random; every one belongs to its split alone."""
    if rng.random() < 2 / 3:
        return pick(rng, _words()[split])
    alphabet = string.ascii_lowercase if rng.random() < 0.7 else string.digits
    while True:
        word = "".join(pick(rng, alphabet) for _ in range(int(rng.integers(3, 5))))
        if split_of("word", word) == split:
            return word


def draw_word(rng: np.random.Generator, word: str) -> np.ndarray:
    """uint8 [32, width, 3]: dark text on light ground; the width is a multiple of 16."""
    face = font(pick(rng, FONTS), int(rng.integers(24, 28)))
    left, top, right, bottom = (round(v) for v in face.getbbox(word))
    width = min(max(-(-(right - left + 8) // 16) * 16, NARROWEST), WIDEST)
    light, dark = int(rng.integers(225, 256)), int(rng.integers(0, 70))
    paper, pen = light, dark
    image = Pillow.new("L", (max(width, right - left + 8), HEIGHT), paper)
    x = int(rng.integers(2, min(6, image.width - (right - left) - 1)))
    middle = (HEIGHT - (bottom - top)) // 2 + int(rng.integers(-1, 2))
    ImageDraw.Draw(image).text((x - left, middle - top), word, pen, face)
    return np.asarray(image.resize((width, HEIGHT)).convert("RGB"))


def make(order: Order) -> Document:
    word = random_word(order.rng, order.split)
    return chat(order, [picture(draw_word(order.rng, word))], [("Read the text.", word)], text=word)
