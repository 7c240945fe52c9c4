"""A quick part of the malformed requests."""

from __future__ import annotations

from itertools import islice

from tests.robustness.malformed_requests import attack, hostile, mutated, systematic, tracebacks
from tests.serve.conftest import tiny_address, tiny_engine, tiny_folder  # noqa: F401


def test_malformed_requests_get_4xx_and_log_no_traceback(tiny_address):  # noqa: F811
    with tracebacks() as found:
        trials = [*islice(systematic(), 0, None, 19), *islice(hostile(), 0, None, 2), *mutated(1, 30)]
        counts, faults = attack(tiny_address, iter(trials))
    assert not faults
    assert not found
    assert counts["400"] > 50
