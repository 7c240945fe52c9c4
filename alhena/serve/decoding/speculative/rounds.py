"""Speculative decoding: a small model proposes tokens, and the target computes all of them in one pass over its weights.

    round    token t ─► draft: d1 ─► d2 ─► … dk ─► target reads t d1 … dk at once ─► takes d1, d2, … as long as it would choose them

The target chooses each token as it does without a draft: from its own logits, with the settings of the answer and the Gumbel noise of
the seed and the step (alhena/serve/decoding/sampling/sampler.py). A proposal is accepted when it is that token. So the answer is the one without
a draft, token for token, at every temperature, and its distribution is unchanged, whatever is proposed.

The draft chooses with the same noise. Where it gives tokens the probabilities q and the target p, both choose the same token with
probability of at least (1 - D) / (1 + D), D being half the sum of \\|p - q\\| (Daliri, Musco & Suresh 2024). Rejection sampling
(Leviathan et al. 2023, Chen et al. 2023) accepts with 1 - D, but then an answer depends on what was proposed, and so on its companions.

Rejected tokens leave keys and values at positions that no token attends to before they are overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from alhena.model import model
from alhena.model.attention.paged_cache import PagedCache, Tokens
from alhena.model.config import Model
from alhena.serve.decoding.sampling.constraints import Constraints
from alhena.serve.decoding.slots import (
    MAX_STEPS,
    Emitted,
    Inputs,
    Options,
    State,
    append,
    choose,
    empty_emitted,
    gathered,
    scattered,
)
from alhena.shapes import Array, Bool, Float, Int, pytree


@dataclass(frozen=True)
class Setting:
    """What the program is compiled for."""

    target: Model
    # None: proposals are looked up in the prompt and the answer (look_up).
    draft: Model | None
    constraints: Constraints
    # Tokens that the draft proposes in a round.
    tokens: int

    @property
    def width(self) -> int:
        """Tokens of a sequence between two returns to the host, at most."""
        return MAX_STEPS + self.tokens


@pytree
@dataclass(frozen=True)
class DraftInputs:
    """What the host decides between two runs, beside the inputs of steps without a draft."""

    # Of the draft's own cache; none without a model that drafts.
    tables: tuple[Int[Array, "B T"], ...]
    # The end of each prompt, behind padding of -1; empty with a model that drafts.
    prompts: Int[Array, "B P"]
    # The last token that the target has read.
    last: Int[Array, " B"]
    # Sequences for which the draft proposes tokens; it has read all their tokens, or all but the last one.
    drafting: Bool[Array, " B"]
    # Tokens of each sequence until the host must look at them.
    limits: Int[Array, " B"]


@pytree
@dataclass(frozen=True)
class Slots:
    """What a run changes: the state of the sequences, and both caches."""

    state: State
    cache: PagedCache
    draft_cache: PagedCache


@pytree
@dataclass(frozen=True)
class Rounds:
    """The result of a run: tokens, and how many were proposed and accepted of each sequence."""

    emitted: Emitted
    proposed: Int[Array, " B"]
    accepted: Int[Array, " B"]


@pytree
@dataclass(frozen=True)
class _Run:
    """What a run carries from round to round; ``logits`` and ``last`` are of the last token that the target has read."""

    slots: Slots
    logits: Float[Array, "B V"]
    last: Int[Array, " B"]
    rounds: Rounds
    number: Int[Array, ""]
    # A sequence has ended.
    ended: Bool[Array, ""]


@pytree
@dataclass(frozen=True)
class _Verified:
    """What the verification of proposed tokens carries from token to token."""

    # History beyond the taken tokens has no meaning.
    state: State
    emitted: Emitted
    matches: Bool[Array, " B"]
    accepted: Int[Array, " B"]
    number: Int[Array, ""]


@dataclass(frozen=True)
class _Program:
    """What does not change in a run."""

    # Of the target and of the draft.
    params: tuple[model.Params, model.Params | None]
    setting: Setting
    options: Options
    inputs: Inputs
    draft: DraftInputs

    def unforced(self) -> Inputs:
        """The inputs for tokens after the first: a sequence with a forced token or a mask takes no other one."""
        i = self.inputs
        return replace(i, forced=jnp.full_like(i.forced, -1), masked=jnp.zeros_like(i.masked))


def _read_tokens(
    params: model.Params, c: Model, tokens: Int[Array, "B L"], at: Tokens, cache: PagedCache
) -> tuple[Float[Array, "B L D"], PagedCache]:
    """Hidden states of the next tokens, and the cache with them.

    Each token is a sequence of its own, in the same pages: in every layer all are written before one attends, and each is computed as
    it is in a step of one token, so that where no row of a matmul depends on the others (alhena/model/attention/native.py) it has the same bits.
    """
    B, L = tokens.shape
    positions, limits, valid = (a.reshape(B * L, 1) for a in (at.positions, at.limits, at.valid))
    tables = tuple(jnp.repeat(table, L, 0) for table in at.tables)
    hidden, cache = model.extend(params, c, tokens.reshape(B * L, 1), Tokens(tables, positions, limits, valid), cache)
    return hidden.reshape(B, L, -1), cache


def _logits(params: model.Params, c: Model, hidden: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
    return model.logits(params, c, hidden.reshape(-1, hidden.shape[-1])).reshape(*hidden.shape[:2], -1)


def _read_draft(
    p: _Program, tokens: Int[Array, "B L"], first: Int[Array, " B"], valid: Bool[Array, " B"], cache: PagedCache
) -> tuple[Float[Array, "B V"], PagedCache]:
    """Logits of the draft after tokens at positions from ``first`` on."""
    params, c, size = p.params[1], p.setting.draft, p.setting.target.vocabulary
    assert params is not None and c is not None
    positions = jnp.maximum(first[:, None] + jnp.arange(tokens.shape[1]), 0)
    at = Tokens(p.draft.tables, positions, positions, jnp.broadcast_to(valid[:, None], tokens.shape))
    hidden, cache = _read_tokens(params, c, tokens, at, cache)
    logits = model.logits(params, c, hidden[:, -1])[:, :size]
    # Ids that no token has, in a larger embedding.
    return jnp.pad(logits, ((0, 0), (0, size - logits.shape[1])), constant_values=-jnp.inf), cache


def _propose(
    p: _Program, tokens: Int[Array, "B 2"], room: Int[Array, " B"], state: State, cache: PagedCache
) -> tuple[Int[Array, "B k"], PagedCache]:
    """What the draft takes for the next tokens after the last two, and its cache with all of them but the last.

    It reads two: after a round of which all was accepted it has not read the first of them.
    """
    s, inputs = p.setting, p.unforced()
    options = replace(p.options, logprobs=jnp.zeros_like(p.options.logprobs))
    reads, position = p.draft.drafting & ~state.done, state.positions - 1

    def choose_next(
        i: Int[Array, ""], proposed: Array, logits: Float[Array, "B V"], state: State
    ) -> tuple[Array, State]:
        token, state = choose(s.target, s.constraints, logits, state, options, inputs)
        return proposed.at[:, i].set(token), state

    def one(i: Int[Array, ""], carry: tuple[Array, State, PagedCache]) -> tuple[Array, State, PagedCache]:
        proposed, state, cache = carry
        logits, cache = _read_draft(p, proposed[:, i - 1, None], position + i, reads & (i < room), cache)
        return *choose_next(i, proposed, logits, state), cache

    logits, cache = _read_draft(p, tokens, position - 1, reads, cache)
    start = choose_next(jnp.zeros((), jnp.int32), jnp.zeros((len(room), s.tokens), jnp.int32), logits, state)
    proposed, _, cache = jax.lax.fori_loop(1, jnp.max(room), one, (*start, cache))
    return proposed, cache


def look_up(
    prompts: Int[Array, "B P"], history: Int[Array, "B H"], step: Int[Array, " B"], count: int
) -> tuple[Int[Array, "B k"], Int[Array, " B"]]:
    """What followed the last place with the same two or, better, three last tokens; and how many tokens that are (Saxena 2023).

    ``history`` has the ``step`` tokens of each answer.

    >>> look_up(jnp.array([[-1, 5, 6, 7, 8]]), jnp.array([[9, 5, 6, 0]]), jnp.array([3]), 3)
    (Array([[7, 8, 9]], dtype=int32), Array([3], dtype=int32))
    """
    text, last = jnp.concatenate([prompts, history], 1), prompts.shape[1] + step - 1
    rows, index, size = jnp.arange(len(step))[:, None], jnp.arange(text.shape[1]), text.shape[1]
    matches, score = jnp.ones(text.shape, bool), jnp.zeros(text.shape, jnp.int32)
    for back in range(3):
        matches &= jnp.roll(text, back, 1) == text[rows, last[:, None] - back]
        score += matches
    is_place = (score >= 2) & (index >= 2) & (index < last[:, None])
    best = jnp.where(is_place, score * size + index, -1).max(1)
    start = best % size + 1
    proposed = text[rows, jnp.minimum(start[:, None] + jnp.arange(count), size - 1)]
    return proposed, jnp.where(best >= 0, jnp.clip(last + 1 - start, 0, count), 0)


def _accept(
    p: _Program, proposed: Int[Array, "B k"], logits: Float[Array, "B k+1 V"], room: Int[Array, " B"], start: _Verified
) -> _Verified:
    """Takes proposed tokens as long as the target chooses them."""
    s, inputs = p.setting, p.unforced()

    def one(v: _Verified) -> _Verified:
        token, state = choose(s.target, s.constraints, logits[:, v.number], v.state, p.options, inputs)
        matches = v.matches & (token == proposed[:, v.number]) & (v.number < room)
        emitted = append(v.emitted, logits[:, v.number], token, matches, p.options)
        old = replace(v.state, history=state.history)
        state = jax.tree.map(partial(_where, matches), state, old)
        return _Verified(state, emitted, matches & ~state.done, v.accepted + matches, v.number + 1)

    return jax.lax.while_loop(lambda v: jnp.any(v.matches) & (v.number < s.tokens), one, start)


def _where(mask: Bool[Array, " B"], a: Array, b: Array) -> Array:
    return jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def _verify(
    p: _Program, tokens: Int[Array, "B L"], first: Int[Array, " B"], last: Int[Array, " B"], cache: PagedCache
) -> tuple[Float[Array, "B L D"], Float[Array, "B L V"], PagedCache]:
    """Hidden states and logits of the target after each token, of each sequence the tokens up to ``last``.

    Where nothing was found to propose, only the first are read.
    """
    params, c = p.params[0], p.setting.target
    index = jnp.arange(tokens.shape[1])
    positions, valid = first[:, None] + index, index <= last[:, None]

    def read(count: int, carry: tuple[Array, Array, PagedCache]) -> tuple[Array, Array, PagedCache]:
        hidden, logits, cache = carry
        part = slice(count)
        at = Tokens(p.inputs.tables, positions[:, part], positions[:, part], valid[:, part])
        new, cache = _read_tokens(params, c, tokens[:, part], at, cache)
        return hidden.at[:, part].set(new), logits.at[:, part].set(_logits(params, c, new)), cache

    B, L = tokens.shape
    start = jnp.zeros((B, L, c.decoder.width)), jnp.zeros((B, L, c.vocabulary)), cache
    if p.setting.draft is not None:
        return read(L, start)
    # Loops of no or one round: a condition would copy the cache.
    has_proposals = jnp.any(last > 0).astype(jnp.int32)
    after_first = jax.lax.fori_loop(0, 1 - has_proposals, lambda _, carry: read(1, carry), start)
    return jax.lax.fori_loop(0, has_proposals, lambda _, carry: read(L, carry), after_first)


def _round(p: _Program, run: _Run) -> _Run:
    """One token of each sequence, and those of the draft that the target chooses too."""
    s, before, rounds = p.setting, run.slots.state, run.rounds
    idle = before.done | ~p.inputs.alive
    # 1. The next token, as without a draft.
    first = replace(p.inputs, forced=jnp.where(run.number == 0, p.inputs.forced, -1))
    token, state = choose(s.target, s.constraints, run.logits, before, p.options, first)
    emitted = append(rounds.emitted, run.logits, token, ~idle, p.options)
    # 2. What the draft proposes after it.
    left = jnp.minimum(p.draft.limits - emitted.produced, p.options.max_tokens - state.step)
    room = jnp.where(p.draft.drafting & ~state.done & ~idle, jnp.clip(left, 0, s.tokens), 0)
    if s.draft is None:
        proposed, found = look_up(p.draft.prompts, state.history, state.step, s.tokens)
        room, draft_cache = jnp.minimum(room, found), run.slots.draft_cache
    else:
        proposed, draft_cache = _propose(p, jnp.stack([run.last, token], 1), room, state, run.slots.draft_cache)
    # 3. The target reads all of them.
    tokens = jnp.concatenate([token[:, None], proposed], 1)
    reads = jnp.where(state.done | idle, -1, room)
    hidden, logits, cache = _verify(p, tokens, before.positions, reads, run.slots.cache)
    # 4. It takes those that it would choose.
    zero = jnp.zeros_like(room)
    v = _accept(p, proposed, logits, room, _Verified(state, emitted, room > 0, zero, jnp.zeros((), jnp.int32)))
    rows = jnp.arange(len(room)), v.accepted
    slots = Slots(replace(v.state, hidden=hidden[rows]), cache, draft_cache)
    rounds = Rounds(v.emitted, rounds.proposed + room, rounds.accepted + v.accepted)
    ended = run.ended | jnp.any(v.state.done & ~idle)
    return _Run(slots, logits[rows], tokens[rows], rounds, run.number + 1, ended)


@partial(jax.jit, static_argnums=1, donate_argnums=2)
def run_rounds(
    params: tuple[model.Params, model.Params | None],
    s: Setting,
    slots: Slots,
    options: Options,
    inputs: Inputs,
    draft: DraftInputs,
) -> tuple[Slots, Rounds]:
    """Up to ``inputs.count`` rounds, fewer once a sequence has ended or has as many tokens as its limit.

    ``params`` are those of the target and of the draft.
    """
    p, state = _Program(params, s, options, inputs, draft), gathered(slots.state, inputs.slots)
    zero = jnp.zeros(len(state.done), jnp.int32)
    rounds = Rounds(empty_emitted(s.target, s.constraints, len(zero), s.width), zero, zero)
    logits = model.logits(params[0], s.target, state.hidden)
    run = _Run(replace(slots, state=state), logits, draft.last, rounds, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def continues(r: _Run) -> Bool[Array, ""]:
        is_limited = jnp.any(inputs.alive & (r.rounds.emitted.produced >= draft.limits))
        return (r.number < inputs.count) & ~r.ended & ~is_limited

    run = jax.lax.while_loop(continues, partial(_round, p), run)
    return replace(run.slots, state=scattered(slots.state, inputs.slots, run.slots.state)), run.rounds
