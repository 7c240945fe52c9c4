"""CIDEr of a caption (Vedantam et al. 2015, CIDEr-D): n-grams it shares with the references, weighted by how rare they are.

    tf-idf of the n-grams of 1 to 4 words ── clipped cosine with each reference, less for another length ── mean × 10

Frequencies are those of the references of all images of a language. As in the publisher's code the length is counted in bigrams.
Words are those of all scripts (characters where they are not spaced) where that code needs a tokenizer in Java: "it's" is two words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from alhena.corpus.prose import units
from alhena.evaluate.tasks.items import Item, Metric

LONGEST, SIGMA = 4, 6.0
Ngram = tuple[str, ...]


@dataclass(frozen=True)
class Frequencies:
    """In how many of ``images`` images a reference has an n-gram; ``name`` says of which images."""

    name: str
    images: int = field(compare=False)
    counts: Counter[Ngram] = field(compare=False)

    def weight(self, ngram: Ngram) -> float:
        return math.log(self.images) - math.log(max(1, self.counts[ngram]))


def ngrams(text: str) -> Counter[Ngram]:
    """How often each n-gram of 1 to 4 words occurs."""
    words = units(text)
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


def frequencies(name: str, references: Iterable[Sequence[str]]) -> Frequencies:
    """Of the references of each image."""
    counts, images = Counter[Ngram](), 0
    for of_image in references:
        counts.update({ngram for text in of_image for ngram in ngrams(text)})
        images += 1
    return Frequencies(name, images, counts)


@dataclass(frozen=True)
class _Vector:
    """The weighted n-grams of a text by length, their norms, and the number of bigrams."""

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    bigrams: int


def _vector(text: str, f: Frequencies) -> _Vector:
    weights = tuple(dict[Ngram, float]() for _ in range(LONGEST))
    counts = ngrams(text)
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * f.weight(ngram)
    norms = tuple(math.sqrt(sum(w * w for w in of_length.values())) for of_length in weights)
    return _Vector(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _similarity(a: _Vector, b: _Vector) -> float:
    """The mean over lengths of the clipped cosine of an answer and a reference."""
    total = 0.0
    for of_a, of_b, norm_a, norm_b in zip(a.weights, b.weights, a.norms, b.norms, strict=True):
        dot = sum(min(w, of_b[ngram]) * of_b[ngram] for ngram, w in of_a.items() if ngram in of_b)
        total += dot / (norm_a * norm_b) if norm_a and norm_b else 0.0
    return total / LONGEST * math.exp(-((a.bigrams - b.bigrams) ** 2) / (2 * SIGMA**2))


def cider(references: Sequence[str], answer: str, f: Frequencies) -> float:
    """From 0 to 10."""
    vector = _vector(answer, f)
    return 10 * sum(_similarity(vector, _vector(reference, f)) for reference in references) / len(references)


def with_frequencies(name: str, items: Sequence[Item]) -> list[Item]:
    """Items whose captions are scored by the frequencies of all of them in their group."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    of_group = {g: frequencies(f"{name} {g}", (i.references for i in group)) for g, group in groups.items()}
    return [replace(item, facts={**item.facts, "frequencies": of_group[item.group]}) for item in items]


CIDER = Metric(
    "CIDEr", lambda item, answer: cider(item.references, answer, item.facts["frequencies"]), binary=False, by_group=True
)
