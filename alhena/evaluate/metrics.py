"""Metrics and their chance levels. Error rates are computed by jiwer, chrF by sacrebleu.

A chance level is the score of the best answer that ignores the question: for exact match the most frequent reference, for error
rates the best constant, for bits per byte the entropy of single bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import jiwer
import numpy as np
from sacrebleu.metrics import CHRF

from alhena.corpus.starter.audio.speech import number_words


def normalize(text: str) -> str:
    """Text in lower case, runs of white space as one space.

    >>> normalize("  Forty  Seven ")
    'forty seven'
    """
    return " ".join(text.lower().split())


def matches(reference: str, answer: str) -> float:
    """1 when the normalized texts are equal, else 0."""
    return float(normalize(reference) == normalize(answer))


def exact_match(references: Sequence[str], answers: Sequence[str]) -> float:
    """Share of answers equal to their reference, in percent."""
    return 100 * float(np.mean([matches(r, a) for r, a in zip(references, answers, strict=True)]))


@cache
def _number_words() -> tuple[dict[str, int], re.Pattern[str]]:
    """The numbers below a hundred by their English words, and a pattern of these words and of digits."""
    words = {number_words(number, "en"): number for number in range(100)}
    longest_first = "|".join(word.replace(" ", r"[\s-]+") for word in sorted(words, key=len, reverse=True))
    return words, re.compile(rf"\b(?:{longest_first}|\d{{1,9}})\b")


@lru_cache(maxsize=1 << 12)
def named_numbers(text: str) -> frozenset[int]:
    """The numbers in a text: digits, and English words up to ninety-nine.

    >>> sorted(named_numbers("Forty-seven, then 3 and twenty."))
    [3, 20, 47]
    """
    words, pattern = _number_words()
    found = pattern.findall(text.lower())
    return frozenset(int(n) if n.isdecimal() else words[" ".join(re.split(r"[\s-]+", n))] for n in found)


def same_numbers(references: Sequence[str], answers: Sequence[str]) -> float:
    """Share of answers that name the numbers of their reference, in any order and number, and no others; in percent."""
    pairs = zip(references, answers, strict=True)
    return 100 * float(np.mean([named_numbers(r) == named_numbers(a) for r, a in pairs]))


def word_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """Word error rate, in percent."""
    return 100 * jiwer.wer([normalize(r) for r in references], [normalize(a) for a in answers])


def character_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """Character error rate, in percent."""
    return 100 * jiwer.cer([normalize(r) for r in references], [normalize(a) for a in answers])


def chrf(references: Sequence[str], answers: Sequence[str]) -> float:
    """Corpus-level chrF, 0 to 100."""
    return CHRF().corpus_score(list(answers), [list(references)]).score


Metric = Callable[[Sequence[str], Sequence[str]], float]
LOWER_IS_BETTER = (word_error_rate, character_error_rate)
# Every answer is right or wrong.
BINARY = (exact_match, same_numbers)
# Answers that are tried for the chance level of other metrics.
CONSTANTS = 20


def constant_chance(metric: Metric, references: Sequence[str]) -> float:
    """The best score of a constant answer: a reference; of metrics that take long, one of the most frequent ones."""
    count = None if metric in BINARY else CONSTANTS
    candidates = [text for text, _ in Counter(map(normalize, references)).most_common(count)]
    scores = [metric(references, [candidate] * len(references)) for candidate in candidates]
    return min(scores) if metric in LOWER_IS_BETTER else max(scores)


def _errors(metric: Metric, reference: str, answer: str) -> tuple[float, float]:
    """Edit operations by the length of the reference in words or characters, and that length."""
    process = jiwer.process_words if metric is word_error_rate else jiwer.process_characters
    found = process(normalize(reference), normalize(answer))
    length = found.hits + found.substitutions + found.deletions
    return (found.substitutions + found.deletions + found.insertions) / max(length, 1), float(length)


def item_score(metric: Metric, reference: str, answer: str) -> tuple[float, float]:
    """Score of one answer as a share, and its weight among the others: 1, or the length of the reference for an error rate."""
    if metric in LOWER_IS_BETTER:
        return _errors(metric, reference, answer)
    return (matches(reference, answer) if metric is exact_match else metric([reference], [answer]) / 100), 1.0


def byte_entropy(texts: Sequence[str]) -> float:
    """Entropy of the byte frequencies: bits per byte of a unigram model of bytes."""
    counts = np.bincount(np.frombuffer("".join(texts).encode(), np.uint8), minlength=256)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
