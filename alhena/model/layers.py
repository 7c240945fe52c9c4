"""Layers that the decoder and the encoders share: RMSNorm, RoPE, GeGLU, soft caps, the scan over stacked layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from alhena.model import config, sharding, spec
from alhena.model.attention import native
from alhena.model.linear import slice_stack
from alhena.model.quantized.layout import is_quantized
from alhena.shapes import Array, Float, Shaped

Tree = TypeVar("Tree")

EPSILON = 1e-6
# Layers of an encoder that are unrolled.
UNROLLED = 4


# Intermediate values are cheaper to compute again than to save: they are a third of a layer's memory, and a CPU is faster without them.
@jax.checkpoint
def _plain_rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"] | None) -> Float[Array, "... D"]:
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + EPSILON)
    # A bfloat16 scale would lose digits in the sum.
    return x if scale is None else x * (1 + scale.astype(jnp.float32))


@jax.custom_jvp
def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"] | None = None) -> Float[Array, "... D"]:
    """Root-mean-square norm; the stored scale is an offset from one, as in Gemma (Zhang & Sennrich 2019). None: no scale.

    That of a few rows is computed by a kernel, so that a row has the same bits whatever the number of rows.
    """
    if native.normalizes(x) and not sharding.has_mesh():
        return native.normalize(x, scale)
    return _plain_rms_norm(x, scale)


@rms_norm.defjvp
def _rms_norm_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    return jax.jvp(_plain_rms_norm, primals, tangents)


def rope_table(
    positions: Shaped[Array, "... L"], head_dim: int, base: float, fraction: float = 1.0
) -> Float[Array, "... L H"]:
    """RoPE table: cosines and sines, concatenated along the last dimension (RoFormer, Su et al. 2021).

    Only the first ``fraction`` of the frequencies turn; the others are 0.
    """
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if fraction < 1:
        frequency = jnp.where(jnp.arange(head_dim // 2) < int(fraction * head_dim / 2), frequency, 0)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def rope(x: Float[Array, "B L N H"], table: Float[Array, "#B L H"]) -> Float[Array, "B L N H"]:
    """Applies RoPE: rotates the two halves of each head by its position."""
    cos, sin = jnp.split(table[..., None, :], 2, -1)
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def softcap(scores: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """Soft cap of scores to ±cap (Gemma Team 2024, arXiv:2408.00118); None: unchanged."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


@jax.checkpoint
def gated(gate: Float[Array, "... F"], up: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """GeGLU: gelu(gate) · up (Shazeer 2020)."""
    return jax.nn.gelu(gate, approximate=True) * up


def run_layers(
    stack: Tree,
    specs: Tree,
    x: Array,
    layer: Callable[[Tree, Array], Array],
    c: config.Vision | config.GemmaVision | config.Conformer,
    dtype: str,
) -> Array:
    """Applies the stacked layers of an encoder in order.

    ``specs`` are the specifications of the stacked weights. Few layers are unrolled, which runs faster on a CPU; many are scanned,
    which compiles faster.
    """

    def body(x: Array, w: Tree) -> tuple[Array, None]:
        return layer(spec.gathered(w, specs, dtype), x), None

    if c.remat:
        body = jax.checkpoint(body, prevent_cse=False)
    leaves, unroll = jax.tree.leaves(stack, is_leaf=is_quantized), c.layers if c.layers <= UNROLLED else 1
    in_bfloat16 = unroll == 1 and any(leaf.dtype == jnp.bfloat16 for leaf in leaves if not is_quantized(leaf))
    if in_bfloat16 or any(map(is_quantized, leaves)):
        # A scan over a stack of bfloat16 would convert all of it first; a quantized stack is never sliced.
        indices = jnp.arange(c.layers)
        return jax.lax.scan(lambda x, index: body(x, slice_stack(stack, index)), x, indices, unroll=unroll)[0]
    return jax.lax.scan(body, x, stack, unroll=unroll)[0]
