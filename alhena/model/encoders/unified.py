"""Image embedder of Gemma 4 Unified: no layers, the decoder itself encodes the image.

    patches [B, P, Q] ─ windows [B, P/pool², pool²·Q] ─ norm, linear, norm ─ + row and column embedding ─ norm ─ norm, linear ─► [B, P/pool², D]

The values of a window are in the order of its pixels: row, column, channel. The norms are layer norms with a bias (Ba et al. 2016), but
for the last, an RMSNorm without a scale. A test compares the outputs with those of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import config, sharding, spec
from alhena.model.layers import rms_norm
from alhena.model.linear import Weight, einsum
from alhena.model.spec import Normal, WeightSpec, matrix, vector
from alhena.shapes import Array, Float, Int, Shaped, pytree

LAYER_EPSILON = 1e-5


@pytree
@dataclass(frozen=True)
class LayerNorm:
    """Weights of a layer norm; the scale is an offset from one."""

    scale: Array
    bias: Array


@pytree
@dataclass(frozen=True)
class UnifiedVision:
    """Weights of the embedder; I are the values of a window."""

    patch_norm: LayerNorm  # [I]
    patch: Weight  # [I, E]
    patch_bias: Array  # [E]
    patch_post_norm: LayerNorm  # [E]
    positions: Array  # [token_side, 2, E]: of columns, then of rows
    position_norm: LayerNorm  # [E]
    project: Weight  # [E, D]


def weights(c: config.UnifiedVision, width: int) -> UnifiedVision:
    """The specification of every weight, for a decoder of model width ``width``."""
    E, values = c.width, c.pool**2 * c.patch_values
    positions: Any = WeightSpec((c.token_side, 2, E), (None, None, None), Normal(1), "adam", decay=False)
    return UnifiedVision(
        patch_norm=LayerNorm(vector(values), vector(values)),
        patch=matrix(0, (values, E), (None, "width"), quantize=True),
        patch_bias=vector(E),
        patch_post_norm=LayerNorm(vector(E), vector(E)),
        positions=positions,
        position_norm=LayerNorm(vector(E), vector(E)),
        project=matrix(2, (E, width), ("hidden", "width"), quantize=True),
    )


def init(key: Array, c: config.UnifiedVision, width: int) -> UnifiedVision:
    """Random weights, for a decoder of model width ``width``."""
    return spec.init(key, weights(c, width))


def _norm(x: Float[Array, "... E"], w: LayerNorm) -> Float[Array, "... E"]:
    centered = x - x.mean(-1, keepdims=True)
    normal = centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + LAYER_EPSILON)
    return normal * (1 + w.scale) + w.bias


def _windows(patches: Shaped[Array, "B P Q"], c: config.UnifiedVision) -> Shaped[Array, "B W I"]:
    """Values of the pixels of each window, from patches of which those of a window are contiguous."""
    x = patches.reshape(len(patches), -1, c.pool, c.pool, c.patch, c.patch, 3)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(*x.shape[:2], c.pool**2 * c.patch_values)


def encode(
    params: UnifiedVision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.UnifiedVision,
    dtype: str,
) -> Float[Array, "B W D"]:
    """W = P / pool² soft tokens per sequence. Each depends on its own window alone, so ``images`` has no effect."""
    x = sharding.constrain(_windows(patches, c).astype(jnp.float32) / 255, "batch", "length", None)
    x = einsum("...i,io->...o", _norm(x, params.patch_norm), params.patch, dtype) + params.patch_bias
    row, column = jnp.moveaxis(positions[:, :: c.pool**2] // c.pool, -1, 0)
    x = _norm(x, params.patch_post_norm) + params.positions[column, 0] + params.positions[row, 1]
    x = rms_norm(_norm(x, params.position_norm), jnp.zeros(c.width))
    return einsum("...i,io->...o", x, params.project, dtype)
