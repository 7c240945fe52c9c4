"""Muon optimizer (Jordan et al. 2024): the momentum of each matrix is orthogonalized, so that all its directions are learned at one pace.

    momentum [n, in, out] ─ Newton-Schulz, five iterations: X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ ─► [n, in, out], singular values near 1

The arithmetic is that of ``optax.contrib.muon`` (a test compares them). It is written out here because on a mesh a matrix must not be
sharded along ``data`` where it is multiplied by itself. A stack sharded along both sides moves once, by an all-to-all. Each device of
``data`` then holds a few matrices of the stack, their longer side still sharded over ``model``. No device ever gathers the complete
stack, and no matmul is computed twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alhena.model import sharding
from alhena.shapes import Array, Float, Int

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-8


class Momentum(NamedTuple):
    """Optimizer state: number of updates, and the moving average of the gradients."""

    steps: Int[Array, ""]
    mean: Any


def _newton_schulz(x: Float[Array, "n short long"], axis: str | None) -> Float[Array, "n short long"]:
    """Brings the singular values of each matrix to about 1. With ``axis``, the longer side is sharded over that mesh axis."""
    all_reduce = (lambda y: y) if axis is None else partial(jax.lax.psum, axis_name=axis)
    x = x / (jnp.sqrt(all_reduce(jnp.sum(x * x, (1, 2), keepdims=True))) + EPSILON)
    a, b, c = COEFFICIENTS

    def iterate(_: Int[Array, ""], x: Float[Array, "n short long"]) -> Float[Array, "n short long"]:
        square = all_reduce(x @ x.swapaxes(1, 2))
        return a * x + (b * square + c * square @ square) @ x

    return jax.lax.fori_loop(0, ITERATIONS, iterate, x, unroll=ITERATIONS if axis is None else 1)


def orthogonalize(x: Float[Array, "*n in out"]) -> Float[Array, "*n in out"]:
    """Orthogonalizes each matrix of a stack, or the one matrix, on the mesh if there is one."""
    transposed = x.shape[-2] > x.shape[-1]
    stack = x.reshape(-1, *x.shape[-2:])
    stack = stack.swapaxes(1, 2) if transposed else stack
    axis = sharding.mesh_axis("hidden") if sharding.has_mesh() else None
    axes, n = ("matrices", None, "hidden"), stack.shape[0]
    padding = -n % sharding.shard_count("matrices")
    stack = sharding.constrain(jnp.pad(stack, ((0, padding), (0, 0), (0, 0))) if padding else stack, *axes)
    stack = sharding.on_shards(partial(_newton_schulz, axis=axis), (axes,), axes)(stack)[:n]
    return (stack.swapaxes(1, 2) if transposed else stack).reshape(x.shape)


def scale_by_muon(beta: float) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized and scaled to the size of Adam's updates (Liu et al. 2025)."""

    def init(params: optax.Params) -> Momentum:
        return Momentum(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(gradient: optax.Updates, state: Momentum, params: optax.Params | None = None):
        count = optax.safe_increment(state.steps)
        mean = optax.tree.update_moment(gradient, state.mean, beta, 1)
        lookahead = optax.tree.bias_correction(mean, beta, optax.safe_increment(count))
        direction = jax.tree.map(
            lambda m, g: beta * m + (1 - beta) * g, lookahead, optax.tree.bias_correction(gradient, beta, count)
        )
        scaled = jax.tree.map(lambda x: jnp.sqrt(max(x.shape[-2:])) * 0.2 * orthogonalize(x), direction)
        return scaled, Momentum(count, mean)

    return optax.GradientTransformation(init, update)
