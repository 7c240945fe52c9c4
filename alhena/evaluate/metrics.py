"""Metrics, their chance levels and their confidence intervals. Error rates are computed by jiwer, chrF by sacrebleu.

A chance level is the score of the best answer that ignores the question: for exact match the most frequent reference, for error
rates the best constant, for bits per byte the entropy of single bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import jiwer
import numpy as np
from sacrebleu.metrics import CHRF

from alhena.evaluate.statistics import Z, wilson


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


def constant_chance(metric: Metric, references: Sequence[str]) -> float:
    """The best score of a constant answer, among the twenty most frequent references."""
    candidates = [text for text, _ in Counter(map(normalize, references)).most_common(20)]
    scores = [metric(references, [candidate] * len(references)) for candidate in candidates]
    return min(scores) if metric in LOWER_IS_BETTER else max(scores)


def wilson_interval(percent: float, items: int) -> float:
    """Half width, in percentage points, of the 95 % Wilson interval of a proportion.

    >>> round(wilson_interval(50.0, 100), 1)
    9.6
    """
    low, high = wilson(percent / 100, items)
    return 100 * (high - low) / 2


def _errors(metric: Metric, reference: str, answer: str) -> tuple[int, int]:
    """Edit operations of one answer, and the length of its reference in words or characters."""
    if metric is word_error_rate:
        words = jiwer.process_words(normalize(reference), normalize(answer))
        return (
            words.substitutions + words.deletions + words.insertions,
            words.hits + words.substitutions + words.deletions,
        )
    letters = jiwer.process_characters(normalize(reference), normalize(answer))
    errors = letters.substitutions + letters.deletions + letters.insertions
    return errors, letters.hits + letters.substitutions + letters.deletions


def confidence_interval(metric: Metric, references: Sequence[str], answers: Sequence[str]) -> float | None:
    """Half width, in percentage points, of the 95 % confidence interval of a score; None without a formula or for a single item.

    For exact match Wilson's interval. For an error rate that of a ratio estimator (errors over length), items sampled at random
    (Cochran 1977, 6.4).
    """
    if metric is exact_match:
        return wilson_interval(exact_match(references, answers), len(references))
    if metric not in LOWER_IS_BETTER or len(references) < 2:
        return None
    errors, lengths = np.array([_errors(metric, r, a) for r, a in zip(references, answers, strict=True)]).T
    residuals = errors - lengths * errors.sum() / lengths.sum()
    return float(100 * Z * math.sqrt(len(residuals) * residuals.var(ddof=1)) / lengths.sum())


def byte_entropy(texts: Sequence[str]) -> float:
    """Entropy of the byte frequencies: bits per byte of a unigram model of bytes."""
    counts = np.bincount(np.frombuffer("".join(texts).encode(), np.uint8), minlength=256)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
