"""Audio of Gemma 4 Unified: no encoder, each 40 ms of raw samples are normalized and projected to a soft token.

frames [B, C, T, 640] ─ RMSNorm without scale ─ projection ─► [B, C·T, D]
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from alhena.model import config
from alhena.model.layers import rms_norm
from alhena.model.linear import Weight, einsum
from alhena.model.spec import matrix
from alhena.shapes import Array, Bool, Float, Int, pytree


@pytree
@dataclass(frozen=True)
class UnifiedAudio:
    """Weights of the embedder."""

    project: Weight  # [M, D]


def weights(c: config.UnifiedAudio, width: int) -> UnifiedAudio:
    """The specification of every weight, for a decoder of model width ``width``."""
    return UnifiedAudio(matrix(0, (c.samples_per_token, width), (None, "width"), quantize=True))


def encode(
    params: UnifiedAudio,
    frames: Float[Array, "B C T M"],
    lengths: Int[Array, "B C"],
    c: config.UnifiedAudio,
    dtype: str,
) -> tuple[Float[Array, "B A D"], Bool[Array, "B A"]]:
    """A = C·T soft tokens per sequence, one per frame, and the mask of valid ones."""
    B, C, T, M = frames.shape
    normalized = rms_norm(frames.astype(jnp.float32), jnp.zeros(M, jnp.float32))
    vectors = einsum("...i,io->...o", normalized.reshape(B, C * T, M), params.project, dtype)
    return vectors, (jnp.arange(T) < lengths[..., None]).reshape(B, C * T)
