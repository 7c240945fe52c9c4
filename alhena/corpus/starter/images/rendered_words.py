"""Rendered words for OCR: words of the standard library's prose, random letters, and numbers.

"Read the text."   ┌──────────┐
                   │  module  │  32 pixels high, width by the word         ──►  "module"
                   └──────────┘
"""

from __future__ import annotations

import re
import string
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from alhena.content import Document
from alhena.corpus.starter.items import ItemSpec, chat, pick, png_image
from alhena.corpus.starter.splits import SPLITS, Split, split_of

HEIGHT, MIN_WIDTH, MAX_WIDTH = 32, 64, 160
FONTS = ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique")


@lru_cache(maxsize=1)
def _words() -> dict[Split, list[str]]:
    """Words of three to six letters, by split."""
    # Half a megabyte of text that only workers for this source need.
    from pydoc_data.topics import topics

    words = sorted(set(re.findall(r"\b[a-z]{3,6}\b", " ".join(topics.values()))))
    return {split: [word for word in words if split_of("word", word) == split] for split in SPLITS}


@lru_cache(maxsize=64)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the DejaVu fonts of matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def random_word(rng: np.random.Generator, split: Split) -> str:
    """A word of prose (two in three), or random letters or digits. Each word occurs in one split only."""
    if rng.random() < 2 / 3:
        return pick(rng, _words()[split])
    alphabet = string.ascii_lowercase if rng.random() < 0.7 else string.digits
    while True:
        word = "".join(pick(rng, alphabet) for _ in range(int(rng.integers(3, 5))))
        if split_of("word", word) == split:
            return word


def draw_word(rng: np.random.Generator, word: str) -> UInt8[np.ndarray, "32 width 3"]:
    """Dark text on a light background; the width is a multiple of 16."""
    face = font(pick(rng, FONTS), int(rng.integers(24, 28)))
    left, top, right, bottom = (round(v) for v in face.getbbox(word))
    width = min(max(-(-(right - left + 8) // 16) * 16, MIN_WIDTH), MAX_WIDTH)
    background, foreground = int(rng.integers(225, 256)), int(rng.integers(0, 70))
    image = Pillow.new("L", (max(width, right - left + 8), HEIGHT), background)
    x = int(rng.integers(2, min(6, image.width - (right - left) - 1)))
    y = (HEIGHT - (bottom - top)) // 2 + int(rng.integers(-1, 2))
    ImageDraw.Draw(image).text((x - left, y - top), word, foreground, face)
    return np.asarray(image.resize((width, HEIGHT)).convert("RGB"))


def make(spec: ItemSpec) -> Document:
    """An image of a word to transcribe."""
    word = random_word(spec.rng, spec.split)
    return chat(spec, [png_image(draw_word(spec.rng, word))], [("Read the text.", word)], text=word)
