"""Probabilities of harm in texts: a hashed n-gram classifier that ships with the package, or a function of the operator's.

    text ─► lower-case words ─► windows of 32 words ─► n-grams of characters and words, hashed ─► a logistic regression a category
         ─► the highest probability of any window

It knows English words. Its data, its accuracy and what it cannot rate: docs/safety.md. Trained by
benchmarks/train_safety.py. No text is harmful by its length: a window has as many words as the texts that it was trained on.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np

from alhena.shapes import Float, Int

WEIGHTS = Path(__file__).with_name("safety_weights.npz")
BUCKETS = 1 << 17
WINDOW, STRIDE = 32, 16
# Of characters within a word.
SHORTEST, LONGEST = 3, 5
MAX_WORD = 32
# No labelled data may be used for the other categories of the API.
RATED = (
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
)
_URL_OR_MENTION = re.compile(r"https?:\S+|\bwww\.\S+|[@#]\w+")
_REPEATED = re.compile(r"(.)\1{2,}")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


# The probability of each category of harm, by the API's name of it.
Classify = Callable[[str], Mapping[str, float]]


# ── Features ──────────────────────────────────────────────────────────────────────────────────────────────────


def words(text: str) -> list[str]:
    """Lower-case words, without links, mentions and tags; a letter that is repeated is repeated twice at most.

    >>> words("RT @someone: Sooooo GOOD, isn't it? https://t.co/x")
    ['rt', 'soo', 'good', "isn't", 'it']
    """
    text = _URL_OR_MENTION.sub(" ", unicodedata.normalize("NFKC", text).lower().replace("’", "'"))
    return [word[:MAX_WORD] for word in _WORD.findall(_REPEATED.sub(r"\1\1", text))]


def _bucket(ngram: str) -> int:
    return zlib.crc32(ngram.encode()) % BUCKETS


@lru_cache(1 << 15)
def _word_buckets(word: str) -> tuple[int, ...]:
    """Buckets of a word and of the n-grams of its characters."""
    marked = f"<{word}>"
    parts = (marked[i : i + n] for n in range(SHORTEST, LONGEST + 1) for i in range(len(marked) - n + 1))
    return (_bucket(f"w {word}"), *(_bucket(f"c {part}") for part in parts))


def features(window: Sequence[str]) -> Int[np.ndarray, " F"]:
    """The distinct buckets of some words, their characters and their pairs; each counts 1 / √F."""
    buckets = {bucket for word in window for bucket in _word_buckets(word)}
    buckets.update(_bucket(f"b {a} {b}") for a, b in pairwise(window))
    return np.array(sorted(buckets), np.int64)


def windows(text: str) -> Iterator[list[str]]:
    """Overlapping windows over the words of a text."""
    found = words(text)
    for start in range(0, max(len(found) - STRIDE, 1), STRIDE):
        if window := found[start : start + WINDOW]:
            yield window


# ── The classifier ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Weights:
    """Logistic regressions, one for each category of RATED."""

    # int8 in the file
    weights: Float[np.ndarray, "categories buckets"]
    bias: Float[np.ndarray, " categories"]

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Weights:
        with np.load(path, allow_pickle=False) as file:
            return cls(file["weights"].astype(np.float32) * file["scale"][:, None], file["bias"])

    def save(self, path: Path) -> None:
        """Writes 8-bit weights."""
        scale = np.abs(self.weights).max(1).astype(np.float32) / 127
        weights = np.round(self.weights / scale[:, None]).astype(np.int8)
        np.savez_compressed(path, weights=weights, scale=scale, bias=self.bias.astype(np.float32))

    def scores(self, text: str) -> list[float]:
        """The highest score of any window, in each category of RATED."""
        logits = [np.full(len(self.bias), -np.inf, np.float32)]
        for window in windows(text):
            buckets = features(window)
            logits.append(self.weights[:, buckets].sum(1) / np.sqrt(len(buckets)) + self.bias)
        return (1 / (1 + np.exp(-np.max(logits, axis=0)))).tolist()


@cache
def _weights() -> Weights:
    return Weights.load()


def classify(text: str) -> dict[str, float]:
    """The probability of each category of RATED, by the classifier of the package."""
    return dict(zip(RATED, _weights().scores(text), strict=True))


def load_classifier(name: str) -> Classify:
    """The operator's classifier, ``module:function``. Raises ValueError when there is no such function."""
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--safety {name}: {error}; write module:function") from None
    if not callable(found):
        raise ValueError(f"--safety {name}: it is no function")
    return found
