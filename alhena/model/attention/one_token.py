"""Attention of one token of each sequence by the compiled kernel: norms, RoPE, the write to the pages, and attention in one call."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from alhena.model import config
from alhena.model.attention import native
from alhena.model.attention.paged_cache import PagedCache, Pages, Tokens, kinds
from alhena.model.transformer.layer_kinds import LayerKind
from alhena.shapes import Array, Float, Int


@dataclass(frozen=True)
class Projected:
    """Queries of one layer, keys and values if it has its own, and the scales of their norms."""

    q: Float[Array, "B 1 NH"]
    # Of keys and values; empty where the layer shares those of an earlier one.
    kv: list[Float[Array, "B 1 KH"]]
    norms: tuple[Float[Array, " H"] | None, Float[Array, " H"] | None]
    # Of queries and of keys.
    rope: Float[Array, "#B 1 2 H"]


def is_available(length: int, kind: LayerKind) -> bool:
    """Whether the kernel computes so many tokens in a layer of a kind."""
    return length == 1 and kind.head_dim % 32 == 0 and native.attends(kind.head_dim)


def attend(
    p: Projected, cache: PagedCache, index: Int[Array, " kinds"], at: Tokens, c: config.Decoder
) -> tuple[Float[Array, "B 1 N H"], PagedCache]:
    """The heads, and the cache with the keys and values written. ``index`` is that of the layer in each entry of the cache."""
    B, H = len(p.q), p.rope.shape[-1]
    flat = [a.reshape(B, -1) for a in (p.q, *(p.kv or [jnp.zeros((B, 0))] * 2))]
    query_norm, key_norm = p.norms
    scales = jnp.zeros(0)
    if query_norm is not None:
        scales = jnp.concatenate([query_norm, query_norm if key_norm is None else key_norm]).astype(jnp.float32)
    inputs = (*flat, scales, p.rope.reshape(B, 2 * H), at.positions[:, 0], at.valid[:, 0], index)
    settings = {
        "windows": np.array([0 if k.is_global else c.window for k in kinds(c)], np.int64),
        "heads": np.int64(c.heads),
        "has_norms": query_norm is not None,
        "value_norm": c.value_norm,
        "scale": np.float32(c.attention_scale(H)),
        "cap": np.float32(c.attention_softcap or 0),
    }
    out, arrays = native.attend_token(inputs, [pages.arrays for pages in cache], at.tables, settings)
    return out.reshape(B, 1, c.heads, H), tuple(Pages(*of_entry) for of_entry in arrays)
