"""The bounded pool: results in order, never more pending jobs than allowed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from alhena.pools import map_bounded


@pytest.mark.parametrize("max_pending", [1, 3, 100])
@pytest.mark.parametrize("max_size", [5, 50])
def test_results_come_in_order_within_the_bounds(max_pending, max_size):
    taken: list[int] = []
    sizes = [1, 7, 2, 2, 30, 1, 1, 1, 4, 80, 0, 3]

    def jobs():
        for index, size in enumerate(sizes):
            taken.append(index)
            yield index, size

    with ThreadPoolExecutor(2) as pool:
        results = map_bounded(pool, lambda job: job[0], jobs(), max_pending, lambda job: job[1], max_size)
        for done, result in enumerate(results):
            assert result == done
            # The job that was taken last waits; those before it are pending.
            pending = sizes[done : len(taken) - 1]
            assert len(pending) <= max_pending
            assert len(pending) <= 1 or sum(pending) <= max_size or len(taken) == len(sizes)
    assert len(taken) == len(sizes)
