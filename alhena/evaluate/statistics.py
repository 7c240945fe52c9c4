"""Intervals of scores and tests of differences: Wilson, bootstrap, McNemar, paired bootstrap, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alhena.shapes import Float

# Of a normal distribution, two-sided, 95 %.
Z = 1.96
RESAMPLES = 10_000
# Numbers that a bootstrap draws at a time.
_DRAWS = 1 << 22


def wilson(share: float, items: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    scale = 1 + Z**2 / items
    center = (share + Z**2 / (2 * items)) / scale
    half = Z * math.sqrt(share * (1 - share) / items + Z**2 / (4 * items**2)) / scale
    return max(0.0, center - half), min(1.0, center + half)


def group_weights(weights: Sequence[float], groups: Sequence[str]) -> Float[np.ndarray, " N"]:
    """Weights with which the mean of all items is the mean over groups of the weighted mean of each.

    >>> group_weights([1, 1, 2], ["a", "a", "b"]).tolist()
    [0.25, 0.25, 0.5]
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    totals = np.bincount(index, weights)
    return np.asarray(weights, float) / totals[index] / len(names)


def resampled_means(
    values: Sequence[float] | Float[np.ndarray, " N"],
    seed: int = 0,
    resamples: int = RESAMPLES,
    weights: Float[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, " R"]:
    """Means of samples of the same size, drawn with replacement."""
    data, rng = np.asarray(values, float), np.random.default_rng(seed)
    w = np.ones(len(data)) if weights is None else weights
    size = max(1, _DRAWS // len(data))
    parts = []
    for start in range(0, resamples, size):
        drawn = rng.integers(0, len(data), (min(size, resamples - start), len(data)))
        parts.append((data * w)[drawn].sum(1) / w[drawn].sum(1))
    return np.concatenate(parts)


def bootstrap(
    values: Sequence[float], seed: int = 0, weights: Float[np.ndarray, " N"] | None = None
) -> tuple[float, float]:
    """The 95 % interval of a mean, by percentiles of resampled ones (Efron 1979)."""
    low, high = np.percentile(resampled_means(values, seed, weights=weights), (2.5, 97.5))
    return float(low), float(high)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """The exact p-value, two-sided, of two models that answer the same items right (1) or wrong (0) (McNemar 1947).

    >>> mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]), mcnemar([1, 0], [0, 1])
    (0.03125, 1.0)
    """
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    n, k = only_a + only_b, min(only_a, only_b)
    # In integers: 2**n has no float for large n.
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n) if n else 1.0


@dataclass(frozen=True)
class Difference:
    """The mean difference of two models on the same items, its 95 % interval, and the p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, weights: Float[np.ndarray, " N"] | None = None
) -> Difference:
    """The difference b - a of means over the same items, resampled together (Koehn 2004)."""
    differences = np.asarray(b, float) - np.asarray(a, float)
    means = resampled_means(differences, seed, weights=weights)
    low, high = np.percentile(means, (2.5, 97.5))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(means) + 1)) if np.any(differences) else 1.0
    return Difference(float(np.average(differences, weights=weights)), float(low), float(high), float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests together, so that the chance of any false difference stays below the level (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    out, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = largest
    return out
