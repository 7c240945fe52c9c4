"""Conformer audio encoder: log-mel frames, attention within fixed chunks (Gulati et al. 2020; USM, Zhang et al. 2023).

    frames [B, C, T, M] ─ two stride-2 convolutions ─ [B·C, T/4, E] ─ conformer layers ─ stack neighbors ─► [B, C, T/8, D]

Each chunk comes with its number of valid frames. The output vectors of valid frames, in order, are the soft tokens of the audio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import config, sharding, spec
from alhena.model.attention.full import dense_attention
from alhena.model.layers import rms_norm, rope, rope_table, run_layers
from alhena.model.linear import Weight, einsum
from alhena.model.spec import Normal, WeightSpec, matrix, stacked, vector
from alhena.shapes import Array, Bool, Float, Int, pytree


@pytree
@dataclass(frozen=True)
class Layers:
    """Weights of the conformer layers, stacked: half-step MLP, attention, convolution, half-step MLP, norm."""

    first_norm: Array
    first_up: Weight  # [E, F]
    first_down: Weight  # [F, E]
    attention_norm: Array
    qkv: Weight  # [E, 3·E]
    output: Weight  # [E, E]
    convolution_norm: Array
    convolution_in: Weight  # [E, 2·E]
    depthwise: Array  # [kernel, E]
    depthwise_norm: Array
    convolution_out: Weight  # [E, E]
    second_norm: Array
    second_up: Weight  # [E, F]
    second_down: Weight  # [F, E]
    last_norm: Array


@pytree
@dataclass(frozen=True)
class Conformer:
    """Weights of the encoder."""

    subsample_1: Weight  # [3·M, E]
    subsample_2: Weight  # [3·E, E]
    layers: Layers
    project: Weight  # [stack·E, D]


def _layer_weights(c: config.Conformer) -> Layers:
    E, F, small = c.width, c.hidden, (4 * c.layers) ** -0.5
    layer = Layers(
        first_norm=vector(E),
        first_up=matrix(0, (E, F), ("width", "hidden"), quantize=True),
        first_down=matrix(1, (F, E), ("hidden", "width"), gain=small, quantize=True),
        attention_norm=vector(E),
        qkv=matrix(2, (E, 3 * E), ("width", "heads"), quantize=True),
        output=matrix(3, (E, E), ("heads", "width"), gain=small, quantize=True),
        convolution_norm=vector(E),
        convolution_in=matrix(4, (E, 2 * E), ("width", "hidden"), quantize=True),
        depthwise=depthwise(5, c),
        depthwise_norm=vector(E),
        convolution_out=matrix(6, (E, E), ("hidden", "width"), gain=small, quantize=True),
        second_norm=vector(E),
        second_up=matrix(7, (E, F), ("width", "hidden"), quantize=True),
        second_down=matrix(8, (F, E), ("hidden", "width"), gain=small, quantize=True),
        last_norm=vector(E),
    )
    return stacked(c.layers, layer)


def depthwise(key: int, c: config.Conformer) -> Any:
    """Specification of a depthwise convolution kernel ``[kernel, E]``: no matrix of a linear layer, so Adam trains it."""
    return WeightSpec((c.kernel, c.width), (None, None), Normal(key), "adam", decay=False)


def weights(c: config.Conformer, width: int) -> Conformer:
    """The specification of every weight, for a decoder of model width ``width``."""
    E = c.width
    return Conformer(
        subsample_1=matrix(9, (3 * c.mels, E), (None, "width"), quantize=True),
        subsample_2=matrix(10, (3 * E, E), ("width", "hidden"), quantize=True),
        layers=_layer_weights(c),
        project=matrix(11, (c.stack * E, width), ("hidden", "width"), quantize=True),
    )


def init(key: Array, c: config.Conformer, width: int) -> Conformer:
    """Random weights, for a decoder of model width ``width``."""
    return spec.init(key, weights(c, width))


def _subsample(x: Float[Array, "X T I"], w: Weight, dtype: str) -> Float[Array, "X T//2 O"]:
    """Convolution over time, kernel size 3 and stride 2, as one matmul."""
    padded = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))
    windows = jnp.concatenate([padded[:, 0:-1:2], padded[:, 1::2], x[:, 1::2]], -1)
    return einsum("...i,io->...o", windows, w, dtype)


def _depthwise(x: Float[Array, "X T E"], w: Float[Array, "k E"]) -> Float[Array, "X T E"]:
    """Depthwise convolution over time, centered."""
    k, T = w.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (k // 2, k - 1 - k // 2), (0, 0)))
    return sum((padded[:, i : i + T] * w[i] for i in range(1, k)), padded[:, :T] * w[0])


def _mlp(
    x: Float[Array, "X T E"],
    norm: Float[Array, " E"],
    up: Weight,
    down: Weight,
    dtype: str,
) -> Float[Array, "X T E"]:
    """Adds half of a SiLU MLP's output to ``x``."""
    h = jax.nn.silu(einsum("...i,io->...o", rms_norm(x, norm), up, dtype))
    return x + 0.5 * einsum("...i,io->...o", h, down, dtype)


