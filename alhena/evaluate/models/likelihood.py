"""Log-likelihoods of token continuations in full batches; a beginning that a batch has in common is computed once.

    sequence 1   │ shots, read once │ question 1 and its answer ··│        pages of the beginning are in the table of every sequence,
    sequence 2   │  pages 0 1 2 3   │ question 2 and its answer ····│      the rest of each has pages of its own
    sequence 3   │                  │ question 3 and its answer ·│

Sequences whose inputs are the same are computed once too: four answers of one token each cost one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alhena.evaluate.models.interface import Advance, Likelihood, common_beginning, no_advance
from alhena.model import config, model
from alhena.model.attention import paged_cache
from alhena.model.attention.paged_cache import PAGE, PagedCache, Tokens
from alhena.serve.decoding.buckets import bucket
from alhena.serve.decoding.memory import cache_budget
from alhena.shapes import Array, Bool, Float, Int

# Sequences of a batch, and the lengths to which their next tokens are padded.
ROWS, PIECES = 16, (8, 32, 128, 256, 512)
# Positions whose logits are computed together, and to which numbers of positions are padded.
BLOCK, POSITIONS = 32, (32, 128, 512, 2048, 8192)
# Tokens that may be read again so that a sequence joins a batch with a shorter common beginning.
MAX_REPEATED = 4 * PAGE
# Token ids of a context, and of a continuation.
Request = tuple[Sequence[int], Sequence[int]]


@partial(jax.jit, static_argnums=1, donate_argnums=2)
def _extend(
    params: model.Params, c: config.Model, cache: PagedCache, tokens: Int[Array, "B L"], at: Tokens
) -> tuple[Float[Array, "B L D"], PagedCache]:
    return model.extend(params, c, tokens, at, cache)


@partial(jax.jit, static_argnums=1)
def _scores(
    params: model.Params,
    c: config.Model,
    hidden: Float[Array, "B L D"],
    where: Int[Array, "N 2"],
    targets: Int[Array, "N K"],
) -> tuple[Float[Array, "N K"], Bool[Array, "N K"]]:
    """Log-probability of each target after a position, and whether it is the most likely token there."""

    def block(part: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = model.logits(params, c, part[0]).astype(jnp.float32)
        of_targets = jnp.take_along_axis(logits, part[1], 1)
        total = jax.nn.logsumexp(logits, 1, keepdims=True)
        return of_targets - total, of_targets >= logits.max(1, keepdims=True)

    at = hidden[where[:, 0], where[:, 1]].reshape(-1, BLOCK, hidden.shape[-1])
    nats, greedy = jax.lax.map(block, (at, targets.reshape(len(at), BLOCK, -1)))
    return nats.reshape(targets.shape), greedy.reshape(targets.shape)


@dataclass
class _Row:
    """The inputs of one sequence; of each request that has them the first position that predicts, and what is to follow there."""

    tokens: tuple[int, ...]
    requests: list[tuple[int, int, Sequence[int]]] = field(default_factory=list)

    @property
    def first(self) -> int:
        return min(start for _, start, _ in self.requests)


def _rows(requests: Sequence[Request]) -> list[_Row]:
    """Sequences with different inputs, those with the same beginning next to each other."""
    rows: dict[tuple[int, ...], _Row] = {}
    for number, (context, continuation) in enumerate(requests):
        inputs = (*context, *continuation)[:-1]
        rows.setdefault(inputs, _Row(inputs)).requests.append((number, len(context) - 1, continuation))
    return [rows[inputs] for inputs in sorted(rows)]


def _batches(rows: Sequence[_Row], size: int) -> Iterator[tuple[list[_Row], int]]:
    """Up to ``size`` sequences, and the tokens of full pages with which all of them begin and which predict nothing that is asked."""
    batch, shared = list[_Row](), 0
    for row in rows:
        common = min(shared, common_beginning(batch[0].tokens, row.tokens), row.first) // PAGE * PAGE if batch else 0
        if batch and (len(batch) == size or (shared - common) * len(batch) > MAX_REPEATED):
            yield batch, shared
            batch = []
        shared = common if batch else row.first // PAGE * PAGE
        batch.append(row)
    if batch:
        yield batch, shared


class Scorer:
    """Scores continuations with a cache of its own."""

    def __init__(self, params: model.Params, c: config.Model, rows: int = ROWS) -> None:
        self._params, self._c, self._max_rows = params, c, rows
        self._width = self._size = 0
        self._cache: PagedCache = ()
        self._held: tuple[int, ...] = ()

    def __call__(self, requests: Sequence[Request], advance: Advance = no_advance) -> list[Likelihood]:
        """The likelihood of each continuation. Every context and every continuation has at least a token."""
        nats, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        rows = _rows(requests)
        if rows:
            self._make_cache(max(len(row.tokens) for row in rows))
        for batch, shared in _batches(rows, self._size):
            self._read_beginning(batch[0].tokens[:shared])
            self._run(batch, shared, nats, greedy)
            advance(sum(len(row.requests) for row in batch))
        return [
            Likelihood(float(n), len(continuation), bool(g))
            for n, g, (_, continuation) in zip(nats, greedy, requests, strict=True)
        ]

    def forget(self) -> None:
        """Reads the next beginning anew."""
        self._held = ()

    def _make_cache(self, longest: int) -> None:
        """A cache for one beginning and a batch, unless there is one: fewer sequences where the memory demands it."""
        width = 1 << max(0, -(-longest // PAGE) - 1).bit_length()
        if width <= self._width:
            return
        of_all = sum(paged_cache.page_bytes(kind, self._c.compute_dtype) for kind in paged_cache.kinds(self._c.decoder))
        size = self._max_rows
        while size > 1 and (size + 1) * width * of_all > cache_budget():
            size //= 2
        self._width, self._size, self._held = width, size, ()
        self._cache = ()
        counts = ((size + 1) * width,) * len(paged_cache.kinds(self._c.decoder))
        self._cache = paged_cache.empty(self._c.decoder, counts, self._c.compute_dtype)

    def _read_beginning(self, tokens: tuple[int, ...]) -> None:
        """Writes the pages that a batch has in common, those that are not there from the last one."""
        start = common_beginning(self._held, tokens) // PAGE * PAGE
        for begin in range(start, len(tokens), PIECES[-1]):
            self._step([tokens], begin, min(begin + PIECES[-1], len(tokens)), 0)
        if start < len(tokens):
            self._held = tokens

    def _tables(self, rows: int, shared: int) -> Int[np.ndarray, "B T"]:
        """The first pages of the cache hold the beginning; those of sequence b, for its other positions, come after them."""
        own = np.arange(self._width)[None] + (1 + np.arange(rows)[:, None]) * self._width
        return np.where(np.arange(self._width)[None] * PAGE < shared, np.arange(self._width)[None], own).astype(
            np.int32
        )

    def _step(self, rows: Sequence[tuple[int, ...]], start: int, end: int, shared: int) -> Float[Array, "B L D"]:
        """Hidden states of the tokens of all sequences from ``start``; a beginning is one sequence, written to the first pages."""
        length, size = bucket(PIECES, end - start, "tokens"), 1 if len(rows) == 1 and not shared else self._size
        lengths = np.array([len(row) for row in rows] + [1] * (size - len(rows)))
        index = start + np.arange(length)
        tokens = np.zeros((size, length), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row[start : start + length])] = row[start : start + length]
        valid = (index[None] < np.minimum(lengths, end)[:, None]) & (np.arange(size) < len(rows))[:, None]
        positions = np.minimum(index[None], lengths[:, None] - 1).astype(np.int32)
        tables = np.arange(self._width, dtype=np.int32)[None] if size == 1 else self._tables(size, shared)
        kinds = len(paged_cache.kinds(self._c.decoder))
        tokens, *at = jax.device_put((tokens, (tables,) * kinds, positions, positions, valid))
        hidden, self._cache = _extend(self._params, self._c, self._cache, tokens, Tokens(*at))
        return hidden

    def _run(
        self, batch: Sequence[_Row], shared: int, nats: Float[np.ndarray, " R"], greedy: Bool[np.ndarray, " R"]
    ) -> None:
        """Adds the log-probabilities of a batch to those of its requests."""
        rows, longest = [row.tokens for row in batch], max(len(row.tokens) for row in batch)
        if len(rows) == 1 and not shared:
            # It is read to the pages of a beginning.
            self._held = ()
        for start in range(shared, longest, PIECES[-1]):
            end = min(start + PIECES[-1], longest)
            hidden = self._step(rows, start, end, shared)
            asked: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for i, row in enumerate(batch):
                for number, first, targets in row.requests:
                    for position in range(max(start, first), min(end, first + len(targets))):
                        asked.setdefault((i, position - start), []).append((number, targets[position - first]))
            if asked:
                self._add(hidden, asked, nats, greedy)

    def _add(
        self,
        hidden: Float[Array, "B L D"],
        asked: dict[tuple[int, int], list[tuple[int, int]]],
        nats: Float[np.ndarray, " R"],
        greedy: Bool[np.ndarray, " R"],
    ) -> None:
        count, most = bucket(POSITIONS, len(asked), "positions"), max(map(len, asked.values()))
        where, targets = np.zeros((count, 2), np.int32), np.zeros((count, 1 << (most - 1).bit_length()), np.int32)
        where[: len(asked)] = [*asked]
        for n, of_position in enumerate(asked.values()):
            targets[n, : len(of_position)] = [token for _, token in of_position]
        scores, best = jax.device_get(_scores(self._params, self._c, hidden, *jax.device_put((where, targets))))
        for n, of_position in enumerate(asked.values()):
            for k, (number, _) in enumerate(of_position):
                nats[number] += scores[n, k]
                greedy[number] &= best[n, k]
