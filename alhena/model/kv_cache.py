"""KV cache: ring buffers of slots, one stack of them for each kind of layer (global, local).

    window 4        slot      0  1  2  3                     the ring of a global layer has a slot for every position,
    after token 5   position  4  5  2  3                     so it never wraps around
    after token 6   position  4  5  6  3

A token at position p is written to slot p mod S. Slot s then holds the latest position up to p that is s mod S; a negative one means
that nothing was written, and is masked. A ring of S slots thus implements a window of S tokens: no other mask is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from alhena.model import config
from alhena.model.attention import dense_attention
from alhena.shapes import Array, Bool, Float, Int, pytree


@pytree
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of all layers of one kind."""

    keys: Float[Array, "layers B S K H"]
    values: Float[Array, "layers B S K H"]


# One LayerCache for each entry of layer_kinds.
Cache = tuple[LayerCache, ...]


def is_global(c: config.Decoder) -> Bool[np.ndarray, " layers"]:
    """Which layers attend to the complete context."""
    return np.array([c.window is None or (i + 1) % c.global_every == 0 for i in range(c.layers)])


def layer_kinds(c: config.Decoder, slots: int) -> list[tuple[Bool[np.ndarray, " layers"], int]]:
    """(layers, ring size) of the global and of the local layers, where there are any, for contexts of up to ``slots`` tokens."""
    global_layers = is_global(c)
    kinds = ((global_layers, slots), (~global_layers, min(c.window or slots, slots)))
    return [(layers, ring_size) for layers, ring_size in kinds if layers.any()]


def empty_cache(c: config.Decoder, batch_size: int, slots: int, dtype: str) -> Cache:
    """A cache of zeros for contexts of up to ``slots`` tokens."""
    shapes = [(int(layers.sum()), batch_size, size, c.kv_heads, c.head_dim) for layers, size in layer_kinds(c, slots)]
    return tuple(LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes)


def cache_bytes(c: config.Decoder, tokens: int, dtype: str = "bfloat16") -> int:
    """Bytes of the cache of one sequence with a context of ``tokens`` tokens.

    >>> from dataclasses import replace
    >>> multi_query = config.Decoder(width=2048, layers=18, heads=8, head_dim=256, hidden=16384)
    >>> cache_bytes(multi_query, 1), cache_bytes(replace(multi_query, kv_heads=8), 1)
    (18432, 147456)
    >>> cache_bytes(replace(multi_query, window=1024, global_every=6), 32768) / cache_bytes(multi_query, 32768)
    0.19270833333333334
    """
    slots = sum(int(layers.sum()) * ring_size for layers, ring_size in layer_kinds(c, tokens))
    return slots * 2 * c.kv_heads * c.head_dim * jnp.dtype(dtype).itemsize


def cache_index(c: config.Decoder) -> Int[np.ndarray, "layers kinds"]:
    """Index of each layer in the stack of each kind; out of bounds where it is not of that kind, so that writes are dropped."""
    stacks = [np.where(layers, np.cumsum(layers) - 1, layers.sum()) for layers, _ in layer_kinds(c, 1)]
    return np.stack(stacks, 1).astype(np.int32)


def _slot_positions(last: Int[Array, " B"], size: int) -> Int[Array, "B S"]:
    """Position held by each slot when ``last`` is the latest one; negative: none."""
    return last[:, None] - (last[:, None] - jnp.arange(size)) % size


def write_prompt(
    cache: LayerCache,
    layer: Int[Array, ""],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    last: Int[Array, " B"],
) -> LayerCache:
    """The cache with the keys and values of prompts, whose last tokens are at positions ``last``, written to one layer."""
    positions = jnp.maximum(_slot_positions(last, cache.keys.shape[2]), 0)[..., None, None]
    return _write(cache, (layer,), *(jnp.take_along_axis(a, positions, 1) for a in (k, v)))


def write_token(
    cache: LayerCache,
    layer: Int[Array, ""],
    k: Float[Array, "B K H"],
    v: Float[Array, "B K H"],
    positions: Int[Array, " B"],
) -> LayerCache:
    """The cache with the key and value of one token per sequence, at ``positions``, written to one layer."""
    return _write(cache, (layer, jnp.arange(len(positions)), positions % cache.keys.shape[2]), k, v)


def _write(cache: LayerCache, index: tuple[Array, ...], k: Array, v: Array) -> LayerCache:
    pairs = ((cache.keys, k), (cache.values, v))
    return LayerCache(*(stored.at[index].set(new.astype(stored.dtype), mode="drop") for stored, new in pairs))


def attend_cached(
    cache: LayerCache, layer: Int[Array, ""], q: Float[Array, "B 1 N H"], positions: Int[Array, " B"], c: config.Decoder
) -> Float[Array, "B 1 N H"]:
    """Attention of one token per sequence, at ``positions``, over the cached keys and values of one layer."""
    mask = _slot_positions(positions, cache.keys.shape[2]) >= 0
    q = q.astype(cache.keys.dtype)
    return dense_attention(
        q, cache.keys[layer], cache.values[layer], mask[:, None], c.attention_scale, c.attention_softcap
    )
