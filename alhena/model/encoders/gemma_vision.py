"""Vision encoder of Gemma 4: a ViT with the layers of its decoder, on packed patches of any number of images.

    patches [B, P, Q] ─ linear ─ + row and column embedding ─ layers (attention within an image) ─ mean of each window ─ norm, linear ─► [B, P/pool², D]

    one layer    RMSNorm before and after each sub-layer, norms of queries, keys and values, 2-D RoPE, GeGLU

2-D RoPE rotates the first half of each head by the column of its patch and the second half by the row (RoFormer, Su et al. 2021).
Linear layers may be clipped (alhena/model/encoders/clipped.py). A soft token is multiplied by √E, standardized by stored numbers where the
configuration says so, and normalized without a scale. A test compares the outputs with those of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import config, sharding, spec
from alhena.model.attention.full import segment_attention
from alhena.model.encoders.clipped import Clipped, clipped_matrix, project
from alhena.model.layers import gated, rms_norm, rope, rope_table, run_layers
from alhena.model.linear import Weight, einsum
from alhena.model.spec import Normal, WeightSpec, matrix, stacked, vector
from alhena.shapes import Array, Float, Int, Shaped, pytree


@pytree
@dataclass(frozen=True)
class Layers:
    """Weights of the layers, stacked."""

    attention_norm: Array
    query: Weight | Clipped  # [E, N·H]
    key: Weight | Clipped  # [E, N·H]
    value: Weight | Clipped  # [E, N·H]
    query_norm: Array  # [H]
    key_norm: Array  # [H]
    output: Weight | Clipped  # [N·H, E]
    attention_post_norm: Array
    mlp_norm: Array
    gate: Weight | Clipped  # [E, F]
    up: Weight | Clipped  # [E, F]
    down: Weight | Clipped  # [F, E]
    mlp_post_norm: Array


@pytree
@dataclass(frozen=True)
class Standard:
    """What soft tokens are standardized by: (token − bias) · scale."""

    bias: Array  # [E]
    scale: Array  # [E], stored as it is


@pytree
@dataclass(frozen=True)
class GemmaVision:
    """Weights of the encoder."""

    patch: Weight  # [Q, E]
    positions: Array  # [2, side, E]: of columns, then of rows
    layers: Layers
    project: Weight  # [E, D]
    standard: Standard | None = None


def _layer_weights(c: config.GemmaVision) -> Layers:
    E, F, H, heads, small = c.width, c.hidden, c.head_dim, c.heads * c.head_dim, (2 * c.layers) ** -0.5

    def linear(key: int, inner: int, outer: int, axes: tuple[str, str]) -> Any:
        return clipped_matrix(key, (inner, outer), axes, c.clipped)

    post_norm = vector(E, -1 + small)
    layer = Layers(
        attention_norm=vector(E),
        query=linear(0, E, heads, ("width", "heads")),
        key=linear(1, E, heads, ("width", "heads")),
        value=linear(2, E, heads, ("width", "heads")),
        query_norm=vector(H),
        key_norm=vector(H),
        output=linear(3, heads, E, ("heads", "width")),
        attention_post_norm=post_norm,
        mlp_norm=vector(E),
        gate=linear(4, E, F, ("width", "hidden")),
        up=linear(5, E, F, ("width", "hidden")),
        down=linear(6, F, E, ("hidden", "width")),
        mlp_post_norm=post_norm,
    )
    return stacked(c.layers, layer)


def weights(c: config.GemmaVision, width: int) -> GemmaVision:
    """The specification of every weight, for a decoder of model width ``width``."""
    E = c.width
    positions: Any = WeightSpec((2, c.side, E), (None, None, None), Normal(8), "adam", decay=False)
    return GemmaVision(
        patch=matrix(7, (c.patch_values, E), (None, "width"), quantize=True),
        positions=positions,
        layers=_layer_weights(c),
        project=matrix(9, (E, width), ("hidden", "width"), quantize=True),
        standard=Standard(vector(E), vector(E, 1.0)) if c.standardize else None,
    )


def init(key: Array, c: config.GemmaVision, width: int) -> GemmaVision:
    """Random weights, for a decoder of model width ``width``."""
    return spec.init(key, weights(c, width))


def _rope(x: Float[Array, "B P N H"], columns: Float[Array, "B P half"], rows: Float[Array, "B P half"]) -> Array:
    """2-D RoPE: the first half of each head is rotated by the column of its patch, the second by the row."""
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([rope(first, columns), rope(second, rows)], -1)


def _attention(
    w: Layers, x: Float[Array, "B P E"], tables: tuple[Array, Array], images: Int[Array, "B P"], dtype: str
) -> Float[Array, "B P E"]:
    """Attention of each patch to those of its image."""
    H = w.query_norm.shape[0]
    q, k, v = (project(x, m, dtype).reshape(*x.shape[:2], -1, H) for m in (w.query, w.key, w.value))
    q, k = (_rope(rms_norm(a, scale), *tables) for a, scale in ((q, w.query_norm), (k, w.key_norm)))
    q, k, v = (a.astype(dtype) for a in (q, k, rms_norm(v, jnp.zeros(H))))
    k, v = (sharding.constrain(a, "batch", None, None, None) for a in (k, v))
    heads = jax.checkpoint(partial(segment_attention, scale=1.0))(q, k, v, images)
    return project(heads.reshape(*x.shape[:2], -1), w.output, dtype)


def _layer(
    w: Layers, x: Float[Array, "B P E"], tables: tuple[Array, Array], images: Int[Array, "B P"], dtype: str
) -> Float[Array, "B P E"]:
    x = x + rms_norm(_attention(w, rms_norm(x, w.attention_norm), tables, images, dtype), w.attention_post_norm)
    h = rms_norm(x, w.mlp_norm)
    h = project(gated(project(h, w.gate, dtype), project(h, w.up, dtype)), w.down, dtype)
    return x + rms_norm(h, w.mlp_post_norm)


def features(
    params: GemmaVision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.GemmaVision,
    dtype: str,
) -> Float[Array, "B P E"]:
    """One vector per uint8 patch. ``images`` is the number of each patch's image in its sequence; 0 is padding."""
    rows, columns = positions[..., 0], positions[..., 1]
    x = einsum("...i,io->...o", patches.astype(jnp.float32) / 127.5 - 1, params.patch, dtype)
    x = x + params.positions[0, columns] + params.positions[1, rows]
    x = sharding.constrain(x.astype(jnp.float32), "batch", "length", None)
    tables = rope_table(columns, c.head_dim // 2, c.rope_base), rope_table(rows, c.head_dim // 2, c.rope_base)
    return run_layers(params.layers, _layer_weights(c), x, lambda w, x: _layer(w, x, tables, images, dtype), c, dtype)


def encode(
    params: GemmaVision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.GemmaVision,
    dtype: str,
) -> Float[Array, "B W D"]:
    """W = P / pool² soft tokens per sequence: means of the windows of :func:`features`, normalized and projected."""
    x = features(params, patches, positions, images, c, dtype)
    x = x.reshape(len(x), -1, c.pool**2, c.width).mean(2) * c.width**0.5
    if params.standard is not None:
        x = (x - params.standard.bias) * params.standard.scale
    return einsum("...i,io->...o", rms_norm(x, jnp.zeros(c.width)), params.project, dtype)
