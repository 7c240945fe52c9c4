"""The jitted programs of the engine: prompts are read a piece at a time, and sequences take one token each, step by step.

    read_chunks   up to a few hundred tokens of a prompt ─► its pages of the cache, hidden state of the last one
    insert        that hidden state ─► a free slot
    run_steps     logits ─ penalties, constraints, masks ─ sample ─ next hidden state, a few times

Shapes do not depend on the requests, so that nothing compiles while the server runs. The batch of ``run_steps`` has the slots in use,
padded to one of a few sizes (buckets.rows): each sequence is computed in the same way alone and in a crowd. With classifier-free
guidance an answer has two slots; the second has another prompt and takes the tokens of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp

from alhena.batch import Batch
from alhena.model import model
from alhena.model.attention import native, paged_cache
from alhena.model.attention.paged_cache import PagedCache, Tokens
from alhena.model.config import Model
from alhena.model.lora import Lora
from alhena.model.quantized import native as quantized
from alhena.model.transformer.layer_kinds import segments
from alhena.serve.decoding import buckets
from alhena.serve.decoding.buckets import MAX_OUTPUT_TOKENS
from alhena.serve.decoding.sampling import image_grammar
from alhena.serve.decoding.sampling.constraints import Constraints, unpacked
from alhena.serve.decoding.sampling.sampler import (
    MAX_LOGPROBS,
    SamplingArrays,
    has_penalty,
    log_probabilities,
    penalized,
    sample,
)
from alhena.shapes import Array, Bool, Float, Int, UInt32, pytree

# Tokens of a sequence between two returns to the host, at most.
MAX_STEPS = 16


@pytree
@dataclass(frozen=True)
class State:
    """State of the sequences in B slots."""

    # Of the last token.
    hidden: Float[Array, "B D"]
    # Of the next token.
    positions: Int[Array, " B"]
    grammar: image_grammar.Grammar
    # Generated tokens.
    step: Int[Array, " B"]
    done: Bool[Array, " B"]
    # Those tokens.
    history: Int[Array, "B tokens"]


@pytree
@dataclass(frozen=True)
class Options:
    """How the next tokens of the B sequences of a run are chosen, and how many there may be."""

    sampling: SamplingArrays
    guidance: Float[Array, " B"]
    # The unconditional sequence of each, and that whose tokens it takes, as indices in the run; itself without guidance.
    partner: Int[Array, " B"]
    source: Int[Array, " B"]
    # The first token, and those of a grid's rows and columns; 0: not forced.
    forced_tokens: Int[Array, "B 3"]
    max_tokens: Int[Array, " B"]
    logprobs: Bool[Array, " B"]
    # Codes of one image.
    max_codes: int = field(metadata={"static": True})


@pytree
@dataclass(frozen=True)
class Inputs:
    """What the host decides between two runs."""

    # The slot of each sequence of the run; padding has a number that no slot has.
    slots: Int[Array, " B"]
    tables: tuple[Int[Array, "B T"], ...]
    # False: padding.
    alive: Bool[Array, " B"]
    # The next token; -1: it is sampled.
    forced: Int[Array, " B"]
    # Sequences whose next token must be one of ``masks`` (constraints.unpacked).
    masked: Bool[Array, " B"]
    masks: UInt32[Array, "B words"]
    # Tokens of each sequence, at most MAX_STEPS; one where a sequence is masked.
    count: Int[Array, ""]


@pytree
@dataclass(frozen=True)
class Emitted:
    """Tokens of a run: of each sequence the first ``produced``."""

    tokens: Int[Array, "B steps"]
    produced: Int[Array, " B"]
    logprobs: Float[Array, "B steps"]
    top: Int[Array, "B steps top"]
    top_logprobs: Float[Array, "B steps top"]


def empty_emitted(c: Model, constraints: Constraints, size: int, width: int) -> Emitted:
    """Of sequences that have taken no token; at most ``width`` each."""
    top = min(MAX_LOGPROBS, c.vocabulary)
    return Emitted(
        jnp.full((size, width), constraints.pad, jnp.int32),
        jnp.zeros(size, jnp.int32),
        jnp.zeros((size, width)),
        jnp.zeros((size, width, top), jnp.int32),
        jnp.zeros((size, width, top)),
    )


def row_sizes(params: model.Params, c: Model, slots: int) -> tuple[int, ...]:
    """Numbers of sequences for which ``run_steps`` is compiled: several where no sequence's result depends on their number.

    That is so where the compiled kernels compute every matmul and the attention: otherwise the batch always has all slots.
    """
    sizes = [getattr(kind, name) for s in segments(c.decoder) for kind in s.kinds for name in ("head_dim", "hidden")]
    fits = c.decoder.width % 32 == 0 and not any(size % 32 for size in sizes)
    plain = c.decoder.experts is None and c.decoder.altup is None and not _has_lora(params)
    kernels = native.is_available() and quantized.chosen() != quantized.NONE
    return buckets.rows(slots) if fits and plain and kernels else (slots,)


def _has_lora(params: model.Params) -> bool:
    is_lora = lambda node: isinstance(node, Lora)  # noqa: E731
    return any(map(is_lora, jax.tree.leaves(params, is_leaf=is_lora)))


def append(
    emitted: Emitted, logits: Float[Array, "B V"], token: Int[Array, " B"], taken: Bool[Array, " B"], options: Options
) -> Emitted:
    """One more token of the sequences that have taken it."""
    of_token = log_probabilities(logits, token, options.logprobs & taken)
    rows, columns = jnp.arange(len(token)), jnp.where(taken, emitted.produced, emitted.tokens.shape[1])
    arrays = (emitted.tokens, emitted.logprobs, emitted.top, emitted.top_logprobs)
    written = [a.at[rows, columns].set(new, mode="drop") for a, new in zip(arrays, (token, *of_token), strict=True)]
    return Emitted(written[0], emitted.produced + taken, *written[1:])


def gathered(state: State, slots: Int[Array, " B"]) -> State:
    """The state of the sequences in some slots; padding beyond the last slot has that of the last."""
    return jax.tree.map(lambda a: a.at[slots].get(mode="clip"), state)


def scattered(state: State, slots: Int[Array, " B"], new: State) -> State:
    """The state of all slots with that of some replaced; padding is dropped."""
    return jax.tree.map(lambda a, b: a.at[slots].set(b, mode="drop"), state, new)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(c: Model, slots: int, counts: tuple[int, ...], cache_dtype: str) -> tuple[State, PagedCache]:
    """Free slots, and a cache with ``counts`` pages of each kind of layer."""
    zeros = jnp.zeros(slots, jnp.int32)
    hidden, history = jnp.zeros((slots, c.decoder.width)), jnp.zeros((slots, MAX_OUTPUT_TOKENS), jnp.int32)
    grammar = image_grammar.Grammar(zeros, zeros, zeros)
    state = State(hidden, zeros, grammar, zeros, jnp.ones(slots, bool), history)
    return state, paged_cache.empty(c.decoder, counts, cache_dtype)


@partial(jax.jit, static_argnums=1, donate_argnums=2)
def read_chunks(
    params: model.Params, c: Model, cache: PagedCache, tokens: Int[Array, "B L"], at: Tokens, media: model.Media | None
) -> tuple[Float[Array, "B D"], PagedCache]:
    """Writes the next tokens of prompts to their pages: the hidden state of the last one of each, and the cache."""
    hidden, cache = model.extend(params, c, tokens, at, cache, media)
    return hidden[jnp.arange(len(tokens)), at.valid.sum(1) - 1], cache


@partial(jax.jit, static_argnums=1)
def encode_images(params: model.Params, c: Model, batch: Batch) -> Float[Array, "B W D"]:
    """Vectors of images, one a sequence."""
    return model.image_vectors(params, c, batch)


@partial(jax.jit, static_argnums=1)
def encode_audio(params: model.Params, c: Model, batch: Batch) -> tuple[Float[Array, "B A D"], Bool[Array, "B A"]]:
    """Vectors of chunks of audio, one a sequence, and which of them have a placeholder."""
    return model.audio_vectors(params, c, batch)


@partial(jax.jit, donate_argnums=0)
def insert(state: State, slots: Int[Array, " B"], hidden: Float[Array, "B D"], positions: Int[Array, " B"]) -> State:
    """The state with sequences whose prompts have been read in slots; those with a number that no slot has are left out."""
    g, zero = state.grammar, jnp.zeros((), jnp.int32)
    fields = (g.phase, g.rows, g.remaining)
    return State(
        state.hidden.at[slots].set(hidden, mode="drop"),
        state.positions.at[slots].set(positions, mode="drop"),
        image_grammar.Grammar(*(a.at[slots].set(zero, mode="drop") for a in fields)),
        state.step.at[slots].set(zero, mode="drop"),
        state.done.at[slots].set(False, mode="drop"),
        state.history,
    )


def _guided(logits: Float[Array, "B V"], in_image: Bool[Array, " B"], options: Options) -> Float[Array, "B V"]:
    """Logits with classifier-free guidance of image codes."""
    unconditional = logits[options.partner]
    guided = unconditional + options.guidance[:, None] * (logits - unconditional)
    return jnp.where(in_image[:, None], guided, logits)


def _allowed(c: Model, constraints: Constraints, state: State, options: Options) -> Bool[Array, "#B V"]:
    """The tokens that each sequence may take next, without the masks of the host."""
    phase, forced = state.grammar.phase, options.forced_tokens
    allowed = constraints.allowed_tokens(state.grammar, c.vocabulary, options.max_codes)
    if constraints.images:
        for i, due in enumerate((state.step == 0, phase == image_grammar.ROWS, phase == image_grammar.COLUMNS)):
            only_forced = jnp.arange(c.vocabulary) == forced[:, i, None]
            allowed = jnp.where((due & (forced[:, i] > 0))[:, None], only_forced, allowed)
    return allowed


def next_tokens(
    c: Model, constraints: Constraints, logits: Float[Array, "B V"], state: State, options: Options, inputs: Inputs
) -> Int[Array, " B"]:
    """The token that each sequence takes next.

    The usual batch, without penalties, guidance and masks, reads its logits once and writes no array of the vocabulary's size.
    """
    s = options.sampling
    in_image = (state.grammar.phase == image_grammar.CODES) & (options.partner != jnp.arange(len(options.partner)))

    def plain() -> Array:
        return sample(logits, s, state.step, _allowed(c, constraints, state, options))

    def adjusted() -> Array:
        scores = penalized(_guided(logits, in_image, options), state.history, state.step, s)
        allowed = _allowed(c, constraints, state, options)
        allowed &= unpacked(inputs.masks, c.vocabulary) | ~inputs.masked[:, None]
        return sample(scores, s, state.step, allowed)

    return jax.lax.cond(jnp.any(inputs.masked | in_image | has_penalty(s)), adjusted, plain)


@pytree
@dataclass(frozen=True)
class _Run:
    """What a run carries from step to step."""

    state: State
    cache: PagedCache
    emitted: Emitted
    number: Int[Array, ""]
    # A sequence has ended.
    ended: Bool[Array, ""]


def choose(
    c: Model, constraints: Constraints, logits: Float[Array, "B V"], state: State, options: Options, inputs: Inputs
) -> tuple[Int[Array, " B"], State]:
    """The token that each sequence takes, and the state after it, in which ``hidden`` is still that of the token before."""
    token = next_tokens(c, constraints, logits, state, options, inputs)
    token = jnp.where(inputs.forced >= 0, inputs.forced, token)
    idle = state.done | ~inputs.alive
    token = jnp.where(idle, constraints.pad, token)[options.source]
    done = idle | constraints.ends(token) | (state.step + 1 >= options.max_tokens)
    history = state.history.at[jnp.arange(len(token)), state.step].set(token, mode="drop")
    grammar = constraints.advance(state.grammar, token)
    position, step = state.positions + ~done, state.step + ~idle
    return token, State(state.hidden, position, grammar, step, state.done | done, history)


def _step(
    params: model.Params, c: Model, constraints: Constraints, run: _Run, options: Options, inputs: Inputs
) -> _Run:
    """One more token of each sequence."""
    state, emitted = run.state, run.emitted
    logits = model.logits(params, c, state.hidden)
    forced = jnp.where(run.number == 0, inputs.forced, -1)
    token, next_state = choose(c, constraints, logits, state, options, replace(inputs, forced=forced))
    idle = state.done | ~inputs.alive
    emitted = append(emitted, logits, token, ~idle, options)
    at = Tokens(inputs.tables, state.positions[:, None], state.positions[:, None], ~(next_state.done | idle)[:, None])
    hidden, cache = model.extend(params, c, token[:, None], at, run.cache)
    ended = run.ended | jnp.any(next_state.done & ~idle)
    return _Run(replace(next_state, hidden=hidden[:, 0]), cache, emitted, run.number + 1, ended)


@partial(jax.jit, static_argnums=(1, 2), donate_argnums=3)
def run_steps(
    params: model.Params,
    c: Model,
    constraints: Constraints,
    slots: tuple[State, PagedCache],
    options: Options,
    inputs: Inputs,
) -> tuple[State, PagedCache, Emitted]:
    """Up to ``inputs.count`` tokens of each sequence, fewer once one of them has ended."""
    all_slots, cache = slots
    state = gathered(all_slots, inputs.slots)
    emitted = empty_emitted(c, constraints, len(state.done), MAX_STEPS)
    run = _Run(state, cache, emitted, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    run = jax.lax.while_loop(
        lambda r: (r.number < inputs.count) & ~r.ended,
        lambda r: _step(params, c, constraints, r, options, inputs),
        run,
    )
    return scattered(all_slots, inputs.slots, run.state), run.cache, run.emitted
