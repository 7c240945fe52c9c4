"""Sampling of the next token: temperature, top-k and top-p, with settings and random numbers of each sequence's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from alhena.model import sharding
from alhena.model.attention import native
from alhena.shapes import Array, Bool, Float, Int, pytree

# Larger vocabularies are not sorted: 262,144 logits take 300 ms, the largest thousand of them one.
MAX_SORTED = 2**14
# Tokens that are ranked in a large vocabulary, unless top_k or top_p reach beyond them.
CANDIDATES = 1024
# Classifier-free guidance where an image is requested.
IMAGE_GUIDANCE = 3.0
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class OutputFormat:
    """What an answer must be, enforced token by token (alhena/serve/structured/matcher.py).

    ``json_schema`` is a JSON Schema as JSON text; "{}" is any JSON. ``choices`` are the texts of which it is one. ``calls`` names the
    declared functions of which at least one must be called (mode ANY); with ``text_allowed`` the answer may also be text (mode VALIDATED).
    """

    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    text_allowed: bool = False


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    ``guidance`` is the strength of classifier-free guidance of image codes; 1 is off. With ``image_first`` the answer begins with
    an image. ``aspect`` is width / height of its images; None leaves it to the model.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    guidance: float = 1.0
    image_first: bool = False
    aspect: float | None = None
    stop: tuple[str, ...] = ()
    # Subtracted from the logit of a token that the answer has, and once more for each time that it has it.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # Log-probabilities of the answer's tokens: None: none; n: of the chosen tokens and of the n most likely.
    logprobs: int | None = None
    # Tokens of thoughts, after which the thought is closed; None: no limit.
    thinking_budget: int | None = None
    # What the answer must be: JSON of a schema, or calls of functions.
    output: OutputFormat | None = None

    def __post_init__(self) -> None:
        bounds = {
            "temperature": 0 <= self.temperature <= 5,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "max_tokens": 1 <= self.max_tokens <= 1 << 20,
            "guidance": 0 <= self.guidance <= 20,
            "presence_penalty": -2 <= self.presence_penalty <= 2,
            "frequency_penalty": -2 <= self.frequency_penalty <= 2,
            "logprobs": self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "thinking_budget": self.thinking_budget is None or self.thinking_budget >= 0,
            "aspect": self.aspect is None or 1 / 8 <= self.aspect <= 8,
        }
        for name, good in bounds.items():
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of its range")


def sequences_per_answer(sampling: Sampling) -> int:
    """Sequences decoded for one answer: with guidance, a second one without the prompt."""
    return 1 if sampling.guidance == 1 else 2


@pytree
@dataclass(frozen=True)
class SamplingArrays:
    """The numbers of :class:`Sampling`, stacked over a batch."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    seed: Int[Array, " B"]
    presence_penalty: Float[Array, " B"]
    frequency_penalty: Float[Array, " B"]


def stack(samplings: list[Sampling]) -> SamplingArrays:
    """The settings of B sequences as arrays."""
    kinds = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "seed": np.int32}
    kinds |= {"presence_penalty": np.float32, "frequency_penalty": np.float32}
    columns = {name: [getattr(s, name) for s in samplings] for name in kinds}
    columns["seed"] = [seed % 2**31 for seed in columns["seed"]]
    # Copied by one call: an array made by jax.numpy runs a program for each conversion.
    return SamplingArrays(**jax.device_put({name: np.array(columns[name], kinds[name]) for name in kinds}))


def has_penalty(s: SamplingArrays) -> Bool[Array, " B"]:
    """Which sequences have a penalty."""
    return (s.presence_penalty != 0) | (s.frequency_penalty != 0)


def penalized(
    logits: Float[Array, "B V"], history: Int[Array, "B tokens"], step: Int[Array, " B"], s: SamplingArrays
) -> Float[Array, "B V"]:
    """Logits less the penalties of the tokens that each answer has: the first ``step`` of its history."""
    B, tokens = history.shape
    generated = jnp.arange(tokens) < step[:, None]
    counts = jnp.zeros_like(logits).at[jnp.arange(B)[:, None], history].add(generated, mode="drop")
    return logits - s.presence_penalty[:, None] * (counts > 0) - s.frequency_penalty[:, None] * counts


