"""Clipped linear layers, of Gemma 4's encoders: clamp the inputs, multiply, clamp the outputs.

    weight  [I, O]
    bounds  [4]     minimum and maximum of the inputs, minimum and maximum of the outputs

The bounds are stored with the weights and never trained. A file may hold infinite bounds: here they are the largest float32 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model.linear import Weight, einsum
from alhena.model.spec import WeightSpec, matrix
from alhena.shapes import Array, Float, pytree

# In the order of ``bounds``, as the tensors are called in files.
BOUNDS = ("input_min", "input_max", "output_min", "output_max")
UNBOUNDED = np.array([-1, 1, -1, 1], np.float32) * np.finfo(np.float32).max


@pytree
@dataclass(frozen=True)
class Clipped:
    """A linear layer with bounds of its inputs and outputs."""

    weight: Weight  # [I, O]
    bounds: Array  # [4]


def _unbounded(key: Array, shape: tuple[int, ...]) -> Array:
    """Initializer of bounds that clip nothing."""
    return jnp.broadcast_to(UNBOUNDED, shape)


def clipped_matrix(
    key: int, shape: tuple[int, int], axes: tuple[str | None, str | None], clip: bool, gain: float = 1.0
) -> Any:
    """Specification of a linear layer, with bounds where ``clip``."""
    weight = matrix(key, shape, axes, gain, quantize=True)
    bounds: Any = WeightSpec((4,), (None,), _unbounded, "adam", decay=False)
    return Clipped(weight, bounds) if clip else weight


def project(x: Float[Array, "*batch I"], w: Weight | Clipped, dtype: str) -> Float[Array, "*batch O"]:
    """``x`` times a weight, plain or clipped."""
    if not isinstance(w, Clipped):
        return einsum("...i,io->...o", x, w, dtype)
    bounds = jax.lax.stop_gradient(w.bounds).astype(jnp.float32)
    y = einsum("...i,io->...o", jnp.clip(x, bounds[0], bounds[1]), w.weight, dtype)
    return jnp.clip(y, bounds[2], bounds[3])
