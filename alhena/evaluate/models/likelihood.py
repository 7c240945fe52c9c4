"""Log-likelihoods of token continuations in full batches; what several requests have in common is computed once.

    sequence 1   │ shots, read once │ question 1 │ answer A, then B, C, D in its place
    sequence 2   │  pages 0 1 2 3   │ question 2 │ answer A, then B, …
    sequence 3   │                  │ question 3 │ …

The pages of the beginning are in the table of every sequence; the rest of each has pages of its own. The answers to a question
follow one after the other at the same positions of these pages. An answer of one token needs no pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

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
# Of each token of a continuation: its log-probability, and whether it is the most likely one.
_Scored = tuple[Float[np.ndarray, " _"], Bool[np.ndarray, " _"]]


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
    """A context, and what may follow it: of all tokens but the last of each continuation, the requests that have these."""

    context: tuple[int, ...]
    continuations: dict[tuple[int, ...], list[tuple[int, Sequence[int]]]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        return len(self.context) + max(map(len, self.continuations))

    def has_room(self, inputs: tuple[int, ...]) -> bool:
        """Whether to continue its context costs less than to read it again in another sequence of the batch."""
        others = self.continuations.keys() - {inputs}
        return not others or sum(map(len, others)) + len(inputs) <= len(self.context)


def _rows(requests: Sequence[Request]) -> list[_Row]:
    """Sequences of a context and its continuations: those with the same beginning, then those of about a length, beside each other."""
    rows: dict[tuple[int, ...], list[_Row]] = {}
    for number, (context, continuation) in enumerate(requests):
        inputs = tuple(continuation[:-1])
        of_context = rows.setdefault(tuple(context), [_Row(tuple(context))])
        if not of_context[-1].has_room(inputs):
            of_context.append(_Row(tuple(context)))
        of_context[-1].continuations.setdefault(inputs, []).append((number, continuation))
    return [row for context in sorted(rows) for row in sorted(rows[context], key=lambda row: row.longest)]


def _batches(rows: Sequence[_Row], size: int) -> Iterator[tuple[list[_Row], int]]:
    """Up to ``size`` sequences, and the tokens of full pages with which all of them begin, the last token of a context excepted."""
    batch, shared = list[_Row](), 0
    for row in rows:
        first = len(row.context) - 1
        common = min(shared, common_beginning(batch[0].context, row.context), first) // PAGE * PAGE if batch else 0
        if batch and (len(batch) == size or (shared - common) * len(batch) > MAX_REPEATED):
            yield batch, shared
            batch = []
        shared = common if batch else first // PAGE * PAGE
        batch.append(row)
    if batch:
        yield batch, shared


class _Target(NamedTuple):
    """A token that is to follow: its request, where it is in the continuation, its id."""

    request: int
    at: int
    token: int


@dataclass(frozen=True)
class _Segment:
    """The next tokens of each sequence of a batch, the positions where they start, and the targets after some of them.

    The targets are listed by sequence and index of the token before them.
    """

    tokens: list[tuple[int, ...]]
    starts: list[int]
    targets: dict[tuple[int, int], list[_Target]]

    def parts(self, size: int) -> Iterator[_Segment]:
        """Its tokens, ``size`` at a time."""
        for begin in range(0, max(map(len, self.tokens)), size):
            yield _Segment(
                [tokens[begin : begin + size] for tokens in self.tokens],
                [start + begin for start in self.starts],
                {(i, at - begin): found for (i, at), found in self.targets.items() if begin <= at < begin + size},
            )


def _segments(batch: Sequence[_Row], shared: int) -> Iterator[_Segment]:
    """The contexts from a position on, then the first continuation of each, the second, …"""
    targets = {
        (i, len(row.context) - 1 - shared): [
            _Target(n, 0, tokens[0]) for asked in row.continuations.values() for n, tokens in asked
        ]
        for i, row in enumerate(batch)
    }
    yield _Segment([row.context[shared:] for row in batch], [shared] * len(batch), targets)
    continuations = [[inputs for inputs in row.continuations if inputs] for row in batch]
    for number in range(max(map(len, continuations))):
        inputs = [of_row[number] if number < len(of_row) else () for of_row in continuations]
        targets = {
            (i, at): [_Target(n, at + 1, tokens[at + 1]) for n, tokens in row.continuations[inputs[i]]]
            for i, row in enumerate(batch)
            for at in range(len(inputs[i]))
        }
        yield _Segment(inputs, [len(row.context) for row in batch], targets)


class Scorer:
    """Scores continuations with a cache of its own."""

    def __init__(self, params: model.Params, c: config.Model, rows: int = ROWS) -> None:
        self._params, self._c, self._max_rows = params, c, rows
        self._width = self._size = 0
        self._cache: PagedCache = ()
        self._held: tuple[int, ...] = ()

    def __call__(self, requests: Sequence[Request], advance: Advance = no_advance) -> list[Likelihood]:
        """The likelihood of each continuation. Every context and every continuation has at least a token."""
        scored = self._scored(requests, advance)
        return [Likelihood(float(nats.sum()), len(nats), bool(greedy.all())) for nats, greedy in scored]

    def token_nats(self, request: Request) -> Float[np.ndarray, " tokens"]:
        """The log-probability of each token of a continuation."""
        return self._scored([request], no_advance)[0][0]

    def _scored(self, requests: Sequence[Request], advance: Advance) -> list[_Scored]:
        scored = [(np.zeros(len(continuation)), np.zeros(len(continuation), bool)) for _, continuation in requests]
        rows = _rows(requests)
        if rows:
            self._make_cache(max(row.longest for row in rows))
        for batch, shared in _batches(rows, self._size):
            self._read_beginning(batch[0].context[:shared])
            for segment in _segments(batch, shared):
                for part in segment.parts(PIECES[-1]):
                    hidden = self._step(part.tokens, part.starts, shared)
                    if part.targets:
                        self._add(hidden, part.targets, scored)
            advance(sum(len(asked) for row in batch for asked in row.continuations.values()))
        return scored

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
        if start < len(tokens):
            for part in _Segment([tokens[start:]], [start], {}).parts(PIECES[-1]):
                self._step(part.tokens, part.starts, self._width * PAGE)
            self._held = tokens

    def _tables(self, rows: int, shared: int) -> Int[np.ndarray, "B T"]:
        """The first pages of the cache hold the beginning; those of sequence b, for its other positions, come after them."""
        own = np.arange(self._width)[None] + (1 + np.arange(rows)[:, None]) * self._width
        return np.where(np.arange(self._width)[None] * PAGE < shared, np.arange(self._width)[None], own).astype(
            np.int32
        )

    def _step(self, rows: Sequence[tuple[int, ...]], starts: Sequence[int], shared: int) -> Float[Array, "B L D"]:
        """Hidden states of the next tokens of all sequences, whose pages for the first ``shared`` tokens are those of the beginning."""
        length, size = bucket(PIECES, max(map(len, rows)), "tokens"), 1 if len(rows) == 1 else self._size
        tokens, positions = np.zeros((2, size, length), np.int32)
        valid = np.zeros((size, length), bool)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            tokens[i, : len(row)], valid[i, : len(row)] = row, True
            # Padding has the position of the last token.
            positions[i] = start + np.minimum(np.arange(length), len(row) - 1) if row else 0
        tables = (self._tables(size, shared),) * len(paged_cache.kinds(self._c.decoder))
        ids, *at = jax.device_put((tokens, tables, positions, positions, valid))
        hidden, self._cache = _extend(self._params, self._c, self._cache, ids, Tokens(*at))
        return hidden

    def _add(
        self,
        hidden: Float[Array, "B L D"],
        asked: Mapping[tuple[int, int], Sequence[_Target]],
        scored: Sequence[_Scored],
    ) -> None:
        """Sets the log-probabilities of the targets after some positions."""
        count, most = bucket(POSITIONS, len(asked), "positions"), max(map(len, asked.values()))
        where, targets = np.zeros((count, 2), np.int32), np.zeros((count, 1 << (most - 1).bit_length()), np.int32)
        where[: len(asked)] = [*asked]
        for n, of_position in enumerate(asked.values()):
            targets[n, : len(of_position)] = [target.token for target in of_position]
        scores, best = jax.device_get(_scores(self._params, self._c, hidden, *jax.device_put((where, targets))))
        for n, of_position in enumerate(asked.values()):
            for k, target in enumerate(of_position):
                nats, greedy = scored[target.request]
                nats[target.at], greedy[target.at] = scores[n, k], best[n, k]
