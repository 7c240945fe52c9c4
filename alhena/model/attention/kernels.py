"""Attention kernels that vendors ship; :func:`choose_kernel` is the only place that chooses one.

Sequences are packed: a kernel must have segments. On TPUs splash attention has them: FlashAttention that skips blocks of a static mask
(``jax.experimental.pallas.ops.tpu.splash_attention``), for lengths that are multiples of 128. All other cases use
:func:`alhena.model.attention.full.blockwise_attention`, which every platform compiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.shapes import Array, Float, Int

LANES = 128
# Called with q, k, v, segments and options.
Kernel = Callable[..., Array]


@dataclass(frozen=True)
class AttentionOptions:
    """Static options of causal attention."""

    # A query attends to that many positions, its own included; None: all up to its own.
    window: int | None = None
    # Multiplies the scores; None: H^-½.
    scale: float | None = None
    # Scores s become cap·tanh(s / cap).
    cap: float | None = None

    def scale_for(self, head_dim: int) -> float:
        """The factor of the scores for heads of this size."""
        return head_dim**-0.5 if self.scale is None else self.scale


def choose_kernel(q: Float[Array, "B L N H"]) -> Kernel | None:
    """The kernel for these queries on the target platform, or None.

    The platform is that of the current mesh, which may be abstract (for ahead-of-time compilation), or else that of this process.
    Without a mesh several devices get none: a kernel is partitioned only by an explicit ``shard_map``.
    """
    device = sharding.device()
    if device is None and jax.device_count() > 1:
        return None
    kind = (device or jax.devices()[0]).device_kind
    return splash if kind.startswith("TPU") and q.shape[1] % LANES == 0 else None


def splash(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    segments: Int[Array, "B L"],
    options: AttentionOptions,
    interpret: bool = False,
) -> Float[Array, "B L N H"]:
    """Splash attention of every sequence. ``interpret`` runs it on any platform, slowly."""
    # Imported here: the TPU library takes seconds to import, and only a TPU runs it.
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
