"""Muon (Jordan et al. 2024): the momentum of each matrix, made orthogonal, so that all its directions are learned at one pace.

    momentum [n, in, out] ─ Newton-Schulz, five rounds: X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ ─► [n, in, out], singular values near 1

The arithmetic is that of ``optax.contrib.muon`` (a test compares them); written out here because on a mesh a matrix must be whole where
it is multiplied by itself. A stack cut in both directions moves once, all to all, so that each chip of ``data`` holds a few matrices of
the stack, their longer side still cut over ``model``: no chip ever sees the whole stack, and none multiplies what another does.
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
ROUNDS = 5
EPSILON = 1e-8


class Momentum(NamedTuple):
    steps: Int[Array, ""]
    mean: Any


def _newton_schulz(x: Float[Array, "n short long"], axis: str | None) -> Float[Array, "n short long"]:
    """Singular values of each matrix to about 1; with ``axis``, the longer side is cut over that mesh axis."""
    add = (lambda y: y) if axis is None else partial(jax.lax.psum, axis_name=axis)
    x = x / (jnp.sqrt(add(jnp.sum(x * x, (1, 2), keepdims=True))) + EPSILON)
    a, b, c = COEFFICIENTS

    def improve(_: int, x: Array) -> Array:
        square = add(x @ x.swapaxes(1, 2))
        return a * x + (b * square + c * square @ square) @ x

    return jax.lax.fori_loop(0, ROUNDS, improve, x, unroll=ROUNDS if axis is None else 1)


def orthogonalize(x: Float[Array, "*n in out"]) -> Float[Array, "*n in out"]:
    """Each matrix of a stack (or the one matrix) made orthogonal, wherever its parts are."""
    flipped = x.shape[-2] > x.shape[-1]
    stack = x.reshape(-1, *x.shape[-2:])
    stack = stack.swapaxes(1, 2) if flipped else stack
    axis = sharding.mesh_axis("hidden") if sharding.has_mesh() else None
    cut, n = ("matrices", None, "hidden"), stack.shape[0]
    room = -n % sharding.shard_count("matrices")
    stack = sharding.constrain(jnp.pad(stack, ((0, room), (0, 0), (0, 0))) if room else stack, *cut)
    stack = sharding.on_shards(partial(_newton_schulz, axis=axis), (cut,), cut)(stack)[:n]
    return (stack.swapaxes(1, 2) if flipped else stack).reshape(x.shape)


def scale_by_muon(beta: float) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized and scaled to the size of Adam's updates (Liu et al. 2025)."""

    def start(params: optax.Params) -> Momentum:
        return Momentum(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(gradient: optax.Updates, state: Momentum, params: optax.Params | None = None):
        count = optax.safe_increment(state.steps)
        mean = optax.tree.update_moment(gradient, state.mean, beta, 1)
        ahead = optax.tree.bias_correction(mean, beta, optax.safe_increment(count))
        direction = jax.tree.map(
            lambda m, g: beta * m + (1 - beta) * g, ahead, optax.tree.bias_correction(gradient, beta, count)
        )
        scaled = jax.tree.map(lambda x: jnp.sqrt(max(x.shape[-2:])) * 0.2 * orthogonalize(x), direction)
        return scaled, Momentum(count, mean)

    return optax.GradientTransformation(start, update)
