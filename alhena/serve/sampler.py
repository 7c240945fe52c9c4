"""Choosing the next token: temperature, top-k and top-p, each row with its own settings and its own random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alhena.shapes import Array, Float, Int, pytree

DRAWING = 3.0  # guidance where a picture is asked for


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. ``temperature`` 0 takes the likeliest token; ``top_k`` 0 and ``top_p`` 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    guidance: float = 1.0  # classifier-free guidance of drawings; 1 is off
    image_first: bool = False  # the answer begins with a picture
    aspect: float | None = None  # width / height of its pictures; None: as the model likes
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
class Settings:
    """The numbers of :class:`Sampling`, one of each a row."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    seed: Int[Array, " B"]


def settings(samplings: list[Sampling]) -> Settings:
    return Settings(
        jnp.array([s.temperature for s in samplings], jnp.float32),
        jnp.array([s.top_k for s in samplings], jnp.int32),
        jnp.array([s.top_p for s in samplings], jnp.float32),
        jnp.array([s.seed % 2**31 for s in samplings], jnp.int32),
    )


def _row(logits: Float[Array, " V"], s: Settings, step: Int[Array, ""]) -> Int[Array, ""]:
    """Keeps the ``top_k`` likeliest, then the fewest that reach ``top_p``, then draws."""
    scaled = logits / jnp.maximum(s.temperature, 1e-4)
    order = jnp.argsort(-scaled)
    ranked = scaled[order]
    kept = jnp.arange(len(ranked)) < jnp.where(s.top_k > 0, s.top_k, len(ranked))
    share = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf))
    kept &= jnp.cumsum(share) - share < s.top_p  # the token that crosses the line is in
    key = jax.random.fold_in(jax.random.key(s.seed), step)
    drawn = order[jax.random.categorical(key, jnp.where(kept, ranked, -jnp.inf))]
    return jnp.where(s.temperature > 0, drawn, jnp.argmax(logits)).astype(jnp.int32)


def sample(logits: Float[Array, "B V"], s: Settings, step: Int[Array, ""]) -> Int[Array, " B"]:
    """One token a row; the ``step``-th draw of a row depends on its own seed, never on its neighbors.

    Rows that are all greedy take a short way without sorting.
    """
    rows = jax.vmap(_row, in_axes=(0, 0, None))
    greedy = lambda: jnp.argmax(logits, -1).astype(jnp.int32)  # noqa: E731
    return jax.lax.cond(jnp.any(s.temperature > 0), lambda: rows(logits, s, step), greedy)
