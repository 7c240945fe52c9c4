"""Interleaved pages: running text with pictures and recordings in between, as in a book or on the web."""

from __future__ import annotations

import numpy as np

from alhena.content import Document, Image, Part, Text
from alhena.corpus.starter import digits, scenes, voices, words
from alhena.corpus.starter.splits import Split, page
from alhena.media import encode_png


def _section(rng: np.random.Generator, split: Split) -> list[Part]:
    kind = rng.integers(4)
    if kind == 0:
        things = scenes.arrange(rng, int(rng.integers(1, 3)), 64, 64, split, distinct=True)
        return [Text(f"Here is {scenes.describe(things)}: "), Image(encode_png(scenes.paint(things, 64, 64)))]
    if kind == 1:
        number = digits.choose(rng, split)
        return [Image(encode_png(digits.number(rng, split, number))), Text(f" Someone wrote {number}.")]
    if kind == 2:
        said = voices.number_words("en")[rng.integers(0, 21)]
        return [voices.speak(rng, said, "en"), Text(f" That was {said}.")]
    word = words.choose(rng, split)
    return [Text("The sign reads "), Image(encode_png(words.render(rng, word))), Text(f" {word}.")]


def make(rng: np.random.Generator, split: Split, i: int) -> Document:
    parts = [part for _ in range(int(rng.integers(2, 4))) for part in (*_section(rng, split), Text("\n"))]
    return Document((page(*parts),), "", "pages", "en", {"task": "pages"})
