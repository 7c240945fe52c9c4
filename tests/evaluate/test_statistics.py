"""Intervals cover what they must, and tests find differences as often as they must."""

from __future__ import annotations

import numpy as np
import pytest

from alhena.evaluate.statistics import bootstrap, holm, mcnemar, paired_bootstrap, wilson


def test_intervals_cover_the_truth_in_95_of_100_samples():
    rng, inside = np.random.default_rng(0), {"wilson": 0, "bootstrap": 0}
    for n in range(120):
        sample = (rng.random(120) < 0.3).astype(float).tolist()
        share = sum(sample) / 120
        for name, (low, high) in {"wilson": wilson(share, 120), "bootstrap": bootstrap(sample, n)}.items():
            inside[name] += low <= 0.3 <= high
    assert all(107 <= count <= 119 for count in inside.values()), inside


def test_wilson_is_exact_at_the_ends():
    assert wilson(0.0, 10)[0] == 0
    assert wilson(1.0, 10)[1] == pytest.approx(1)


def test_mcnemar_is_the_binomial_test_of_the_items_that_differ():
    from scipy.stats import binomtest

    a, b = [1] * 14 + [0] * 4 + [1] * 30 + [0] * 9, [0] * 14 + [1] * 4 + [1] * 30 + [0] * 9
    assert mcnemar(a, b) == pytest.approx(binomtest(4, 18).pvalue)
    assert mcnemar(a, a) == 1
    # No overflow for thousands of items.
    assert 0 < mcnemar([1] * 1100 + [0] * 1000, [0] * 1100 + [1] * 1000) < 0.05


def test_the_same_model_twice_rarely_differs_and_a_better_one_does():
    rng, false, found = np.random.default_rng(1), 0, 0
    for n in range(25):
        a, same = rng.random((2, 200)) < 0.5
        better = a | (rng.random(200) < 0.2)
        first, second, third = (scores.astype(float).tolist() for scores in (a, same, better))
        false += paired_bootstrap(first, second, n).p < 0.05
        found += paired_bootstrap(first, third, n).p < 0.05
    assert false <= 4
    assert found == 25
    d = paired_bootstrap([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (d.mean, d.low, d.high, d.p) == (0, 0, 0, 1)


def test_holm_is_never_smaller_than_the_p_values():
    p = [0.04, 0.001, 0.2, 0.04]
    assert all(c >= q for c, q in zip(holm(p), p, strict=True))
    assert holm([0.03]) == [0.03]
