"""Vision encoder: a ViT on packed patches of any number of images, each in its own resolution and aspect ratio.

    patches [B, P, Q] ─ stem ─ + row and column embedding ─ layers (attention within an image) ─ pool ─► [B, P/pool², D]

Patches are ordered by pooling window, so those of a window are contiguous. The stem is an MLP over all pixels of a window (the early
convolution of Xiao et al. 2021, for packed patches). Pooling is a reshape and one matmul; unlike a mean it retains the position within
the window (docs/results.md has the difference). Images are not padded to a square (NaViT, Dehghani et al. 2023; ViT, Dosovitskiy et
al. 2020).

A ``plain`` ViT is SigLIP's (Zhai et al. 2023), and a test compares their outputs: layer norms and biases, an MLP without a gate, a
position embedding for each patch of a square, no MLP in the stem. The default differs where a small model trained from scratch gains.
With ``mean_pool`` it is Gemma 3's (Gemma Team 2025): a soft token is the mean of its window, normalized and projected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding, spec
from alhena.model.attention.full import dense_attention, segment_attention
from alhena.model.layers import gated, rms_norm, run_layers
from alhena.model.linear import Weight, einsum
from alhena.model.spec import WeightSpec, matrix, stacked, vector
from alhena.shapes import Array, Bool, Float, Int, Shaped, pytree

LAYER_EPSILON = 1e-6


@pytree
@dataclass(frozen=True)
class Layers:
    """Weights of the layers, stacked."""

    attention_norm: Array
    qkv: Weight  # [E, 3·E]
    output: Weight  # [E, E]
    mlp_norm: Array
    gate: Weight | None  # [E, F]; None in a plain layer
    up: Weight  # [E, F]
    down: Weight  # [F, E]
    biases: Biases | None = None  # only in a plain layer


@pytree
@dataclass(frozen=True)
class Biases:
    """Biases of the plain layers, named by the weights that they follow."""

    attention_norm: Array
    qkv: Array
    output: Array
    mlp_norm: Array
    up: Array
    down: Array


@pytree
@dataclass(frozen=True)
class Vision:
    """Weights of the encoder."""

    patch: Weight  # [Q, E]
    stem: Stem | PlainStem
    layers: Layers
    norm: Array
    project: Weight  # [pool²·E, D]; [E, D] where windows are averaged
    norm_bias: Array | None = None
    token_norm: Array | None = None  # [E], of the averaged windows


@pytree
@dataclass(frozen=True)
class Stem:
    """What is added to a patch's embedding: an MLP of its window's pixels, and embeddings of its row and column."""

    window_in: Weight  # [pool²·Q, 2·E]
    window_out: Weight  # [2·E, pool²·E]
    rows: Array  # [side, E]
    columns: Array  # [side, E]


@pytree
@dataclass(frozen=True)
class PlainStem:
    """What a plain ViT adds: an embedding of the position in a square of side × side patches, and a bias."""

    positions: Array  # [side², E]
    bias: Array


@dataclass(frozen=True)
class Sinusoids:
    """Initializer of position embeddings: sinusoids of a patch's row in the first half of the width, of its column in the second.

    ``of`` is what the table is indexed by: rows, columns, or the patches of a square in row-major order.
    """

    of: Literal["rows", "columns", "patches"]

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        side, half = math.isqrt(shape[0]) if self.of == "patches" else shape[0], shape[1] // 2
        angle = np.arange(side)[:, None] * (64.0 ** (-np.arange(half // 2) / (half // 2)))
        sinusoids = jnp.asarray(0.5 * np.concatenate([np.sin(angle), np.cos(angle)], 1), jnp.float32)
        zeros = jnp.zeros((side, half))
        rows, columns = jnp.concatenate([sinusoids, zeros], 1), jnp.concatenate([zeros, sinusoids], 1)
        return {"rows": rows, "columns": columns}.get(self.of, (rows[:, None] + columns[None]).reshape(-1, 2 * half))


def _layer_weights(c: config.Vision) -> Layers:
    E, F, small = c.width, c.hidden, (2 * c.layers) ** -0.5
    biases = Biases(vector(E), vector(3 * E), vector(E), vector(E), vector(F), vector(E))
    layer = Layers(
        attention_norm=vector(E),
        qkv=matrix(0, (E, 3 * E), ("width", "heads"), quantize=True),
        output=matrix(1, (E, E), ("heads", "width"), gain=small, quantize=True),
        mlp_norm=vector(E),
        gate=None if c.plain else matrix(2, (E, F), ("width", "hidden"), quantize=True),
        up=matrix(3, (E, F), ("width", "hidden"), quantize=True),
        down=matrix(4, (F, E), ("hidden", "width"), gain=small, quantize=True),
        biases=biases if c.plain else None,
    )
    return stacked(c.layers, layer)


def weights(c: config.Vision, width: int) -> Vision:
    """The specification of every weight, for a decoder of model width ``width``."""
    E, Q, window = c.width, c.patch_values, c.pool**2

    def position(n: int, of: Literal["rows", "columns", "patches"]) -> Any:
        return WeightSpec((n, E), (None, None), Sinusoids(of), "adam", decay=False)

    stem = Stem(
        window_in=matrix(7, (window * Q, 2 * E), (None, "hidden"), quantize=True),
        window_out=matrix(8, (2 * E, window * E), ("hidden", "width"), quantize=True),
        rows=position(c.side, "rows"),
        columns=position(c.side, "columns"),
    )
    return Vision(
        patch=matrix(5, (Q, E), (None, "width"), quantize=True),
        stem=PlainStem(position(c.side**2, "patches"), vector(E)) if c.plain else stem,
        layers=_layer_weights(c),
        norm=vector(E),
        project=matrix(6, (E if c.mean_pool else window * E, width), ("hidden", "width"), quantize=True),
        norm_bias=vector(E) if c.plain else None,
        token_norm=vector(E) if c.mean_pool else None,
    )


def init(key: Array, c: config.Vision, width: int) -> Vision:
    """Random weights, for a decoder of model width ``width``."""
    return spec.init(key, weights(c, width))


def _linear(x: Float[Array, "... I"], w: Weight, bias: Float[Array, " O"] | None, dtype: str) -> Float[Array, "... O"]:
    out = einsum("...i,io->...o", x, w, dtype)
    return out if bias is None else out + bias


def _norm(
    x: Float[Array, "... E"], scale: Float[Array, " E"], bias: Float[Array, " E"] | None
) -> Float[Array, "... E"]:
    """RMSNorm or, with a bias, layer norm (Ba et al. 2016)."""
    if bias is None:
        return rms_norm(x, scale)
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + LAYER_EPSILON) * (1 + scale) + bias


def _embed(
    params: Vision, pixels: Float[Array, "B P Q"], positions: Int[Array, "B P 2"], c: config.Vision, dtype: str
) -> Float[Array, "B P E"]:
    """Patch embeddings plus what the stem adds."""
    x, stem = einsum("...i,io->...o", pixels, params.patch, dtype), params.stem
    rows, columns = positions[..., 0], positions[..., 1]
    if isinstance(stem, PlainStem):
        return x + stem.bias + stem.positions[rows * c.side + columns]
    windows = pixels.reshape(len(pixels), -1, c.pool**2 * c.patch_values)
    h = jax.nn.gelu(einsum("...i,io->...o", windows, stem.window_in, dtype))
    x = x + einsum("...i,io->...o", h, stem.window_out, dtype).reshape(x.shape)
    return x + stem.rows[rows] + stem.columns[columns]


def _layer(
    w: Layers,
    x: Float[Array, "B P E"],
    visible: Bool[Array, "B P P"] | Int[Array, "B P"],
    c: config.Vision,
    dtype: str,
) -> Float[Array, "B P E"]:
    """One layer; ``visible`` is the mask, or the number of each patch's image."""
    B, P, _ = x.shape
    b = w.biases or Biases(*(None,) * 6)  # type: ignore[arg-type]
    qkv = _linear(_norm(x, w.attention_norm, b.attention_norm), w.qkv, b.qkv, dtype).astype(dtype)
    q, k, v = jnp.split(qkv.reshape(B, P, 3 * c.heads, -1), 3, axis=2)
    k, v = (sharding.constrain(a, "batch", None, None, None) for a in (k, v))
    attention = segment_attention if visible.ndim == 2 else dense_attention
    heads = jax.checkpoint(attention)(q, k, v, visible).reshape(B, P, -1)
    x = x + _linear(heads, w.output, b.output, dtype)
    h = _norm(x, w.mlp_norm, b.mlp_norm)
    up = _linear(h, w.up, b.up, dtype)
    h = jax.nn.gelu(up) if w.gate is None else gated(einsum("...i,io->...o", h, w.gate, dtype), up)
    return x + _linear(h, w.down, b.down, dtype)


