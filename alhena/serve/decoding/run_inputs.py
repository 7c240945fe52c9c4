"""The inputs of a run of steps, made on the host: which slots take tokens, and how."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from alhena.serve.decoding import buckets
from alhena.serve.decoding.jobs import Answering
from alhena.serve.decoding.sampling.sampler import Sampling, stack
from alhena.serve.decoding.slots import Inputs, Options
from alhena.shapes import Int


@dataclass(frozen=True)
class Rows:
    """The slots whose sequences take a token together, in the order of their rows, and the number of rows, padding included."""

    slots: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, slots: list[int], sizes: tuple[int, ...]) -> Rows:
        return cls(tuple(slots), buckets.bucket(sizes, len(slots), "sequences"))

    def of_slots(self, slots: Iterable[int]) -> list[int]:
        return [self.slots.index(slot) for slot in slots]


@runtime_checkable
class Owner(Protocol):
    """What the options depend on beside the jobs."""

    @property
    def max_codes(self) -> int: ...

    def forced_tokens(self, s: Sampling) -> tuple[int, int, int]: ...


def make_options(owner: Owner, active: Items[Answering], rows: Rows) -> Options:
    """How the sequences of the jobs are sampled."""
    size = rows.size
    samplings = [Sampling()] * size
    partner, source = np.arange(size, dtype=np.int32), np.arange(size, dtype=np.int32)
    forced, max_tokens = np.zeros((size, 3), np.int32), np.ones(size, np.int32)
    for a in active:
        of_job = rows.of_slots(a.slots)
        partner[of_job[0]] = of_job[-1]
        samplings[of_job[0]] = a.job.sampling
        source[of_job], max_tokens[of_job] = of_job[0], a.max_tokens
        forced[of_job[0]] = owner.forced_tokens(a.job.sampling)
    columns = {
        "guidance": np.array([s.guidance for s in samplings], np.float32),
        "partner": partner,
        "source": source,
        "forced_tokens": forced,
        "max_tokens": max_tokens,
        "logprobs": np.array([s.logprobs is not None for s in samplings]),
    }
    return Options(sampling=stack(samplings), max_codes=owner.max_codes, **jax.device_put(columns))


def make_inputs(
    active: Items[Answering], rows: Rows, tables: Items[Int[np.ndarray, "slots T"]], vocabulary: int
) -> Inputs:
    """Where the sequences of the jobs are, and what their next token must be."""
    size, num_slots = rows.size, len(tables[0])
    slots, masked, forced = np.full(size, num_slots, np.int32), np.zeros(size, bool), np.full(size, -1, np.int32)
    slots[: len(rows.slots)] = rows.slots
    masks = np.zeros((size, -(-vocabulary // 32)), np.uint32)
    for a in active:
        of_job = rows.of_slots(a.slots)
        if a.forced:
            forced[of_job] = a.forced[0]
        elif a.matcher:
            masks[of_job[0]], masked[of_job[0]] = a.matcher.mask(), True
    # The tables change while the program runs: it gets copies.
    of_rows = tuple(table[np.minimum(slots, num_slots - 1)] for table in tables)
    alive = np.arange(size) < len(rows.slots)
    return Inputs(*jax.device_put((slots, of_rows, alive, forced, masked, masks, np.ones((), np.int32))))
