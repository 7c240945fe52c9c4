"""A weight whose inputs are observed: the gradient of a zero array beside it is the second moment of those inputs.

    y = x · value            d loss / d moments[b]  =  Σ_t c_t · x_t[b] x_t[b]ᵀ           moments [blocks, n, n]

A backward pass thus collects the statistics of every weight at once, through scans over layers and rematerialization, and the model
itself knows nothing of it. Positions are weighted by the square of the gradient of their outputs, c_t: what a rounding error there
does to the loss. Padding and positions that no target depends on count nothing. Moments are those inside blocks of inputs, which
bounds their memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alhena.model.quantized.layout import GROUP
from alhena.shapes import Array, Float, pytree

# Inputs of a block, at most.
BLOCK = 1024


@pytree
@dataclass(frozen=True)
class Observed:
    """A weight, and the array whose gradient is taken."""

    value: Float[Array, "*layers I O"]
    moments: Float[Array, "*layers blocks n n"]


def block_size(inputs: int, group: int = GROUP) -> int:
    """The largest size of blocks of whole groups that divide the inputs.

    >>> [block_size(inputs) for inputs in (128, 640, 2048, 6912)]
    [128, 640, 1024, 864]
    """
    return max(n for n in range(group, BLOCK + 1, group) if inputs % n == 0)


def observe(value: Float[Array, "*layers I O"]) -> Observed:
    """A weight with zero moments."""
    *layers, inputs, _ = value.shape
    n = block_size(inputs)
    return Observed(value, jnp.zeros((*layers, inputs // n, n, n), jnp.float32))


@jax.custom_vjp
def observed(
    x: Float[Array, "M I"], y: Float[Array, "M O"], moments: Float[Array, "blocks n n"]
) -> Float[Array, "M O"]:
    """The outputs ``y`` of a weight, unchanged; the gradient of its moments is computed from its inputs ``x``."""
    return y


def _forward(x: Array, y: Array, moments: Array) -> tuple[Array, tuple[Array, Array]]:
    return y, (x, moments)


def _backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[None, Array, Array]:
    x, moments = saved
    blocks, n, _ = moments.shape
    x = x.astype(jnp.float32).reshape(len(x), blocks, n)
    weighted = x * jnp.square(cotangent).mean(-1)[:, None, None]
    return None, cotangent, jnp.einsum("tbi,tbj->bij", weighted, x, preferred_element_type=jnp.float32)


observed.defvjp(_forward, _backward)
