"""Running text whose words are exchanged for other words, in each document for others.

    def parse(self, line):              gtpos Tuesdays(argc, mutable):
        return self.split(line)   ──►       notempty argc.decrement(mutable)

Which word follows another is the same throughout a document and unknown outside it, so that near and far context is all there is to
predict it from. Training on such documents teaches in-context learning (Akyürek et al. 2024, "In-Context Language Learning",
arXiv:2401.12973), and no module can be memorized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from alhena.content import Document, Text
from alhena.corpus.starter.items import ItemSpec, plain_document
from alhena.corpus.starter.splits import Split
from alhena.corpus.starter.text.long_retrieval import filler
from alhena.corpus.starter.text.prose_and_code import whole_modules

WORD = re.compile(r"[A-Za-z]{2,}")
# About the tokens of the longest sequences that a recipe trains on; shorter sequences take a document apart.
CHARACTERS = 80_000


@lru_cache(maxsize=3)
def words_of(split: Split) -> list[str]:
    """The distinct words of a split."""
    return sorted({word for text in whole_modules(split).values() for word in WORD.findall(text)})


def exchange(rng: np.random.Generator, words: list[str]) -> dict[str, str]:
    """Another word for each, no two the same, except for a share of them between none and all."""
    chosen = np.flatnonzero(rng.random() < rng.random(len(words)))
    return {words[i]: words[j] for i, j in zip(chosen, rng.permutation(chosen), strict=True)}


def rename(text: str, names: Mapping[str, str]) -> str:
    """The text with the words that have another name under that one.

    >>> rename("def add(one, two): return one + two", {"one": "moon", "add": "river"})
    'def river(moon, two): return moon + two'
    """
    return WORD.sub(lambda word: names.get(word[0], word[0]), text)


def make(spec: ItemSpec) -> Document:
    """Several modules one after the other with the same exchange."""
    names = exchange(spec.rng, words_of(spec.split))
    return plain_document(spec, [Text(rename(filler(spec.rng, spec.split, CHARACTERS), names))], "en")
