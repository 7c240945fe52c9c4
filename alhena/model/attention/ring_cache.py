"""KV cache: ring buffers of slots, one stack of them for each kind of layer (global, local) that has keys and values of its own.

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
from alhena.model.attention.full import dense_attention
from alhena.model.layer_kinds import is_global, layer_kind
from alhena.shapes import Array, Bool, Float, Int, pytree


@pytree
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of all layers of one kind."""

    keys: Float[Array, "layers B S K H"]
    values: Float[Array, "layers B S K H"]


# Of one layer.
KeysValues = tuple[Float[Array, "B L K H"], Float[Array, "B L K H"]]
# One LayerCache for each entry of rings.
Cache = tuple[LayerCache, ...]


@dataclass(frozen=True)
class Rings:
    """The rings of one kind of layers."""

    is_global: bool
    # The layers that attend to them.
    layers: Bool[np.ndarray, " layers"]
    # Number of layers that write to them: a ring each.
    writers: int
    size: int
    kv_heads: int
    head_dim: int


def rings(c: config.Decoder, slots: int) -> list[Rings]:
    """The rings of the global and of the local layers, where there are any, for contexts of up to ``slots`` tokens."""
    out = []
    for of_kind, size in ((True, slots), (False, min(c.window or slots, slots))):
        layers = is_global(c) == of_kind
        if layers.any():
            kind = layer_kind(c, int(np.argmax(layers)))
            writers = int(layers[: c.layers - c.kv_sharing_layers].sum())
            out.append(Rings(of_kind, layers, writers, size, kind.kv_heads, kind.head_dim))
    return out


def entries(c: config.Decoder, is_global: bool | None) -> tuple[int, ...]:
    """The entries of a cache that layers of a kind may use; None: of any kind."""
    return tuple(i for i, r in enumerate(rings(c, 1)) if is_global in (None, r.is_global))


def empty_cache(c: config.Decoder, batch_size: int, slots: int, dtype: str) -> Cache:
    """A cache of zeros for contexts of up to ``slots`` tokens."""
    shapes = [(r.writers, batch_size, r.size, r.kv_heads, r.head_dim) for r in rings(c, slots)]
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
    numbers = sum(r.writers * r.size * 2 * r.kv_heads * r.head_dim for r in rings(c, tokens))
    return numbers * jnp.dtype(dtype).itemsize


def cache_index(c: config.Decoder) -> Int[np.ndarray, "layers kinds"]:
    """Index of each layer in the rings of each kind; out of bounds where it is not of that kind, so that writes are dropped.

    A layer without keys and values of its own has the index of the last layer of its kind that has some.
    """
    stacks = [np.where(r.layers, np.minimum(np.cumsum(r.layers), r.writers) - 1, r.writers) for r in rings(c, 1)]
    return np.stack(stacks, 1).astype(np.int32)


def _slot_positions(last: Int[Array, " B"], size: int) -> Int[Array, "B S"]:
    """Position held by each slot when ``last`` is the latest one; negative: none."""
    return last[:, None] - (last[:, None] - jnp.arange(size)) % size


def write_prompt(
    cache: Cache, entries: tuple[int, ...], index: Int[Array, " kinds"], kv: KeysValues, last: Int[Array, " B"]
) -> Cache:
    """The cache with the keys and values of prompts, whose last tokens are at positions ``last``, written to one layer.

    ``entries`` are those that the layer may use, ``index`` its index in each.
    """

    def write(i: int, stored: LayerCache) -> LayerCache:
        if i not in entries:
            return stored
        positions = jnp.maximum(_slot_positions(last, stored.keys.shape[2]), 0)[..., None, None]
        return _write(stored, (index[i],), *(jnp.take_along_axis(a, positions, 1) for a in kv))

    return tuple(write(i, stored) for i, stored in enumerate(cache))


def write_token(
    cache: Cache, entries: tuple[int, ...], index: Int[Array, " kinds"], kv: KeysValues, positions: Int[Array, " B"]
) -> Cache:
    """The cache with the keys and values of one token per sequence, at ``positions``, written to one layer."""

    def write(i: int, stored: LayerCache) -> LayerCache:
        if i not in entries:
            return stored
        slots = positions % stored.keys.shape[2]
        return _write(stored, (index[i], jnp.arange(len(positions)), slots), *(a[:, 0] for a in kv))

    return tuple(write(i, stored) for i, stored in enumerate(cache))


def _write(cache: LayerCache, index: tuple[Array, ...], k: Array, v: Array) -> LayerCache:
    pairs = ((cache.keys, k), (cache.values, v))
    return LayerCache(*(stored.at[index].set(new.astype(stored.dtype), mode="drop") for stored, new in pairs))


def attend_cached(
    cache: LayerCache, layer: Int[Array, ""], q: Float[Array, "B 1 N H"], positions: Int[Array, " B"], c: config.Decoder
) -> Float[Array, "B 1 N H"]:
    """Attention of one token per sequence, at ``positions``, over the cached keys and values of one layer."""
    mask = _slot_positions(positions, cache.keys.shape[2]) >= 0
    q = q.astype(cache.keys.dtype)
    scale = c.attention_scale(q.shape[-1])
    return dense_attention(q, cache.keys[layer], cache.values[layer], mask[:, None], scale, c.attention_softcap)
