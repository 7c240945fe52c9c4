"""USM audio encoder: a conformer with local attention and relative positions (Zhang et al. 2023).

    frames [B, C, T, M] ─ two 3×3 convolutions, stride 2 in both dimensions ─ [B·C, T/4, E] ─ conformer layers ─ every stack-th vector ─► [B, A, D]

    one layer    ½ MLP ─ attention ─ causal convolution ─ ½ MLP ─ norm

A query attends to ``left`` positions up to its own and ``right`` after it. The queries of a block share one window of keys, so memory
is linear in the length of the audio:

    keys      · · ▪ ▪ ▪ ▪ ▪ ▪ · ·         block of 3 queries, left 4, right 0: a window of 6 keys
    queries           q₁ q₂ q₃

Scores have a second term that depends on the relative position alone (Transformer-XL, Dai et al. 2019). ``c.variant`` tells apart

               convolutions                                   keys           from the last layer to the decoder
    usm        padded at the end, cumulative group norm                      projection
    gemma3n    the same                                                      norm, projection, norm; the same vector after the end
    gemma4     padded on both sides, layer norm over channels × ln(1+e)/ln2  projection with bias, norm, projection

Tests compare the outputs with those of the open encoders. Their clamps of activations to ±1e10 are left out. Padding after the valid
frames does not change valid vectors: an audio is encoded as if it were alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding, spec
from alhena.model.attention.full import MASKED
from alhena.model.encoders.clipped import Clipped, clipped_matrix
from alhena.model.encoders.clipped import project as apply
from alhena.model.encoders.conformer import depthwise
from alhena.model.layers import rms_norm, run_layers, softcap
from alhena.model.linear import Weight, einsum
from alhena.model.spec import matrix, stacked, vector
from alhena.shapes import Array, Bool, Float, Int, pytree

GROUP_EPSILON = 1e-3
LAYER_EPSILON = 1e-6
# Of the keys in the scores, relative to the queries' factor 1 / ln 2 (variant gemma4).
KEY_SCALE = float(np.log(1 + np.e) / np.log(2))


@pytree
@dataclass(frozen=True)
class QueryKeyValue:
    """Projections of the attention where each has its own bounds."""

    query: Clipped  # [E, E]
    key: Clipped  # [E, E]
    value: Clipped  # [E, E]


@pytree
@dataclass(frozen=True)
class Layers:
    """Weights of the layers, stacked: as in :mod:`alhena.model.encoders.conformer`, plus norms after the MLPs and the attention."""

    first_norm: Array
    first_up: Weight | Clipped  # [E, F]
    first_down: Weight | Clipped  # [F, E]
    first_post_norm: Array
    attention_norm: Array
    qkv: Weight | QueryKeyValue  # [E, 3·E]
    query_scale: Array  # [H]; 0 means H^-½
    relative_key: Weight  # [E, E], from the sinusoids of a relative position to its key
    output: Weight | Clipped  # [E, E]
    attention_post_norm: Array
    convolution_norm: Array
    convolution_in: Weight | Clipped  # [E, 2·E]
    depthwise: Array  # [kernel, E]
    depthwise_norm: Array
    convolution_out: Weight | Clipped  # [E, E]
    second_norm: Array
    second_up: Weight | Clipped  # [E, F]
    second_down: Weight | Clipped  # [F, E]
    second_post_norm: Array
    last_norm: Array


@pytree
@dataclass(frozen=True)
class Usm:
    """Weights of the encoder."""

    kernel_1: Array  # [9, channels₁]
    scale_1: Array  # [channels₁]
    kernel_2: Array  # [9·channels₁, channels₂]
    scale_2: Array  # [channels₂]
    input_projection: Weight  # [M/4·channels₂, E]
    layers: Layers
    project: Weight  # [E or O, D]
    output: Weight | None = None  # [E, O]
    output_bias: Array | None = None  # [O]
    project_norm: Array | None = None  # [E]
    # The vector of every position after the end of the audio.
    padding: Array | None = None  # [D]


def _layer_weights(c: config.Usm) -> Layers:
    E, F, clip = c.width, c.hidden, c.clipped
    post_norm = vector(E, -1 + 1 / np.sqrt(2 * c.layers))
    qkv: Any = matrix(2, (E, 3 * E), ("width", "heads"), quantize=True)
    if clip:
        qkv = QueryKeyValue(*(clipped_matrix(number, (E, E), ("width", "heads"), clip) for number in (2, 14, 15)))
    layer = Layers(
        first_norm=vector(E),
        first_up=clipped_matrix(0, (E, F), ("width", "hidden"), clip),
        first_down=clipped_matrix(1, (F, E), ("hidden", "width"), clip),
        first_post_norm=post_norm,
        attention_norm=vector(E),
        qkv=qkv,
        query_scale=vector(E // c.heads),
        relative_key=matrix(3, (E, E), ("width", "hidden")),
        output=clipped_matrix(4, (E, E), ("heads", "width"), clip),
        attention_post_norm=post_norm,
        convolution_norm=vector(E),
        convolution_in=clipped_matrix(5, (E, 2 * E), ("width", "hidden"), clip),
        depthwise=depthwise(6, c),
        depthwise_norm=vector(E),
        convolution_out=clipped_matrix(7, (E, E), ("hidden", "width"), clip, gain=(2 * c.layers) ** -0.5),
        second_norm=vector(E),
        second_up=clipped_matrix(8, (E, F), ("width", "hidden"), clip),
        second_down=clipped_matrix(9, (F, E), ("hidden", "width"), clip),
        second_post_norm=post_norm,
        last_norm=vector(E),
    )
    return stacked(c.layers, layer)


def weights(c: config.Usm, width: int) -> Usm:
    """The specification of every weight, for a decoder of model width ``width``."""
    (first, second), is_3n, O = c.channels, c.variant == "gemma3n", c.output
    return Usm(
        kernel_1=matrix(10, (9, first), (None, None)),
        scale_1=vector(first),
        kernel_2=matrix(11, (9 * first, second), (None, None)),
        scale_2=vector(second),
        input_projection=matrix(12, (c.mels // 4 * second, c.width), (None, "width"), quantize=True),
        layers=_layer_weights(c),
        project=matrix(13, (O or c.width, width), ("hidden", "width"), quantize=True),
        output=matrix(16, (c.width, O), ("hidden", "width"), quantize=True) if O else None,
        output_bias=vector(O) if O else None,
        project_norm=vector(c.width) if is_3n else None,
        padding=vector(width) if is_3n else None,
    )


def init(key: Array, c: config.Usm, width: int) -> Usm:
    """Random weights, for a decoder of model width ``width``."""
    return spec.init(key, weights(c, width))


def _subsample(
    x: Float[Array, "X T F I"], valid: Bool[Array, "X T"], kernel: Array, scale: Float[Array, " O"], centered: bool
) -> Float[Array, "X (T+1)//2 (F+1)//2 O"]:
    """3×3 convolution of stride 2, norm, ReLU. Padding in time is on both sides (``centered``) or all at the end.

    Frames that are not valid are zeros to the convolution, as after the end of the audio.
    """
    x = jnp.where(valid[:, :, None, None], x, 0)
    shape = (3, 3, x.shape[3], kernel.shape[1])
    time_padding, mel_padding = (1, 1) if centered else (0, 2), (1, 1)
    layouts = ("NHWC", "HWIO", "NHWC")
    padding = (time_padding, mel_padding)
    kernel = kernel.astype(jnp.float32).reshape(shape)
    x = jax.lax.conv_general_dilated(x, kernel, (2, 2), padding, dimension_numbers=layouts)
    if centered:
        centered_x = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centered_x).mean(-1, keepdims=True)
        return jax.nn.relu(centered_x * jax.lax.rsqrt(variance + LAYER_EPSILON) * (1 + scale))
    count = x.shape[2] * x.shape[3] * jnp.arange(1, x.shape[1] + 1)[None, :, None, None]
    cumulative_mean = lambda a: jnp.cumsum(a.sum((2, 3), keepdims=True), 1) / count  # noqa: E731
    centered_x = x - cumulative_mean(x)
    return jax.nn.relu(centered_x * jax.lax.rsqrt(cumulative_mean(centered_x**2) + GROUP_EPSILON) * (1 + scale))


def _sinusoids(c: config.Usm) -> Float[Array, "R E"]:
    """Sinusoidal embeddings of the R = left + right relative positions, from ``left - 1`` down to ``-right``."""
    frequencies = 1e4 ** (-np.arange(c.width // 2) / max(c.width // 2 - 1, 1))
    angle = np.arange(c.left - 1, -c.right - 1, -1)[:, None] * frequencies
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], 1), jnp.float32)


def _attend(
    w: Layers, qkv: Float[Array, "X T QKV"], valid: Bool[Array, "X T"], c: config.Usm, dtype: str
) -> Float[Array, "X T QKV//3"]:
    """Local attention of all heads, in blocks of ``c.block`` queries."""
    X, T, _ = qkv.shape
    N, H, past = c.heads, c.width // c.heads, c.left - 1
    blocks, window = -(-T // c.block), c.block + past + c.right
    q, k, v = jnp.split(qkv.reshape(X, T, 3 * N, H), 3, axis=2)
    q = q * (H**-0.5 / np.log(2)) * jax.nn.softplus(w.query_scale.astype(jnp.float32))
    k = k * KEY_SCALE if c.variant == "gemma4" else k
    q = jnp.pad(q, ((0, 0), (0, blocks * c.block - T), (0, 0), (0, 0))).reshape(X, blocks, c.block, N, H)

    # Positions of each block's keys, and which of them each query attends to. Offset 0 is ``past`` positions before the query.
    positions = jnp.arange(blocks)[:, None] * c.block + jnp.arange(window) - past
    index = jnp.clip(positions, 0, T - 1)
    offset = jnp.arange(window) - jnp.arange(c.block)[:, None]
    in_reach = (offset >= 0) & (offset <= past + c.right)
    is_key = valid[:, index] & (positions >= 0) & (positions < T)
    mask = in_reach[None, None] & is_key[:, :, None]

    q, k, v = q.astype(dtype), k[:, index].astype(dtype), v[:, index].astype(dtype)
    relative_keys = einsum("...i,io->...o", _sinusoids(c), w.relative_key, dtype).reshape(-1, N, H).astype(dtype)
    scores = jnp.einsum("xuwnh,xucnh->xunwc", q, k, preferred_element_type=jnp.float32)
    relative_scores = jnp.einsum("xuwnh,fnh->xunwf", q, relative_keys, preferred_element_type=jnp.float32)
    offset = jnp.clip(offset, 0, past + c.right)
    scores = scores + jnp.take_along_axis(relative_scores, jnp.broadcast_to(offset, scores.shape), -1)
    scores = jnp.where(mask[:, :, None], softcap(scores, c.cap), MASKED)
    weights = jax.nn.softmax(scores, -1).astype(dtype)
    out = jnp.einsum("xunwc,xucnh->xuwnh", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(X, blocks * c.block, -1)[:, :T]


def _mlp(
    x: Float[Array, "X T E"],
    norm: Float[Array, " E"],
    up: Weight | Clipped,
    down: Weight | Clipped,
    post_norm: Float[Array, " E"],
    dtype: str,
) -> Float[Array, "X T E"]:
    """Adds half of a SiLU MLP's normalized output to ``x``."""
    h = jax.nn.silu(apply(rms_norm(x, norm), up, dtype))
    return x + 0.5 * rms_norm(apply(h, down, dtype), post_norm)


