"""Gemma 3n's layers: parallel residual streams (AltUp), a learned low-rank residual (LAuReL), and a sparse MLP.

    enter    h_0 = x;  h_j = x · entry_j, as large as x                                       [streams, B, L, D]
    predict  p_j = h_j + Σ_k C_jk h_k;  C from h_0
    layer    b = layer(p_0): only one stream goes through attention and MLP
    correct  h_j = p_j + c_j (b − p_0);  c from b
    leave    mean of h_0 and of h_j · exit_j, as large as h_0

The coefficients C and c of each token come from a small router. So a token has the memory of several streams and the cost of one
(Alternating Updates, Baykal et al. 2023; LAuReL, Menghani et al. 2024; the sparse gate: Spark Transformer, You et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config
from alhena.model.layers import rms_norm
from alhena.model.linear import Weight, einsum, slice_stack
from alhena.model.spec import Constant, Normal, WeightSpec, matrix, stacked, vector
from alhena.shapes import Array, Float, pytree

# Of a stream's mean square, when it is scaled to that of another.
LEAST_SQUARE = 1e-5


@pytree
@dataclass(frozen=True)
class Layer:
    """Weights of one layer, of S streams."""

    router_norm: Array  # [D]
    router: Array  # [D, S]
    predict: Array  # [S, S·S]
    correct: Array  # [S, S]
    output_scale: Array  # [D], a factor
    laurel_left: Weight  # [D, R]
    laurel_right: Weight  # [R, D]
    laurel_post_norm: Array  # [D]


@pytree
@dataclass(frozen=True)
class Streams:
    """Weights before the first layer and after the last one."""

    entry: Weight  # [S-1, D, D]
    exit: Weight  # [S-1, D, D]


def _settings(c: config.Decoder) -> config.AltUp:
    if c.altup is None:
        raise ValueError("Decoder.altup is None; a decoder with several streams needs a config.AltUp")
    return c.altup


def layer_weights(c: config.Decoder) -> Layer:
    """Specifications of the weights of one layer: at first a prediction is the stream itself, and every correction complete."""
    D, S, R = c.width, _settings(c).streams, _settings(c).laurel_rank

    def small(shape: tuple[int, ...], axes: tuple[str | None, ...], initializer: Any) -> Any:
        return WeightSpec(shape, axes, initializer, "adam", decay=False)

    return Layer(
        router_norm=vector(D),
        router=small((D, S), ("width", None), Normal(0)),
        predict=small((S, S * S), (None, None), Constant()),
        correct=small((S, S), (None, None), Constant()),
        output_scale=vector(D, 1.0),
        laurel_left=matrix(1, (D, R), ("width", None), quantize=True),
        laurel_right=matrix(2, (R, D), (None, "width"), quantize=True),
        laurel_post_norm=vector(D, -1 + 1 / np.sqrt(2 * c.layers)),
    )


def weights(c: config.Decoder) -> Streams:
    """Specifications of the weights before the first layer and after the last one."""
    D, others = c.width, _settings(c).streams - 1
    return Streams(
        entry=stacked(others, matrix(0, (D, D), ("width", None), quantize=True)),
        exit=stacked(others, matrix(1, (D, D), ("width", None), quantize=True)),
    )


def _matmul(x: Float[Array, "B L I"], w: Weight, dtype: str) -> Float[Array, "B L O"]:
    return einsum("...i,io->...o", x, w, dtype)


def _scaled_to(target: Float[Array, "B L D"], x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """``x`` with the root mean square of ``target``."""
    square = jnp.mean(x * x, -1, keepdims=True)
    return x * jnp.sqrt(jnp.mean(target * target, -1, keepdims=True) / jnp.maximum(square, LEAST_SQUARE))


def enter(w: Streams, x: Float[Array, "B L D"], dtype: str) -> Float[Array, "streams B L D"]:
    """The streams of embeddings."""
    others = [slice_stack(w.entry, j) for j in range(_others(w))]
    return jnp.stack([x, *(_scaled_to(x, _matmul(x, matrix, dtype)) for matrix in others)])


def leave(w: Streams, streams: Float[Array, "streams B L D"], dtype: str) -> Float[Array, "B L D"]:
    """The mean of the streams, after the last layer."""
    first, *others = streams
    matrices = [slice_stack(w.exit, j) for j in range(_others(w))]
    scaled = [_scaled_to(first, _matmul(x, m, dtype)) for x, m in zip(others, matrices, strict=True)]
    return sum(scaled, first) / len(streams)


def _others(w: Streams) -> int:
    """Number of streams beside the first."""
    return len(jax.tree.leaves(w.entry)[0])


def _route(w: Layer, x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B L S"]:
    """What the coefficients of each token are computed from."""
    return jnp.tanh(_matmul(rms_norm(x, w.router_norm) / x.shape[-1], w.router, dtype))


def predict(w: Layer, streams: Float[Array, "streams B L D"], dtype: str) -> Float[Array, "streams B L D"]:
    """The streams after a layer, predicted from those before it."""
    n = len(streams)
    coefficients = _matmul(_route(w, streams[0], dtype), w.predict, "float32").reshape(*streams.shape[1:3], n, n)
    # Sums of a few terms: matrices as small as these are slow to multiply.
    mixed = [sum(coefficients[:, :, j, k, None] * streams[k] for k in range(n)) for j in range(n)]
    return streams + jnp.stack(mixed)


def correct(
    w: Layer, predicted: Float[Array, "streams B L D"], computed: Float[Array, "B L D"], dtype: str
) -> Float[Array, "streams B L D"]:
    """The streams after a layer: predicted, and corrected by what the layer computed from the first of them."""
    coefficients = 1 + _matmul(_route(w, computed, dtype), w.correct, "float32")
    return predicted + jnp.moveaxis(coefficients, -1, 0)[..., None] * (computed - predicted[0])


def scaled_output(w: Layer, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """The first stream as the per-layer inputs of the others read it."""
    return x * w.output_scale


def laurel(w: Layer, x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B L D"]:
    """The learned residual: the normalized input of a layer and a low-rank matmul of it."""
    return x + rms_norm(_matmul(_matmul(x, w.laurel_left, dtype), w.laurel_right, dtype), w.laurel_post_norm)


def sparse(gate: Float[Array, "B L F"], sparsity: float) -> Float[Array, "B L F"]:
    """A gate of which a share of ``1 - sparsity`` remains, if it is normally distributed: what exceeds that quantile."""
    mean, deviation = gate.mean(-1, keepdims=True), gate.std(-1, keepdims=True)
    return jnp.maximum(gate - mean - deviation * NormalDist().inv_cdf(sparsity), 0)
