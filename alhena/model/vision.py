"""Vision: a ViT on packed patches of any number of images, each at its own size and shape.

    patches [B, P, Q] ─ stem ─ + row and column embedding ─ layers (a patch sees the patches of its image) ─ join ─► [B, P/pool², D]

Patches come pool-window first, so the neighbours of a window are neighbours in memory: the stem sees a window whole (an MLP over its
pixels: the early convolution of Xiao et al. 2021, for packed patches), and joining is a reshape and one product, which keeps where in
the window a thing was (a mean, as in PaliGemma's later sizes, does not; docs/results.md has the difference). Nothing is padded to a
square (NaViT, Dehghani et al. 2023; ViT, Dosovitskiy et al. 2020).

A ``plain`` ViT is SigLIP's (Zhai et al. 2023), whose numbers a test compares: layer norms and biases, an MLP without a gate, an embedding
for each place of a square, no stem. Ours differs where a small model, trained from nothing, learns sooner or with less: a stem that
sees edges, positions that any shape of image has, and the decoder's own norm and MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding
from alhena.model.attention import attend
from alhena.model.einsum import einsum
from alhena.model.layers import gated, matrix, rms_norm, through, zeros
from alhena.shapes import Array, Bool, Float, Int, Shaped

LAYER_EPSILON = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layers:
    attention_norm: Array
    qkv: Array  # [E, 3·E]
    output: Array  # [E, E]
    mlp_norm: Array
    gate: Array | None  # [E, F]; None: plain
    up: Array  # [E, F]
    down: Array  # [F, E]
    biases: Biases | None = None  # of a plain layer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Biases:
    attention_norm: Array
    qkv: Array
    output: Array
    mlp_norm: Array
    up: Array
    down: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vision:
    patch: Array  # [Q, E]
    places: Stem | Square
    layers: Layers
    norm: Array
    project: Array  # [pool²·E, D]
    norm_bias: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stem:
    """What a patch gets beside its own pixels: what its window shows, its row, its column."""

    window_in: Array  # [pool²·Q, 2·E]
    window_out: Array  # [2·E, pool²·E]
    rows: Array  # [side, E]
    columns: Array  # [side, E]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Square:
    """The same of a plain ViT: its place in a square of side × side patches."""

    squares: Array  # [side², E]
    bias: Array


def _waves(side: int, width: int) -> Array:
    """[side, width] sines and cosines of growing wavelength: where learned positions start from."""
    angle = np.arange(side)[:, None] * (64.0 ** (-np.arange(width // 2) / (width // 2)))
    return jnp.asarray(0.5 * np.concatenate([np.sin(angle), np.cos(angle)], 1), jnp.float32)


def init(key: Array, c: config.Vision, width: int) -> Vision:
    keys = jax.random.split(key, 9)
    n, E, window = c.layers, c.width, c.pool**2
    biases = Biases(zeros(n, E), zeros(n, 3 * E), zeros(n, E), zeros(n, E), zeros(n, c.hidden), zeros(n, E))
    layers = Layers(
        attention_norm=zeros(n, E),
        qkv=matrix(keys[0], n, E, 3 * E),
        output=matrix(keys[1], n, E, E, gain=(2 * n) ** -0.5),
        mlp_norm=zeros(n, E),
        gate=None if c.plain else matrix(keys[2], n, E, c.hidden),
        up=matrix(keys[3], n, E, c.hidden),
        down=matrix(keys[4], n, c.hidden, E, gain=(2 * n) ** -0.5),
        biases=biases if c.plain else None,
    )
    half = jnp.zeros((c.side, E // 2))
    waves = _waves(c.side, E // 2)
    rows, columns = jnp.concatenate([waves, half], 1), jnp.concatenate([half, waves], 1)
    if c.plain:
        places: Stem | Square = Square((rows[:, None] + columns[None]).reshape(-1, E), zeros(E))
    else:
        stem = matrix(keys[7], window * c.patch_values, 2 * E), matrix(keys[8], 2 * E, window * E)
        places = Stem(*stem, rows, columns)
    patch, project = matrix(keys[5], c.patch_values, E), matrix(keys[6], window * E, width)
    return Vision(patch, places, layers, zeros(E), project, zeros(E) if c.plain else None)


def _product(x: Float[Array, "... I"], w: Array, bias: Array | None, dtype: str) -> Float[Array, "... O"]:
    out = einsum("...i,io->...o", x, w, dtype)
    return out if bias is None else out + bias


def _norm(x: Float[Array, "... E"], scale: Float[Array, E], bias: Array | None) -> Float[Array, "... E"]:
    """The decoder's norm or, with a bias, layer norm (Ba et al. 2016)."""
    if bias is None:
        return rms_norm(x, scale)
    away = x - x.mean(-1, keepdims=True)
    return away * jax.lax.rsqrt(jnp.square(away).mean(-1, keepdims=True) + LAYER_EPSILON) * (1 + scale) + bias