def _layer(
    w: Layers,
    x: Float[Array, "X T E"],
    valid: Bool[Array, "X T"],
    rotary: Float[Array, "1 T H"],
    c: config.Conformer,
    dtype: str,
) -> Float[Array, "X T E"]:
    X, T, E = x.shape
    x = _mlp(x, w.first_norm, w.first_up, w.first_down, dtype)
    qkv = einsum("...i,io->...o", rms_norm(x, w.attention_norm), w.qkv, dtype).reshape(X, T, 3 * c.heads, -1)
    q, k, v = jnp.split(qkv, 3, axis=2)
    q, k, v = (a.astype(dtype) for a in (rope(q, rotary), rope(k, rotary), v))
    heads = dense_attention(q, k, v, jnp.broadcast_to(valid[:, None, :], (X, T, T)))
    x = x + einsum("...i,io->...o", heads.reshape(X, T, E), w.output, dtype)
    value, gate = jnp.split(einsum("...i,io->...o", rms_norm(x, w.convolution_norm), w.convolution_in, dtype), 2, -1)
    h = jnp.where(valid[:, :, None], value * jax.nn.sigmoid(gate), 0)
    h = jax.nn.silu(rms_norm(_depthwise(h, w.depthwise), w.depthwise_norm))
    x = x + einsum("...i,io->...o", h, w.convolution_out, dtype)
    x = _mlp(x, w.second_norm, w.second_up, w.second_down, dtype)
    return rms_norm(x, w.last_norm)


def features(
    params: Conformer, frames: Float[Array, "X T M"], lengths: Int[Array, " X"], c: config.Conformer, dtype: str
) -> tuple[Float[Array, "X t E"], Bool[Array, "X t"]]:
    """One vector per four frames, zero where invalid, and the mask of valid vectors."""
    T = frames.shape[1]
    valid_frames = jnp.arange(T) < lengths[:, None]
    x = jnp.where(valid_frames[..., None], frames, 0).astype(jnp.float32)
    x = sharding.constrain(x, "chunks", None, None)
    x = jax.nn.silu(_subsample(x, params.subsample_1, dtype))
    x = jax.nn.silu(_subsample(x, params.subsample_2, dtype))
    valid = valid_frames[:, ::4]
    rotary = rope_table(jnp.arange(T // 4)[None], c.width // c.heads, 1_000.0)

    x = run_layers(params.layers, _layer_weights(c), x, lambda w, x: _layer(w, x, valid, rotary, c, dtype), c, dtype)
    return jnp.where(valid[:, :, None], x, 0), valid


def encode(
    params: Conformer, frames: Float[Array, "B C T M"], lengths: Int[Array, "B C"], c: config.Conformer, dtype: str
) -> tuple[Float[Array, "B A D"], Bool[Array, "B A"]]:
    """A = C·T / (4·stack) soft tokens per sequence, and the mask of valid ones."""
    B, C, T, M = frames.shape
    x, valid = features(params, frames.reshape(B * C, T, M), lengths.reshape(-1), c, dtype)
    vectors = einsum("...i,io->...o", x.reshape(B, C * T // c.frames_per_token, -1), params.project, dtype)
    return vectors, valid[:, :: c.stack].reshape(B, -1)