def log_probabilities(
    logits: Float[Array, "B V"], tokens: Int[Array, " B"], wanted: Bool[Array, " B"]
) -> tuple[Float[Array, " B"], Int[Array, "B top"], Float[Array, "B top"]]:
    """Of a token each, and of the MAX_LOGPROBS most likely ones; zeros where no sequence wants them."""
    top = min(MAX_LOGPROBS, logits.shape[1])

    def one(row: Array, token: Array) -> tuple[Array, ...]:
        normalized = jax.nn.log_softmax(row)
        best, ids = jax.lax.top_k(normalized, top)
        return normalized[token], ids.astype(jnp.int32), best

    def some() -> tuple[Array, ...]:
        return _each(one, logits, tokens)

    size = (len(tokens), top)
    none = lambda: (jnp.zeros(len(tokens)), jnp.zeros(size, jnp.int32), jnp.zeros(size))  # noqa: E731
    return jax.lax.cond(jnp.any(wanted), some, none)


def _each(one: Callable[..., Any], *arrays: Any) -> Any:
    """A function of every sequence, one after the other: XLA's order of a sum depends on how many there are."""
    take = lambda i: jax.tree.map(lambda a: a[i], arrays)  # noqa: E731
    size = jax.tree.leaves(arrays)[0].shape[0]
    shapes = jax.eval_shape(lambda: one(*take(0)))
    out = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    def step(i: Array, out: Any) -> Any:
        return jax.tree.map(lambda a, new: a.at[i].set(new), out, one(*take(i)))

    # A loop over one sequence would be compiled without the loop, and fused in another way: its end is not known to the compiler.
    return jax.lax.fori_loop(0, jax.lax.optimization_barrier(jnp.int32(size)), step, out)


def _random_key(s: SamplingArrays, step: Int[Array, ""]) -> Array:
    return jax.random.fold_in(jax.random.key(s.seed), step)


def _noise(s: SamplingArrays, step: Int[Array, ""], ids: Int[Array, " N"]) -> Float[Array, " N"]:
    """Gumbel noise of tokens, which depends on the seed, the step and the id of each, not on its rank.

    So two models that sample with one seed mostly choose the same token (alhena/serve/decoding/speculative/rounds.py).
    """
    ids, key = ids.astype(jnp.uint32), jax.random.key_data(_random_key(s, step))
    high, low = jnp.split(threefry_2x32(key, jnp.concatenate([jnp.zeros_like(ids), ids])), 2)
    # 23 bits: neither 0 nor 1.
    uniform = ((high ^ low) >> 9).astype(jnp.float32) * 2**-23 + 2**-24
    return -jnp.log(-jnp.log(uniform))


def _scaled(logits: Float[Array, " V"], s: SamplingArrays) -> Float[Array, " V"]:
    return logits / jnp.maximum(s.temperature, 1e-4)


def _sample_sorted(
    logits: Float[Array, " V"], allowed: Bool[Array, " V"], s: SamplingArrays, step: Int[Array, ""]
) -> Int[Array, ""]:
    """Keeps the ``top_k`` most likely tokens, then the fewest of them that reach ``top_p``, then samples."""
    scaled = _scaled(jnp.where(allowed, logits, -jnp.inf), s)
    order = jnp.argsort(-scaled)
    ranked = scaled[order]
    kept = jnp.arange(len(ranked)) < jnp.where(s.top_k > 0, s.top_k, len(ranked))
    probabilities = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf))
    # The token that crosses the threshold is kept.
    kept &= jnp.cumsum(probabilities) - probabilities < s.top_p
    return order[jnp.argmax(jnp.where(kept, ranked + _noise(s, step, order), -jnp.inf))].astype(jnp.int32)


def _candidates(
    logits: Float[Array, "B V"], allowed: Bool[Array, "#B V"]
) -> tuple[Float[Array, "B candidates"], Int[Array, "B candidates"]]:
    """The most likely CANDIDATES of each sequence, in order, and their ids."""
    if _has_kernel():
        return native.top(logits, allowed, CANDIDATES)
    return _each(lambda row: jax.lax.top_k(row, CANDIDATES), jnp.where(allowed, logits, -jnp.inf))


def _normalizers(logits: Float[Array, "B V"], allowed: Bool[Array, "#B V"], s: SamplingArrays) -> Float[Array, " B"]:
    """The logarithm of the sum of the exponentials of all scaled logits; 0 where no sequence needs it."""

    def one(row: Array, mask: Array, s: SamplingArrays) -> Array:
        return jax.nn.logsumexp(_scaled(jnp.where(mask, row, -jnp.inf), s))

    some = lambda: _each_row(one, logits, allowed, s)  # noqa: E731
    return jax.lax.cond(jnp.any((s.top_k == 0) & (s.temperature > 0)), some, lambda: jnp.zeros(len(logits)))


