"""Vision: a ViT on packed patches of any number of images, each at its own size and shape.

    patches [B, P, Q] ─ stem ─ + row and column embedding ─ layers (a patch sees the patches of its image) ─ join ─► [B, P/pool², D]

Patches come pool-window first, so the neighbors of a window are neighbors in memory: the stem sees a window whole (an MLP over its
pixels: the early convolution of Xiao et al. 2021, for packed patches), and joining is a reshape and one product, which keeps where in
the window a thing was (a mean, as in PaliGemma's later sizes, does not; docs/results.md has the difference). Nothing is padded to a
square (NaViT, Dehghani et al. 2023; ViT, Dosovitskiy et al. 2020).

A ``plain`` ViT is SigLIP's (Zhai et al. 2023), whose numbers a test compares: layer norms and biases, an MLP without a gate, an embedding
for each place of a square, no stem. Ours differs where a small model, trained from nothing, learns sooner or with less: a stem that
sees edges, positions that any shape of image has, and the decoder's own norm and MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding, spec
from alhena.model.attention import dense_attention
from alhena.model.layers import gated, rms_norm, run_layers
from alhena.model.linear import einsum
from alhena.model.spec import WeightSpec, matrix, stacked, vector
from alhena.shapes import Array, Bool, Float, Int, Shaped, pytree

LAYER_EPSILON = 1e-6


@pytree
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


@pytree
@dataclass(frozen=True)
class Biases:
    attention_norm: Array
    qkv: Array
    output: Array
    mlp_norm: Array
    up: Array
    down: Array


@pytree
@dataclass(frozen=True)
class Vision:
    patch: Array  # [Q, E]
    places: Stem | Square
    layers: Layers
    norm: Array
    project: Array  # [pool²·E, D]
    norm_bias: Array | None = None


@pytree
@dataclass(frozen=True)
class Stem:
    """What a patch gets beside its own pixels: what its window shows, its row, its column."""

    window_in: Array  # [pool²·Q, 2·E]
    window_out: Array  # [2·E, pool²·E]
    rows: Array  # [side, E]
    columns: Array  # [side, E]


@pytree
@dataclass(frozen=True)
class Square:
    """The same of a plain ViT: its place in a square of side × side patches."""

    squares: Array  # [side², E]
    bias: Array


@dataclass(frozen=True)
class Waves:
    """Initializer of the position embeddings: sines and cosines of growing wavelength, one half of the width for the row of a
    patch and the other for its column. ``of`` says whether of rows, of columns, or of all patches of a square, row by row.
    """

    of: Literal["rows", "columns", "squares"]

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        side, half = math.isqrt(shape[0]) if self.of == "squares" else shape[0], shape[1] // 2
        angle = np.arange(side)[:, None] * (64.0 ** (-np.arange(half // 2) / (half // 2)))
        waves = jnp.asarray(0.5 * np.concatenate([np.sin(angle), np.cos(angle)], 1), jnp.float32)
        none = jnp.zeros((side, half))
        rows, columns = jnp.concatenate([waves, none], 1), jnp.concatenate([none, waves], 1)
        return {"rows": rows, "columns": columns}.get(self.of, (rows[:, None] + columns[None]).reshape(-1, 2 * half))


def _layer_weights(c: config.Vision) -> Layers:
    E, F, small = c.width, c.hidden, (2 * c.layers) ** -0.5
    biases = Biases(vector(E), vector(3 * E), vector(E), vector(E), vector(F), vector(E))
    layer = Layers(
        attention_norm=vector(E),
        qkv=matrix(0, (E, 3 * E), ("width", "heads")),
        output=matrix(1, (E, E), ("heads", "width"), gain=small),
        mlp_norm=vector(E),
        gate=None if c.plain else matrix(2, (E, F), ("width", "hidden")),
        up=matrix(3, (E, F), ("width", "hidden")),
        down=matrix(4, (F, E), ("hidden", "width"), gain=small),
        biases=biases if c.plain else None,
    )
    return stacked(c.layers, layer)


def weights(c: config.Vision, width: int) -> Vision:
    """The specification of every weight, for a decoder of that width."""
    E, Q, window = c.width, c.patch_values, c.pool**2

    def position(n: int, of: Literal["rows", "columns", "squares"]) -> Any:
        return WeightSpec((n, E), (None, None), Waves(of), "adam", decay=False)

    stem = Stem(
        window_in=matrix(7, (window * Q, 2 * E), (None, "hidden")),
        window_out=matrix(8, (2 * E, window * E), ("hidden", "width")),
        rows=position(c.side, "rows"),
        columns=position(c.side, "columns"),
    )
    return Vision(
        patch=matrix(5, (Q, E), (None, "width")),
        places=Square(position(c.side**2, "squares"), vector(E)) if c.plain else stem,
        layers=_layer_weights(c),
        norm=vector(E),
        project=matrix(6, (window * E, width), ("hidden", "width")),
        norm_bias=vector(E) if c.plain else None,
    )


def init(key: Array, c: config.Vision, width: int) -> Vision:
    return spec.init(key, weights(c, width))


def _product(x: Float[Array, "... I"], w: Array, bias: Array | None, dtype: str) -> Float[Array, "... O"]:
    out = einsum("...i,io->...o", x, w, dtype)
    return out if bias is None else out + bias


def _norm(x: Float[Array, "... E"], scale: Float[Array, " E"], bias: Array | None) -> Float[Array, "... E"]:
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
    heads = jax.checkpoint(dense_attention)(q, k, v, mask).reshape(B, P, -1)
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

    x = run_layers(params.layers, _layer_weights(c), x, lambda w, x: _layer(w, x, mask, c, dtype), c, dtype)
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
