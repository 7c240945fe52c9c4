"""The key-value cache: what generation keeps so that each new token costs one step.

    prefill  rows of prompts, right padded   -> hidden of each row's last token, Cache with the prompt's keys and values
    decode   one token a row at its position -> hidden, Cache with that token added

A row's k-th token lives in slot k; slots behind its position are never seen, so padding needs no mask of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alhena.model import config, decoder
from alhena.model.codes import lookup
from alhena.model.layers import rms_norm
from alhena.model.model import Params, embed
from alhena.shapes import Array, Float, Int
from alhena.tokens.batch import Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    keys: Float[Array, "layers B S K H"]
    values: Float[Array, "layers B S K H"]


def prefill(params: Params, c: config.Model, batch: Batch, slots: int) -> tuple[Float[Array, "B D"], Cache]:
    """Reads one prompt a row (one segment, right padded) into a cache of ``slots`` places, at least the row's length."""
    length = batch.tokens.shape[1]
    if slots < length:
        raise ValueError(f"a cache of {slots} slots cannot hold rows of {length} tokens")
    x, kept = decoder.run(params.layers, embed(params, c, batch), batch.segments, batch.positions, c.decoder, c.compute)
    last = jnp.maximum((batch.segments > 0).sum(1) - 1, 0)
    hidden = jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]
    room = ((0, 0), (0, 0), (0, slots - length), (0, 0), (0, 0))
    keys, values = (jnp.pad(a, room) for a in kept)
    return rms_norm(hidden, params.norm), Cache(keys, values)


def decode(
    params: Params, c: config.Model, tokens: Int[Array, B], positions: Int[Array, B], cache: Cache
) -> tuple[Float[Array, "B D"], Cache]:
    """One text, control or code token a row, written at and attending up to its position."""
    x = lookup(params.embedding, tokens, c.code_factors) * c.decoder.width**0.5
    x, kept = decoder.step(params.layers, x, positions, (cache.keys, cache.values), c.decoder, c.compute)
    return rms_norm(x, params.norm), Cache(*kept)