def features(
    params: Vision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.Vision,
    dtype: str,
) -> Float[Array, "B P E"]:
    """One normalized vector per uint8 patch. ``images`` is the number of each patch's image in its sequence; 0 is padding."""
    x = _embed(params, patches.astype(jnp.float32) / 127.5 - 1, positions, c, dtype)
    x = sharding.constrain(x, "batch", "length", None)
    # The square images of Gemma 3 have thousands of patches each: no mask of all of them is made.
    visible = images
    if not c.mean_pool:
        visible = sharding.constrain(images[:, :, None] == images[:, None, :], "batch", "length", None)

    x = run_layers(params.layers, _layer_weights(c), x, lambda w, x: _layer(w, x, visible, c, dtype), c, dtype)
    return _norm(x, params.norm, params.norm_bias)


def encode(
    params: Vision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.Vision,
    dtype: str,
) -> Float[Array, "B W D"]:
    """W = P / pool² soft tokens per sequence: :func:`features`, pooled and projected."""
    x = features(params, patches, positions, images, c, dtype)
    if params.token_norm is not None:
        x = rms_norm(x.reshape(len(x), -1, c.pool**2, c.width).mean(2), params.token_norm)
    inputs = c.width if c.mean_pool else c.pool**2 * c.width
    return einsum("...i,io->...o", x.reshape(len(x), -1, inputs), params.project, dtype)
