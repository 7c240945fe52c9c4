"""A pool that does not run ahead of its consumer: memory is bounded by jobs and by bytes under way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def bounded(
    pool: Executor,
    work: Callable[[T], U],
    jobs: Iterable[T],
    most: int,
    weigh: Callable[[T], float] = lambda job: 0,
    heaviest: float = math.inf,
) -> Iterator[U]:
    """Results in the order of the jobs; never more than ``most`` jobs under way, nor more than ``heaviest`` in weight.

    One job that is heavier than ``heaviest`` runs alone.
    """
    waiting: deque[tuple[Future[U], float]] = deque()
    total = 0.0
    for job in jobs:
        weight = weigh(job)
        while waiting and (len(waiting) >= most or total + weight > heaviest):
            total -= waiting[0][1]
            yield waiting.popleft()[0].result()
        waiting.append((pool.submit(work, job), weight))
        total += weight
    while waiting:
        yield waiting.popleft()[0].result()