def _sample_candidates(
    logits: Float[Array, " candidates"],
    ids: Int[Array, " candidates"],
    normalizer: Float[Array, ""],
    s: SamplingArrays,
    step: Int[Array, ""],
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """:func:`_sample_sorted` from the most likely CANDIDATES alone; and whether no other token could be kept.

    Both give the same token.
    """
    ranked = _scaled(logits, s)
    kept = jnp.arange(CANDIDATES) < jnp.where(s.top_k > 0, s.top_k, CANDIDATES)
    normalizer = jnp.where(s.top_k > 0, jax.nn.logsumexp(jnp.where(kept, ranked, -jnp.inf)), normalizer)
    probabilities = jnp.where(kept, jnp.exp(ranked - normalizer), 0)
    total = jnp.cumsum(probabilities)
    kept &= total - probabilities < s.top_p
    complete = jnp.where(s.top_k > 0, s.top_k <= CANDIDATES, total[-1] >= s.top_p)
    token = ids[jnp.argmax(jnp.where(kept, ranked + _noise(s, step, ids), -jnp.inf))]
    return token.astype(jnp.int32), complete


def _sample_all(
    logits: Float[Array, " V"], allowed: Bool[Array, " V"], s: SamplingArrays, step: Int[Array, ""]
) -> Int[Array, ""]:
    """A sample from all tokens, without any order."""
    noisy = _scaled(logits, s) + _noise(s, step, jnp.arange(len(logits)))
    return _largest(noisy[None], allowed[None])[0]


def _sample_large(
    logits: Float[Array, "B V"], allowed: Bool[Array, "#B V"], s: SamplingArrays, step: Int[Array, " B"]
) -> Int[Array, " B"]:
    """One token of each sequence, sorting only what must be: the way of a sequence does not depend on the others."""
    normalizers = _normalizers(logits, allowed, s)
    tokens, complete = _each(_sample_candidates, *_candidates(logits, allowed), normalizers, s, step)
    unlimited = (s.top_k == 0) & (s.top_p >= 1)

    def replaced(selected: Bool[Array, " B"], one: Callable[..., Array], tokens: Int[Array, " B"]) -> Int[Array, " B"]:
        other = lambda: jnp.where(selected, _each_row(one, logits, allowed, s, step), tokens)  # noqa: E731
        return jax.lax.cond(jnp.any(selected & (s.temperature > 0)), other, lambda: tokens)

    return replaced(~unlimited & ~complete, _sample_sorted, replaced(unlimited, _sample_all, tokens))


def _each_row(one: Callable[..., Any], logits: Float[Array, "B V"], allowed: Bool[Array, "#B V"], *arrays: Any) -> Any:
    """:func:`_each` of logits and what goes with them."""
    return _each(one, logits, jnp.broadcast_to(allowed, logits.shape), *arrays)


def _has_kernel() -> bool:
    return native.is_available() and not sharding.has_mesh()


def _largest(logits: Float[Array, "B V"], allowed: Bool[Array, "#B V"]) -> Int[Array, " B"]:
    """The first of the most likely tokens. XLA's CPU backend needs 20 times as long for an argmax as for this without the kernel."""
    if _has_kernel():
        return native.largest(logits, allowed)
    scores, ids = jnp.where(allowed, logits, -jnp.inf), jnp.arange(logits.shape[1], dtype=jnp.int32)
    is_largest = scores == scores.max(-1, keepdims=True)
    return jnp.where(is_largest, ids, logits.shape[1] - 1).min(-1)


def sample(
    logits: Float[Array, "B V"], s: SamplingArrays, step: Int[Array, " B"], allowed: Bool[Array, "#B V"] | None = None
) -> Int[Array, " B"]:
    """One token of each sequence: the ``step``-th sample of a sequence depends on its own seed, not on the rest of the batch.

    A batch that is greedy throughout is not sorted, nor are large vocabularies where a few candidates decide.
    """
    sample_batch = _sample_large if logits.shape[1] > MAX_SORTED else partial(_each_row, _sample_sorted)
    mask = jnp.ones((1, logits.shape[1]), bool) if allowed is None else allowed
    greedy = _largest(logits, mask)
    some = lambda: jnp.where(s.temperature > 0, sample_batch(logits, mask, s, step), greedy)  # noqa: E731
    return jax.lax.cond(jnp.any(s.temperature > 0), some, lambda: greedy)
