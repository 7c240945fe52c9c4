"""The bounded pool: results in order, never more under way than allowed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from alhena.pools import bounded


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("heaviest", [5, 50])
def test_results_come_in_order_within_the_bounds(most, heaviest):
    taken: list[int] = []
    weights = [1, 7, 2, 2, 30, 1, 1, 1, 4, 80, 0, 3]

    def jobs():
        for number, weight in enumerate(weights):
            taken.append(number)
            yield number, weight

    with ThreadPoolExecutor(2) as pool:
        results = bounded(pool, lambda job: job[0], jobs(), most, lambda job: job[1], heaviest)
        for done, result in enumerate(results):
            assert result == done
            # The job that was taken last waits for room; those before it are under way.
            under_way = weights[done : len(taken) - 1]
            assert len(under_way) <= most
            assert len(under_way) <= 1 or sum(under_way) <= heaviest or len(taken) == len(weights)
    assert len(taken) == len(weights)
