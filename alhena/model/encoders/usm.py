"""Audio as in the Universal Speech Model: a conformer with local attention and relative positions (Zhang et al. 2023).

    frames [B, C, T, M] ─ two 3×3 convolutions, stride 2 both ways ─ [B·C, T/4, E] ─ conformer layers ─ every stack-th vector ─► [B, A, D]

    a layer    ½ MLP ─ attention ─ convolution over the last few vectors ─ ½ MLP ─ norm

A query looks at ``left`` vectors up to itself and ``right`` after it, whatever the length of the sound; the queries of a block share
one window of keys, so memory grows with the length:

    keys      · · ▪ ▪ ▪ ▪ ▪ ▪ · ·         block of 3 queries, left 4, right 0: a window of 6 keys
    queries           q₁ q₂ q₃

Scores have a second part from the distance alone (Dai et al. 2019). The arithmetic is that of the open Gemma 3n encoder, whose numbers a
test compares; its clamps of activations to ±1e10 are left out, since nothing finite reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding, spec
from alhena.model.attention import MASKED
from alhena.model.encoders.conformer import depthwise
from alhena.model.layers import rms_norm, run_layers, softcap
from alhena.model.linear import einsum
from alhena.model.spec import matrix, stacked, vector
from alhena.shapes import Array, Bool, Float, Int, pytree

GROUP_EPSILON = 1e-3


@pytree
@dataclass(frozen=True)
class Layers:
    """Fields as in :mod:`alhena.model.encoders.conformer`, with a norm behind the MLPs and the attention too."""

    first_norm: Array
    first_up: Array  # [E, F]
    first_down: Array  # [F, E]
    first_post_norm: Array
    attention_norm: Array
    qkv: Array  # [E, 3·E]
    query_scale: Array  # [H], 0: that of H^-½
    distance: Array  # [E, E], from waves of a distance to a key
    output: Array  # [E, E]
    attention_post_norm: Array
    convolution_norm: Array
    convolution_in: Array  # [E, 2·E]
    depthwise: Array  # [kernel, E]
    depthwise_norm: Array
    convolution_out: Array  # [E, E]
    second_norm: Array
    second_up: Array  # [E, F]
    second_down: Array  # [F, E]
    second_post_norm: Array
    last_norm: Array


@pytree
@dataclass(frozen=True)
class Usm:
    kernel_1: Array  # [9, channels₁]
    scale_1: Array  # [channels₁]
    kernel_2: Array  # [9·channels₁, channels₂]
    scale_2: Array  # [channels₂]
    subsampled: Array  # [M/4·channels₂, E]
    layers: Layers
    project: Array  # [E, D]


def _layer_weights(c: config.Usm) -> Layers:
    E, F = c.width, c.hidden
    post_norm = vector(E, -1 + 1 / np.sqrt(2 * c.layers))
    layer = Layers(
        first_norm=vector(E),
        first_up=matrix(0, (E, F), ("width", "hidden")),
        first_down=matrix(1, (F, E), ("hidden", "width")),
        first_post_norm=post_norm,
        attention_norm=vector(E),
        qkv=matrix(2, (E, 3 * E), ("width", "heads")),
        query_scale=vector(E // c.heads),
        distance=matrix(3, (E, E), ("width", "hidden")),
        output=matrix(4, (E, E), ("heads", "width")),
        attention_post_norm=post_norm,
        convolution_norm=vector(E),
        convolution_in=matrix(5, (E, 2 * E), ("width", "hidden")),
        depthwise=depthwise(6, c),
        depthwise_norm=vector(E),
        convolution_out=matrix(7, (E, E), ("hidden", "width"), gain=(2 * c.layers) ** -0.5),
        second_norm=vector(E),
        second_up=matrix(8, (E, F), ("width", "hidden")),
        second_down=matrix(9, (F, E), ("hidden", "width")),
        second_post_norm=post_norm,
        last_norm=vector(E),
    )
    return stacked(c.layers, layer)


def weights(c: config.Usm, width: int) -> Usm:
    """The specification of every weight, for a decoder of that width."""
    first, second = c.channels
    return Usm(
        kernel_1=matrix(10, (9, first), (None, None)),
        scale_1=vector(first),
        kernel_2=matrix(11, (9 * first, second), (None, None)),
        scale_2=vector(second),
        subsampled=matrix(12, (c.mels // 4 * second, c.width), (None, "width")),
        layers=_layer_weights(c),
        project=matrix(1, (c.width, width), ("hidden", "width")),
    )


def init(key: Array, c: config.Usm, width: int) -> Usm:
    return spec.init(key, weights(c, width))


def _halve(
    x: Float[Array, "X T F C"], kernel: Float[Array, "W O"], scale: Float[Array, " O"]
) -> Float[Array, "X t f O"]:
    """A 3×3 convolution, stride 2 both ways, that looks ahead in time; a norm by all that came before; ReLU."""
    shape = (3, 3, x.shape[3], kernel.shape[1])
    ahead, around = (0, 2), (1, 1)
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel.reshape(shape), (2, 2), (ahead, around), dimension_numbers=numbers)
    count = x.shape[2] * x.shape[3] * jnp.arange(1, x.shape[1] + 1)[None, :, None, None]
    so_far = lambda a: jnp.cumsum(a.sum((2, 3), keepdims=True), 1) / count  # noqa: E731
    away = x - so_far(x)
    return jax.nn.relu(away * jax.lax.rsqrt(so_far(away**2) + GROUP_EPSILON) * (1 + scale))


def _waves(c: config.Usm) -> Float[Array, "W E"]:
    """Sines and cosines of the distances from ``left`` - 1 back to ``right`` ahead."""
    speeds = 1e4 ** (-np.arange(c.width // 2) / max(c.width // 2 - 1, 1))
    angle = np.arange(c.left - 1, -c.right - 1, -1)[:, None] * speeds
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], 1), jnp.float32)


def _attend(w: Layers, qkv: Float[Array, "X T QKV"], valid: Bool[Array, "X T"], c: config.Usm, dtype: str) -> Array:
    X, T, _ = qkv.shape
    N, H, past = c.heads, c.width // c.heads, c.left - 1
    blocks, context = -(-T // c.block), c.block + past + c.right
    q, k, v = jnp.split(qkv.reshape(X, T, 3 * N, H), 3, axis=2)
    q = q * (H**-0.5 / np.log(2)) * jax.nn.softplus(w.query_scale)
    q = jnp.pad(q, ((0, 0), (0, blocks * c.block - T), (0, 0), (0, 0))).reshape(X, blocks, c.block, N, H)
    place = jnp.arange(blocks)[:, None] * c.block + jnp.arange(context) - past  # of each block's keys
    there = jnp.clip(place, 0, T - 1)
    apart = jnp.arange(context) - jnp.arange(c.block)[:, None]  # 0: ``past`` back
    seen = ((apart >= 0) & (apart <= past + c.right))[None, None] & (valid[:, there] & (place >= 0) & (place < T))[
        :, :, None
    ]
    q, k, v = q.astype(dtype), k[:, there].astype(dtype), v[:, there].astype(dtype)
    far = einsum("...i,io->...o", _waves(c), w.distance, dtype).reshape(-1, N, H).astype(dtype)
    scores = jnp.einsum("xuwnh,xucnh->xunwc", q, k, preferred_element_type=jnp.float32)
    by_distance = jnp.einsum("xuwnh,fnh->xunwf", q, far, preferred_element_type=jnp.float32)
    index = jnp.clip(apart, 0, past + c.right)
    scores = scores + jnp.take_along_axis(by_distance, jnp.broadcast_to(index, scores.shape), -1)
    scores = jnp.where(seen[:, :, None], softcap(scores, c.cap), MASKED)
    weights = jax.nn.softmax(scores, -1).astype(dtype)
    out = jnp.einsum("xunwc,xucnh->xuwnh", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(X, blocks * c.block, -1)[:, :T]


def _mlp(x: Array, norm: Array, up: Array, down: Array, post_norm: Array, dtype: str) -> Array:
    h = jax.nn.silu(einsum("...i,io->...o", rms_norm(x, norm), up, dtype))
    return x + 0.5 * rms_norm(einsum("...i,io->...o", h, down, dtype), post_norm)


def _layer(w: Layers, x: Float[Array, "X T E"], valid: Bool[Array, "X T"], c: config.Usm, dtype: str) -> Array:
    x = _mlp(x, w.first_norm, w.first_up, w.first_down, w.first_post_norm, dtype)
    qkv = einsum("...i,io->...o", rms_norm(x, w.attention_norm), w.qkv, dtype)
    heads = _attend(w, qkv, valid, c, dtype)
    x = x + rms_norm(einsum("...i,io->...o", heads, w.output, dtype), w.attention_post_norm)
    x = jnp.where(valid[..., None], x, 0)
    value, gate = jnp.split(einsum("...i,io->...o", rms_norm(x, w.convolution_norm), w.convolution_in, dtype), 2, -1)
    h = jnp.pad(value * jax.nn.sigmoid(gate), ((0, 0), (c.kernel - 1, 0), (0, 0)))
    near = jnp.stack([h[:, i : i + x.shape[1]] for i in range(c.kernel)])
    h = jax.nn.silu(rms_norm(jnp.einsum("kxte,ke->xte", near, w.depthwise), w.depthwise_norm))
    x = x + einsum("...i,io->...o", h, w.convolution_out, dtype)
    x = _mlp(x, w.second_norm, w.second_up, w.second_down, w.second_post_norm, dtype)
    return rms_norm(x, w.last_norm)


def features(
    params: Usm, frames: Float[Array, "X T M"], lengths: Int[Array, " X"], c: config.Usm, dtype: str
) -> tuple[Float[Array, "X t E"], Bool[Array, "X t"]]:
    """A vector for every four frames of each sound, and whether it is of valid ones (zero where not)."""
    inside = jnp.arange(frames.shape[1]) < lengths[:, None]
    x = jnp.where(inside[..., None], frames, 0).astype(jnp.float32)[..., None]
    x = sharding.constrain(x, "chunks", None, None, None)
    x = _halve(_halve(x, params.kernel_1, params.scale_1), params.kernel_2, params.scale_2)
    x = einsum("...i,io->...o", x.reshape(*x.shape[:2], -1), params.subsampled, dtype)
    valid = inside[:, ::4]

    x = run_layers(params.layers, _layer_weights(c), x, lambda w, x: _layer(w, x, valid, c, dtype), c, dtype)
    return jnp.where(valid[..., None], x, 0), valid


def encode(
    params: Usm, frames: Float[Array, "B C T M"], lengths: Int[Array, "B C"], c: config.Usm, dtype: str
) -> tuple[Float[Array, "B A D"], Bool[Array, "B A"]]:
    """Chunks to A = C·T / (4·stack) vectors a row, and which of them are valid."""
    B, C, T, M = frames.shape
    x, valid = features(params, frames.reshape(B * C, T, M), lengths.reshape(-1), c, dtype)
    x, valid = x[:, :: c.stack], valid[:, :: c.stack]
    return einsum("...i,io->...o", x.reshape(B, -1, c.width), params.project, dtype), valid.reshape(B, -1)
