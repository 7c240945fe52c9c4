"""Metrics, their chance levels and their uncertainty. Error rates by jiwer, chrF by sacrebleu; nothing of our own where a library serves.

A chance level is what the best answer that ignores the question would get: for exact match the most frequent reference, for error
rates the best constant, for bits per byte the entropy of single bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import jiwer
import numpy as np
from sacrebleu.metrics import CHRF


def normalize(text: str) -> str:
    """Case and spaces do not count.

    >>> normal("  Forty  Seven ")
    'forty seven'
    """
    return " ".join(text.lower().split())


def matches(reference: str, answer: str) -> float:
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
    """chrF of the whole set, 0 to 100."""
    return CHRF().corpus_score(list(answers), [list(references)]).score


Metric = Callable[[Sequence[str], Sequence[str]], float]
LOWER_IS_BETTER = (word_error_rate, character_error_rate)


def constant_chance(metric: Metric, references: Sequence[str]) -> float:
    """The best score of one and the same answer to everything, among the twenty most frequent references."""
    candidates = [word for word, _ in Counter(map(normalize, references)).most_common(20)]
    scores = [metric(references, [candidate] * len(references)) for candidate in candidates]
    return min(scores) if metric in LOWER_IS_BETTER else max(scores)


def wilson_interval(percent: float, items: int) -> float:
    """Half width, in points, of the 95 % Wilson interval of a share.

    >>> round(wilson(50.0, 100), 1)
    9.6
    """
    p, z = percent / 100, 1.96
    return 100 * z * math.sqrt(p * (1 - p) / items + z**2 / (4 * items**2)) / (1 + z**2 / items)


def _errors(metric: Metric, reference: str, answer: str) -> tuple[int, int]:
    """Errors of one answer, and the words or characters of its reference."""
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
    """Half width, in points, of the 95 % interval of a score; None where there is no formula or a single item.

    Of a share Wilson's. Of an error rate that of a ratio of sums (errors by length), items drawn at random (Cochran 1977, 6.4).
    """
    if metric is exact_match:
        return wilson_interval(exact_match(references, answers), len(references))
    if metric not in LOWER_IS_BETTER or len(references) < 2:
        return None
    errors, lengths = np.array([_errors(metric, r, a) for r, a in zip(references, answers, strict=True)]).T
    rest = errors - lengths * errors.sum() / lengths.sum()
    return float(100 * 1.96 * math.sqrt(len(rest) * rest.var(ddof=1)) / lengths.sum())


def byte_entropy(texts: Sequence[str]) -> float:
    """Bits per byte of a model that knows only how frequent each byte is."""
    counts = np.bincount(np.frombuffer("".join(texts).encode(), np.uint8), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())
