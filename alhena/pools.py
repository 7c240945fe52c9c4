"""A pool that does not run ahead of its consumer: memory is bounded by the number and the size of pending jobs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_bounded(
    pool: Executor,
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    max_pending: int,
    size_of: Callable[[Job], float] = lambda job: 0,
    max_size: float = math.inf,
) -> Iterator[Result]:
    """Results in the order of the jobs; at most ``max_pending`` jobs, of total size ``max_size``, are pending.

    A job that is larger than ``max_size`` runs alone.
    """
    pending: deque[tuple[Future[Result], float]] = deque()
    total = 0.0
    for job in jobs:
        size = size_of(job)
        while pending and (len(pending) >= max_pending or total + size > max_size):
            total -= pending[0][1]
            yield pending.popleft()[0].result()
        pending.append((pool.submit(work, job), size))
        total += size
    while pending:
        yield pending.popleft()[0].result()
