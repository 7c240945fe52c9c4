"""The key-value cache: what generation keeps so that each new token costs one step.

    prefill  rows of prompts, right padded   -> hidden of each row's last token, Cache with the prompt's keys and values
    decode   one token a row at its position -> hidden, Cache with that token added

Global layers keep every token, layers with a window only their window (:mod:`alhena.model.kv_cache`).
"""

from __future__ import annotations

import jax.numpy as jnp

from alhena.batch import Batch
from alhena.model import config, decoder
from alhena.model.embedding import lookup
from alhena.model.kv_cache import Cache, layer_kinds
from alhena.model.layers import rms_norm
from alhena.model.model import Params, embed
from alhena.shapes import Array, Float, Int


def prefill(params: Params, c: config.Model, batch: Batch, slots: int) -> tuple[Float[Array, "B D"], Cache]:
    """Reads one prompt a row (one segment, right padded) into a cache of ``slots`` places, at least the row's length."""
    length = batch.tokens.shape[1]
    if slots < length:
        raise ValueError(f"a cache of {slots} slots cannot hold rows of {length} tokens")
    x = embed(params, c, batch)
    packing = decoder.Packing(batch.segments, batch.positions)
    x, cache = decoder.run(params.layers, x, packing, c.decoder, c.compute_dtype, slots)
    last = jnp.maximum((batch.segments > 0).sum(1) - 1, 0)
    return rms_norm(jnp.take_along_axis(x, last[:, None, None], 1)[:, 0], params.norm), cache


def decode(
    params: Params, c: config.Model, tokens: Int[Array, " B"], positions: Int[Array, " B"], cache: Cache
) -> tuple[Float[Array, "B D"], Cache]:
    """One text, control or code token a row, written at and attending up to its position."""
    x = lookup(params.embedding, tokens, c.code_factors) * c.decoder.width**0.5
    x, cache = decoder.step(params.layers, x, positions, cache, c.decoder, c.compute_dtype)
    return rms_norm(x, params.norm), cache


def cache_bytes(c: config.Decoder, tokens: int, dtype: str = "bfloat16") -> int:
    """Bytes of a row's cache when its context is ``tokens`` long.

    >>> from dataclasses import replace
    >>> multi_query = config.Decoder(width=2048, layers=18, heads=8, head_dim=256, hidden=16384)
    >>> size(multi_query, 1), size(replace(multi_query, kv_heads=8), 1)
    (18432, 147456)
    >>> size(replace(multi_query, window=1024, global_every=6), 32768) / size(multi_query, 32768)
    0.19270833333333334
    """
    slots = sum(int(some.sum()) * ring_size for some, ring_size in layer_kinds(c, tokens))
    return slots * 2 * c.kv_heads * c.head_dim * jnp.dtype(dtype).itemsize
