"""The jitted programs of the engine: prompts are read a piece at a time, and all slots take one token each, step by step.

    read_chunk    up to a few hundred tokens of one prompt ─► its pages of the cache, hidden state of the last one
    insert        that hidden state ─► a free slot
    run_steps     logits ─ penalties, constraints, masks ─ sample ─ next hidden state of every slot, a few times

Shapes do not depend on the requests, so that nothing compiles while the server runs. The batch of ``run_steps`` always has all slots,
free ones too: each sequence is computed in the same way alone and in a crowd. With classifier-free guidance an answer has two slots;
the second has another prompt and takes the tokens of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from alhena.batch import Batch
from alhena.model import model
from alhena.model.config import Model
from alhena.model.paged_cache import PagedCache, Tokens
from alhena.serve.decoding import image_grammar
from alhena.serve.decoding.constraints import Constraints, unpacked
from alhena.serve.decoding.sampler import MAX_LOGPROBS, SamplingArrays, log_probabilities, penalized, sample
from alhena.shapes import Array, Bool, Float, Int, UInt32, pytree

# Tokens of a slot between two returns to the host, at most.
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
    # How many times each token was generated.
    counts: Int[Array, "B V"]


@pytree
@dataclass(frozen=True)
class Options:
    """How the next tokens of B slots are chosen, and how many there may be."""

    sampling: SamplingArrays
    guidance: Float[Array, " B"]
    # The slot with the unconditional sequence, and that whose tokens a slot takes; the slot itself without guidance.
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

    tables: tuple[Int[Array, "B T"], ...]
    # Slots with a sequence.
    alive: Bool[Array, " B"]
    # The next token; -1: it is sampled.
    forced: Int[Array, " B"]
    # Slots whose next token must be one of ``masks`` (constraints.unpacked).
    masked: Bool[Array, " B"]
    masks: UInt32[Array, "B words"]
    # Tokens of each slot, at most MAX_STEPS; one where a slot is masked.
    count: Int[Array, ""]


@pytree
@dataclass(frozen=True)
class Emitted:
    """Tokens of a run: of each slot the first ``produced``."""

    tokens: Int[Array, "B steps"]
    produced: Int[Array, " B"]
    logprobs: Float[Array, "B steps"]
    top: Int[Array, "B steps top"]
    top_logprobs: Float[Array, "B steps top"]


def new_state(c: Model, slots: int) -> State:
    """Free slots; an array of its own for each field, since all are donated."""
    zeros = [jnp.zeros(slots, jnp.int32) for _ in range(5)]
    hidden, counts = jnp.zeros((slots, c.decoder.width)), jnp.zeros((slots, c.vocabulary), jnp.int32)
    return State(hidden, zeros[0], image_grammar.Grammar(*zeros[1:4]), zeros[4], jnp.ones(slots, bool), counts)


@partial(jax.jit, static_argnums=1, donate_argnums=2)
def read_chunk(
    params: model.Params, c: Model, cache: PagedCache, tokens: Int[Array, "1 L"], at: Tokens, media: model.Media | None
) -> tuple[Float[Array, " D"], PagedCache]:
    """Writes the next tokens of a prompt to its pages: the hidden state of the last one, and the cache."""
    hidden, cache = model.extend(params, c, tokens, at, cache, media)
    return hidden[0, at.valid[0].sum() - 1], cache


@partial(jax.jit, static_argnums=1)
def encode_image(params: model.Params, c: Model, batch: Batch) -> Float[Array, "W D"]:
    """Vectors of the image of a batch of one."""
    return model.image_vectors(params, c, batch)[0]


@partial(jax.jit, static_argnums=1)
def encode_audio(params: model.Params, c: Model, batch: Batch) -> tuple[Float[Array, "A D"], Bool[Array, " A"]]:
    """Vectors of the audio of a batch of one, and which of them have a placeholder."""
    vectors, valid = model.audio_vectors(params, c, batch)
    return vectors[0], valid[0]


@partial(jax.jit, donate_argnums=0)
def insert(state: State, slot: Int[Array, ""], hidden: Float[Array, " D"], position: Int[Array, ""]) -> State:
    """The state with a sequence whose prompt has been read in a slot."""
    g, zero = state.grammar, jnp.zeros((), jnp.int32)
    fields = (g.phase, g.rows, g.remaining)
    return State(
        state.hidden.at[slot].set(hidden),
        state.positions.at[slot].set(position),
        image_grammar.Grammar(*(a.at[slot].set(zero) for a in fields)),
        state.step.at[slot].set(zero),
        state.done.at[slot].set(False),
        state.counts.at[slot].set(0),
    )


def _guided(logits: Float[Array, "B V"], state: State, options: Options) -> Float[Array, "B V"]:
    """Logits with classifier-free guidance of image codes."""
    in_image = (state.grammar.phase == image_grammar.CODES) & (options.partner != jnp.arange(len(options.partner)))

    def guide() -> Array:
        unconditional = logits[options.partner]
        guided = unconditional + options.guidance[:, None] * (logits - unconditional)
        return jnp.where(in_image[:, None], guided, logits)

    return jax.lax.cond(jnp.any(in_image), guide, lambda: logits)


def _allowed(c: Model, constraints: Constraints, state: State, options: Options, inputs: Inputs) -> Bool[Array, "#B V"]:
    """The tokens that each slot may take next."""
    phase, forced = state.grammar.phase, options.forced_tokens
    allowed = constraints.allowed_tokens(state.grammar, c.vocabulary, options.max_codes)
    if constraints.images:
        for i, due in enumerate((state.step == 0, phase == image_grammar.ROWS, phase == image_grammar.COLUMNS)):
            only_forced = jnp.arange(c.vocabulary) == forced[:, i, None]
            allowed = jnp.where((due & (forced[:, i] > 0))[:, None], only_forced, allowed)

    def with_masks() -> Array:
        return allowed & (unpacked(inputs.masks, c.vocabulary) | ~inputs.masked[:, None])

    every = jnp.broadcast_to(allowed, (len(phase), c.vocabulary))
    return jax.lax.cond(jnp.any(inputs.masked), with_masks, lambda: every)


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


def _step(
    params: model.Params, c: Model, constraints: Constraints, run: _Run, options: Options, inputs: Inputs
) -> _Run:
    """One more token of each slot."""
    state, emitted = run.state, run.emitted
    logits = model.logits(params, c, state.hidden)
    scores = penalized(_guided(logits, state, options), state.counts, options.sampling)
    allowed = _allowed(c, constraints, state, options, inputs)
    token = sample(jnp.where(allowed, scores, -jnp.inf), options.sampling, state.step)
    forced = inputs.forced >= 0
    token = jnp.where(forced & (run.number == 0), inputs.forced, token)
    idle = state.done | ~inputs.alive
    token = jnp.where(idle, constraints.pad, token)[options.source]
    done = idle | constraints.ends(token) | (state.step + 1 >= options.max_tokens)
    of_token = log_probabilities(logits, token, options.logprobs)
    columns = (emitted.tokens, emitted.logprobs, emitted.top, emitted.top_logprobs)
    written = [a.at[:, run.number].set(new) for a, new in zip(columns, (token, *of_token), strict=True)]
    emitted = Emitted(written[0], emitted.produced + ~idle, *written[1:])
    at = Tokens(inputs.tables, state.positions[:, None], state.positions[:, None], ~done[:, None])
    hidden, cache = model.extend(params, c, token[:, None], at, run.cache)
    counts = state.counts.at[jnp.arange(len(token)), token].add(jnp.where(idle, 0, 1))
    grammar = constraints.advance(state.grammar, token)
    state = State(hidden[:, 0], state.positions + ~done, grammar, state.step + ~idle, state.done | done, counts)
    return _Run(state, cache, emitted, run.number + 1, run.ended | jnp.any(done & ~idle))


@partial(jax.jit, static_argnums=(1, 2), donate_argnums=3)
def run_steps(
    params: model.Params,
    c: Model,
    constraints: Constraints,
    slots: tuple[State, PagedCache],
    options: Options,
    inputs: Inputs,
) -> tuple[State, PagedCache, Emitted]:
    """Up to ``inputs.count`` tokens of each slot, fewer once one of the sequences has ended."""
    state, cache = slots
    size, top = len(state.done), min(MAX_LOGPROBS, c.vocabulary)
    emitted = Emitted(
        jnp.full((size, MAX_STEPS), constraints.pad, jnp.int32),
        jnp.zeros(size, jnp.int32),
        jnp.zeros((size, MAX_STEPS)),
        jnp.zeros((size, MAX_STEPS, top), jnp.int32),
        jnp.zeros((size, MAX_STEPS, top)),
    )
    run = _Run(state, cache, emitted, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    run = jax.lax.while_loop(
        lambda r: (r.number < inputs.count) & ~r.ended,
        lambda r: _step(params, c, constraints, r, options, inputs),
        run,
    )
    return run.state, run.cache, run.emitted