def _project_heads(x: Float[Array, "X T E"], w: Weight | QueryKeyValue, dtype: str) -> Float[Array, "X T QKV"]:
    if isinstance(w, QueryKeyValue):
        return jnp.concatenate([apply(x, part, dtype) for part in (w.query, w.key, w.value)], -1)
    return apply(x, w, dtype)


def _layer(
    w: Layers, x: Float[Array, "X T E"], valid: Bool[Array, "X T"], c: config.Usm, dtype: str
) -> Float[Array, "X T E"]:
    x = _mlp(x, w.first_norm, w.first_up, w.first_down, w.first_post_norm, dtype)
    qkv = _project_heads(rms_norm(x, w.attention_norm), w.qkv, dtype)
    heads = _attend(w, qkv, valid, c, dtype)
    x = x + rms_norm(apply(heads, w.output, dtype), w.attention_post_norm)
    x = jnp.where(valid[..., None], x, 0)
    value, gate = jnp.split(apply(rms_norm(x, w.convolution_norm), w.convolution_in, dtype), 2, -1)
    h = jnp.pad(value * jax.nn.sigmoid(gate), ((0, 0), (c.kernel - 1, 0), (0, 0)))
    taps = jnp.stack([h[:, i : i + x.shape[1]] for i in range(c.kernel)])
    h = jax.nn.silu(rms_norm(jnp.einsum("kxte,ke->xte", taps, w.depthwise), w.depthwise_norm))
    x = x + apply(h, w.convolution_out, dtype)
    x = _mlp(x, w.second_norm, w.second_up, w.second_down, w.second_post_norm, dtype)
    return rms_norm(x, w.last_norm)


