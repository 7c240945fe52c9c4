"""The grid of quantized weights, and rounding to it with regard to the inputs of a weight.

Groups of 32 values along the contracted dimension share a float16 scale (alhena/model/quantized/layout.py). Weights are in the
orientation ``[I, O]`` here, so that a group is 32 inputs of one output.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model.quantized.layout import GROUP, TILE, Int4, Int8, Quantized, from_gguf_blocks
from alhena.model.quantized.rounding import LIMITS
from alhena.shapes import Array, Float

# Candidate scales of each sign in 4 bits, relative to that at which no value is clipped.
CANDIDATES = 24
SMALLEST, LARGEST = 0.6, 1.07
# Added to the moments of inputs, relative to their mean: directions that the observed inputs do not have.
DAMPING = 0.01


def _integers(w: Float[Array, "*w"], scale: Float[Array, "*scale"], bits: int) -> Float[Array, "*w"]:
    """The nearest integers of the grid; 0 where the scale is 0."""
    return jnp.clip(jnp.round(jnp.where(scale == 0, 0, w / jnp.where(scale == 0, 1, scale))), *LIMITS[bits])


def rounded(
    w: Float[Array, "*layers I O"], scales: Float[Array, "*layers G O"], bits: int
) -> Float[Array, "*layers I O"]:
    """The nearest values of the grid."""
    repeated = jnp.repeat(scales, GROUP, axis=-2)
    return _integers(w, repeated, bits) * repeated


def scales_of(w: Quantized) -> Float[Array, "*layers G O"]:
    """The scales of a quantized weight, in the orientation of this module."""
    *layers, tiles, groups, _ = w.scales.shape
    by_group = jnp.swapaxes(jnp.asarray(w.scales, jnp.float32), -3, -2)
    return by_group.reshape(*layers, groups, tiles * TILE)[..., : w.outputs]


def encoded(
    values: Float[Array, "*layers I O"], scales: Float[Array, "*layers G O"], bits: int, transposed: bool = False
) -> Int4 | Int8:
    """The quantized weight of values on the grid, or the nearest one. ``transposed`` tells how the model has it."""
    integers = np.asarray(_integers(values, jnp.repeat(scales, GROUP, axis=-2), bits)).astype(np.int8)
    # [*layers, O, G, 32]
    rows = np.swapaxes(integers, -1, -2).reshape(*integers.shape[:-2], integers.shape[-1], -1, GROUP)
    if bits == 4:
        low, high = np.split((rows + 8).astype(np.uint8), 2, -1)
        rows = low | (high << 4)
    half = np.ascontiguousarray(np.swapaxes(np.asarray(scales), -1, -2)).astype(np.float16)[..., None]
    blocks = np.concatenate([half.view(np.uint8), np.ascontiguousarray(rows).view(np.uint8)], -1)
    stored = from_gguf_blocks(blocks, transposed)
    return jax.tree.map(jnp.asarray, stored)


def _searched(group: Float[Array, "n O"], importance: Float[Array, " n"], bits: int) -> Float[Array, " O"]:
    """The scale of each output for one group, with the smallest squared error weighted by the importance of the inputs."""
    half = lambda scale: scale.astype(jnp.float16).astype(jnp.float32)  # noqa: E731
    largest = jnp.abs(group).max(0)
    if bits == 8:
        return half(largest / 127)

    def consider(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        shrink = SMALLEST + (LARGEST - SMALLEST) * (i // 2) / (CANDIDATES - 1)
        # With a negative scale the positive side has one more step.
        scale = half(jnp.where(i % 2, -1.0, 1.0) * shrink * largest / 7.5)
        error = jnp.sum(importance[:, None] * (_integers(group, scale, bits) * scale - group) ** 2, 0)
        return jnp.where(error < best[0], error, best[0]), jnp.where(error < best[0], scale, best[1])

    start = jnp.full(largest.shape, jnp.inf), jnp.zeros(largest.shape)
    return jax.lax.fori_loop(0, 2 * CANDIDATES, consider, start)[1]


def _factor(moments: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The upper triangular factor U of the inverse of the damped moments, UᵀU."""
    normal = moments / (jnp.trace(moments) / len(moments) + 1e-30)
    return jnp.linalg.cholesky(jnp.linalg.inv(normal + DAMPING * jnp.eye(len(moments)))).T


@partial(jax.jit, static_argnums=2)
def compensate(
    w: Float[Array, "n O"], moments: Float[Array, "n n"], bits: int
) -> tuple[Float[Array, "n O"], Float[Array, "G O"]]:
    """Values of the grid and their scales, such that the outputs for inputs of these second moments change little.

    GPTQ (Frantar et al. 2022): inputs are rounded one after the other, and the weights of those that follow make up for each error.
    The scales of a group are searched for when its turn has come.
    """
    factor = _factor(moments)

    def one_group(rest: Array, first: Array) -> tuple[Array, tuple[Array, Array]]:
        group = jax.lax.dynamic_slice_in_dim(rest, first, GROUP)
        rows = jax.lax.dynamic_slice_in_dim(factor, first, GROUP)
        inside = jax.lax.dynamic_slice_in_dim(rows, first, GROUP, 1)
        scale = _searched(group, jnp.diag(inside) ** -2, bits)

        def one_input(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            group, out, errors = state
            value = _integers(group[i], scale, bits) * scale
            error = (group[i] - value) / inside[i, i]
            after = jnp.where(jnp.arange(GROUP) > i, inside[i], 0)
            return group - after[:, None] * error, out.at[i].set(value), errors.at[i].set(error)

        start = group, jnp.zeros_like(group), jnp.zeros_like(group)
        _, out, errors = jax.lax.fori_loop(0, GROUP, one_input, start)
        return rest - rows.T @ errors, (out, scale)

    _, (values, scales) = jax.lax.scan(one_group, w.astype(jnp.float32), jnp.arange(0, len(w), GROUP))
    return values.reshape(w.shape), scales
