"""Vision: a ViT on packed patches of any number of images, each at its own size and shape.

    patches [B, P, Q] ─ stem ─ + row and column embedding ─ layers (a patch sees the patches of its image) ─ join ─► [B, P/pool², D]

Patches come pool-window first, so the neighbours of a window are neighbours in memory: the stem sees a window whole (an MLP over its
pixels: the early convolution of Xiao et al. 2021, for packed patches), and joining is a reshape and one product, which keeps where in
the window a thing was (a mean, as in PaliGemma's later sizes, does not; docs/results.md has the difference). Nothing is padded to a
square (NaViT, Dehghani et al. 2023; ViT, Dosovitskiy et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding
from alhena.model.attention import attend
from alhena.model.einsum import einsum
from alhena.model.layers import gated, matrix, rms_norm, zeros
from alhena.shapes import Array, Float, Int, Shaped

SIDE = 128  # rows and columns of patches that have an embedding of their own


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layers:
    attention_norm: Array
    qkv: Array  # [E, 3·E]
    output: Array  # [E, E]
    mlp_norm: Array
    gate: Array  # [E, F]
    up: Array  # [E, F]
    down: Array  # [F, E]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vision:
    patch: Array  # [Q, E]
    window_in: Array  # [pool²·Q, 2·E]
    window_out: Array  # [2·E, pool²·E]
    rows: Array  # [SIDE, E]
    columns: Array  # [SIDE, E]
    layers: Layers
    norm: Array
    project: Array  # [pool²·E, D]


def _waves(width: int) -> Array:
    """[SIDE, width] sines and cosines of growing wavelength: where learned positions start from."""
    angle = np.arange(SIDE)[:, None] * (64.0 ** (-np.arange(width // 2) / (width // 2)))
    return jnp.asarray(0.5 * np.concatenate([np.sin(angle), np.cos(angle)], 1), jnp.float32)


def init(key: Array, c: config.Vision, width: int) -> Vision:
    keys = jax.random.split(key, 9)
    n, E, window = c.layers, c.width, c.pool**2
    layers = Layers(
        attention_norm=zeros(n, E),
        qkv=matrix(keys[0], n, E, 3 * E),
        output=matrix(keys[1], n, E, E, gain=(2 * n) ** -0.5),
        mlp_norm=zeros(n, E),
        gate=matrix(keys[2], n, E, c.hidden),
        up=matrix(keys[3], n, E, c.hidden),
        down=matrix(keys[4], n, c.hidden, E, gain=(2 * n) ** -0.5),
    )
    half = jnp.zeros((SIDE, E // 2))
    rows, columns = jnp.concatenate([_waves(E // 2), half], 1), jnp.concatenate([half, _waves(E // 2)], 1)
    stem = matrix(keys[7], window * c.patch_values, 2 * E), matrix(keys[8], 2 * E, window * E)
    return Vision(
        matrix(keys[5], c.patch_values, E), *stem, rows, columns, layers, zeros(E), matrix(keys[6], window * E, width)
    )


def encode(
    params: Vision,
    patches: Shaped[Array, "B P Q"],
    positions: Int[Array, "B P 2"],
    images: Int[Array, "B P"],
    c: config.Vision,
    dtype: str,
) -> Float[Array, "B W D"]:
    """uint8 patches to W = P / pool² soft tokens a row. ``images`` numbers the image of each patch; 0 is padding."""
    B, P, _ = patches.shape
    W = P // c.pool**2
    pixels = patches.astype(jnp.float32) / 127.5 - 1
    seen = jax.nn.gelu(einsum("...i,io->...o", pixels.reshape(B, W, -1), params.window_in, dtype))
    x = einsum("...i,io->...o", pixels, params.patch, dtype)
    x = x + einsum("...i,io->...o", seen, params.window_out, dtype).reshape(x.shape)
    x = x + params.rows[positions[..., 0]] + params.columns[positions[..., 1]]
    x = sharding.constrain(x, "batch", "length", None)
    mask = sharding.constrain(images[:, :, None] == images[:, None, :], "batch", "length", None)

    def layer(x, w):
        w = sharding.gathered(w, dtype)
        qkv = einsum("...i,io->...o", rms_norm(x, w.attention_norm), w.qkv, dtype).astype(dtype)
        q, k, v = jnp.split(qkv.reshape(B, P, 3 * c.heads, -1), 3, axis=2)
        k, v = (sharding.constrain(a, "batch", None, None, None) for a in (k, v))
        heads = jax.checkpoint(attend)(q, k, v, mask).reshape(B, P, -1)
        x = x + einsum("...i,io->...o", heads, w.output, dtype)
        h = rms_norm(x, w.mlp_norm)
        h = gated(einsum("...i,io->...o", h, w.gate, dtype), einsum("...i,io->...o", h, w.up, dtype))
        return x + einsum("...i,io->...o", h, w.down, dtype), None

    if c.remat:
        layer = jax.checkpoint(layer, prevent_cse=False)
    x, _ = jax.lax.scan(layer, x, params.layers, unroll=c.layers if c.layers <= 4 else 1)
    return einsum("...i,io->...o", rms_norm(x, params.norm).reshape(B, W, -1), params.project, dtype)