def features(
    params: Usm, frames: Float[Array, "X T M"], lengths: Int[Array, " X"], c: config.Usm, dtype: str
) -> tuple[Float[Array, "X t E"], Bool[Array, "X t"]]:
    """One vector per four frames, zero where invalid, and the mask of valid vectors."""
    valid_frames, centered = jnp.arange(frames.shape[1]) < lengths[:, None], c.variant == "gemma4"
    x = sharding.constrain(frames.astype(jnp.float32)[..., None], "chunks", None, None, None)
    x = _subsample(x, valid_frames, params.kernel_1, params.scale_1, centered)
    x = _subsample(x, valid_frames[:, ::2], params.kernel_2, params.scale_2, centered)
    x = einsum("...i,io->...o", x.reshape(*x.shape[:2], -1), params.input_projection, dtype)
    valid = valid_frames[:, ::4]

    x = run_layers(params.layers, _layer_weights(c), x, lambda w, x: _layer(w, x, valid, c, dtype), c, dtype)
    return jnp.where(valid[..., None], x, 0), valid


def _embed(params: Usm, x: Float[Array, "X t E"], c: config.Usm, dtype: str) -> Float[Array, "X t D"]:
    """From the last layer to the model width."""
    if params.output is not None and params.output_bias is not None:
        x = einsum("...i,io->...o", x, params.output, dtype) + params.output_bias
    if c.variant != "usm":
        x = rms_norm(x, jnp.zeros(x.shape[-1]) if params.project_norm is None else params.project_norm)
    x = einsum("...i,io->...o", x, params.project, dtype)
    return rms_norm(x, jnp.zeros(x.shape[-1])) if c.variant == "gemma3n" else x


def encode(
    params: Usm, frames: Float[Array, "B C T M"], lengths: Int[Array, "B C"], c: config.Usm, dtype: str
) -> tuple[Float[Array, "B A D"], Bool[Array, "B A"]]:
    """A = C·T / (4·stack) soft tokens per sequence, and the mask of valid ones: all of an audio with Gemma 3n."""
    B, C, T, M = frames.shape
    x, valid = features(params, frames.reshape(B * C, T, M), lengths.reshape(-1), c, dtype)
    x, valid = _embed(params, x[:, :: c.stack], c, dtype), valid[:, :: c.stack]
    if params.padding is not None:
        x = jnp.where(valid[..., None], x, params.padding)
        valid = jnp.broadcast_to(valid[:, :1], valid.shape)
    return x.reshape(B, valid.size // B, -1), valid.reshape(B, -1)