def _begin(params: Vision, pixels: Float[Array, "B P Q"], positions: Int[Array, "B P 2"], c: config.Vision, dtype: str):
    x, places = einsum("...i,io->...o", pixels, params.patch, dtype), params.places
    rows, columns = positions[..., 0], positions[..., 1]
    if isinstance(places, Square):
        return x + places.bias + places.squares[rows * c.side + columns]
    windows = pixels.reshape(len(pixels), -1, c.pool**2 * c.patch_values)
    seen = jax.nn.gelu(einsum("...i,io->...o", windows, places.window_in, dtype))
    x = x + einsum("...i,io->...o", seen, places.window_out, dtype).reshape(x.shape)
    return x + places.rows[rows] + places.columns[columns]


def _layer(w: Layers, x: Float[Array, "B P E"], mask: Bool[Array, "B P P"], c: config.Vision, dtype: str) -> Array:
    B, P, _ = x.shape
    b = w.biases or Biases(*(None,) * 6)  # type: ignore[arg-type]
    qkv = _product(_norm(x, w.attention_norm, b.attention_norm), w.qkv, b.qkv, dtype).astype(dtype)
    q, k, v = jnp.split(qkv.reshape(B, P, 3 * c.heads, -1), 3, axis=2)
    k, v = (sharding.constrain(a, "batch", None, None, None) for a in (k, v))
    heads = jax.checkpoint(attend)(q, k, v, mask).reshape(B, P, -1)
    x = x + _product(heads, w.output, b.output, dtype)
    h = _norm(x, w.mlp_norm, b.mlp_norm)
    up = _product(h, w.up, b.up, dtype)
    h = jax.nn.gelu(up) if w.gate is None else gated(einsum("...i,io->...o", h, w.gate, dtype), up)
    return x + _product(h, w.down, b.down, dtype)


def features(
    params: Vision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.Vision,
    dtype: str,
) -> Float[Array, "B P E"]:
    """uint8 patches to normed vectors. ``images`` numbers the image of each patch; 0 is padding."""
    x = _begin(params, patches.astype(jnp.float32) / 127.5 - 1, positions, c, dtype)
    x = sharding.constrain(x, "batch", "length", None)
    mask = sharding.constrain(images[:, :, None] == images[:, None, :], "batch", "length", None)

    x = through(params.layers, x, lambda w, x: _layer(w, x, mask, c, dtype), c, dtype)
    return _norm(x, params.norm, params.norm_bias)


def encode(
    params: Vision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.Vision,
    dtype: str,
) -> Float[Array, "B W D"]:
    """:func:`features`, joined to W = P / pool² soft tokens a row."""
    x = features(params, patches, positions, images, c, dtype)
    return einsum("...i,io->...o", x.reshape(len(x), -1, c.pool**2 * c.width), params.project, dtype)
