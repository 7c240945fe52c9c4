"""Sampling of the next token: temperature, top-k and top-p, with settings and random numbers of each sequence's own."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alhena.shapes import Array, Float, Int, pytree

# Classifier-free guidance where an image is requested.
IMAGE_GUIDANCE = 3.0


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

    def __post_init__(self) -> None:
        bounds = {
            "temperature": 0 <= self.temperature <= 5,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "max_tokens": 1 <= self.max_tokens <= 1 << 20,
            "guidance": 0 <= self.guidance <= 20,
            "aspect": self.aspect is None or 1 / 8 <= self.aspect <= 8,
        }
        for name, good in bounds.items():
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of its range")


@pytree
@dataclass(frozen=True)
class SamplingArrays:
    """The numbers of :class:`Sampling`, stacked over a batch."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    seed: Int[Array, " B"]


def stack(samplings: list[Sampling]) -> SamplingArrays:
    """The settings of B sequences as arrays."""
    return SamplingArrays(
        jnp.array([s.temperature for s in samplings], jnp.float32),
        jnp.array([s.top_k for s in samplings], jnp.int32),
        jnp.array([s.top_p for s in samplings], jnp.float32),
        jnp.array([s.seed % 2**31 for s in samplings], jnp.int32),
    )


def _sample_one(logits: Float[Array, " V"], s: SamplingArrays, step: Int[Array, ""]) -> Int[Array, ""]:
    """Keeps the ``top_k`` most likely tokens, then the fewest of them that reach ``top_p``, then samples."""
    scaled = logits / jnp.maximum(s.temperature, 1e-4)
    order = jnp.argsort(-scaled)
    ranked = scaled[order]
    kept = jnp.arange(len(ranked)) < jnp.where(s.top_k > 0, s.top_k, len(ranked))
    probabilities = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf))
    # The token that crosses the threshold is kept.
    kept &= jnp.cumsum(probabilities) - probabilities < s.top_p
    key = jax.random.fold_in(jax.random.key(s.seed), step)
    sampled = order[jax.random.categorical(key, jnp.where(kept, ranked, -jnp.inf))]
    return jnp.where(s.temperature > 0, sampled, jnp.argmax(logits)).astype(jnp.int32)


def sample(logits: Float[Array, "B V"], s: SamplingArrays, step: Int[Array, ""]) -> Int[Array, " B"]:
    """One token of each sequence; its ``step``-th sample depends on its own seed, not on the rest of the batch.

    A batch that is greedy throughout is not sorted.
    """
    sample_batch = jax.vmap(_sample_one, in_axes=(0, 0, None))
    greedy = lambda: jnp.argmax(logits, -1).astype(jnp.int32)  # noqa: E731
    return jax.lax.cond(jnp.any(s.temperature > 0), lambda: sample_batch(logits, s, step), greedy)
