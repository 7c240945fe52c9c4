"""The attention kernels that vendors ship, each with what it can do; :func:`fitting` chooses, and is the only place that does.

                           segments   window   cap   lengths            numbers
    TPU   splash attention    yes      yes     yes   multiples of 128   float32, bfloat16
    GPU   cuDNN               no       yes     no    any                bfloat16, float16, heads of up to 128

What none of them can do exactly is done by :func:`alhena.model.attention.blockwise`, which every platform compiles. Splash
attention is FlashAttention that skips blocks of a static mask (``jax.experimental.pallas.ops.tpu.splash_attention``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.shapes import Array, Float, Int

LANES = 128
Kernel = Callable[..., Array]  # of q, k, v, segments and options


@dataclass(frozen=True)
class AttentionOptions:
    """What causal attention computes, beside its operands."""

    window: int | None = None  # a query sees that many positions, its own among them; None: all up to its own
    scale: float | None = None  # multiplies the scores; None: H^-½
    cap: float | None = None  # scores s become cap·tanh(s / cap)
    packed: bool = True  # False: a row is one document and padding behind it, whose outputs nobody reads

    def scale_for(self, head_dim: int) -> float:
        return head_dim**-0.5 if self.scale is None else self.scale


def choose_kernel(q: Float[Array, "B L N H"], options: AttentionOptions) -> Kernel | None:
    """The kernel for queries like these on the platform that is compiled for, or None.

    The platform is that of the mesh in use, which may be one that is only compiled for, or else this process's own. Without a
    mesh several devices get none: kernels cannot be divided among devices unless told how.
    """
    device = sharding.device()
    if device is None and jax.device_count() > 1:
        return None
    kind = (device or jax.devices()[0]).device_kind
    if kind.startswith("TPU") and q.shape[1] % LANES == 0:
        return splash
    small = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    if kind.startswith("NVIDIA") and small and options.cap is None and not options.packed:
        return cudnn
    return None


def splash(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    options: AttentionOptions,
    interpret: bool = False,
) -> Float[Array, "B L N H"]:
    """Splash attention of every row. ``interpret`` runs it anywhere, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    L, window = q.shape[1], options.window
    size = math.gcd(L, 4 * LANES)
    sizes = library.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    mask = masks.CausalMask((L, L)) if window is None else masks.LocalMask((L, L), (window - 1, 0), 0)

    kernel = library.make_splash_mha(
        masks.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=options.cap,
        interpret=interpret,
    )
    heads = (a.swapaxes(1, 2) for a in ((q * options.scale_for(q.shape[-1])).astype(q.dtype), k, v))
    out = jax.vmap(kernel)(*heads, library.SegmentIds(segments, segments))
    return out.swapaxes(1, 2).astype(jnp.float32)


def cudnn(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    options: AttentionOptions,
) -> Float[Array, "B L N H"]:
    """cuDNN's FlashAttention. It knows no segments: rows hold one document each, and padding comes behind it."""
    near = None if options.window is None else (options.window - 1, 0)
    scale = options.scale_for(q.shape[-1])
    attention = partial(jax.nn.dot_product_attention, scale=scale, is_causal=True, implementation="cudnn")
    return attention(q, k, v, local_window_size=near).astype(jnp.float32)
