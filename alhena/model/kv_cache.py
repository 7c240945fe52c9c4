"""Where layers keep keys and values: rings of slots, one stack of them for each kind of layer there is.

    window 4        slot      0  1  2  3                     a global layer's ring has a slot for every position,
    after token 5   position  4  5  2  3                     so that it never comes round
    after token 6   position  4  5  6  3

A token at position p is written to slot p mod S. Slot s then holds the latest position up to p that is s mod S; below zero nothing
was written yet, and nobody looks. A ring of S slots thus *is* a window of S tokens: no mask but this one is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from alhena.model import config
from alhena.model.attention import dense_attention
from alhena.shapes import Array, Float, Int, pytree


@pytree
@dataclass(frozen=True)
class LayerCache:
    """Of all layers of a kind."""

    keys: Float[Array, "layers B S K H"]
    values: Float[Array, "layers B S K H"]


Cache = tuple[LayerCache, ...]  # of the global layers, then of the local ones, where there are any


def is_global(c: config.Decoder) -> np.ndarray:
    """Bool [layers]: which layers see the whole context."""
    return np.array([c.window is None or (i + 1) % c.global_every == 0 for i in range(c.layers)])


def layer_kinds(c: config.Decoder, slots: int) -> list[tuple[np.ndarray, int]]:
    """Which layers keep a ring of how many slots, when contexts have up to ``slots`` tokens."""
    far = is_global(c)
    return [kind for kind in ((far, slots), (~far, min(c.window or slots, slots))) if kind[0].any()]


def empty_cache(c: config.Decoder, rows: int, slots: int, dtype: str) -> Cache:
    shapes = [(int(some.sum()), rows, size, c.kv_heads, c.head_dim) for some, size in layer_kinds(c, slots)]
    return tuple(LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes)


def layer_slots(c: config.Decoder) -> Int[np.ndarray, "layers kinds"]:
    """A layer's place in the stack of each kind, which is behind its end where it is not of that kind: nothing is written."""
    stacks = [np.where(some, np.cumsum(some) - 1, some.sum()) for some, _ in layer_kinds(c, 1)]
    return np.stack(stacks, 1).astype(np.int32)


def _position(last: Int[Array, " B"], size: int) -> Int[Array, "B S"]:
    """The position that each slot holds when ``last`` is the latest; negative: none."""
    return last[:, None] - (last[:, None] - jnp.arange(size)) % size


def write_prompt(
    ring: LayerCache, place: Int[Array, ""], k: Float[Array, "B L K H"], v: Float[Array, "B L K H"], last: Array
) -> LayerCache:
    """A layer's ring after prompts whose last tokens are at ``last`` [B]."""
    at = jnp.maximum(_position(last, ring.keys.shape[2]), 0)[..., None, None]
    return _set(ring, (place,), *(jnp.take_along_axis(a, at, 1) for a in (k, v)))


def write_token(
    ring: LayerCache, place: Int[Array, ""], k: Float[Array, "B K H"], v: Float[Array, "B K H"], at: Array
) -> LayerCache:
    """A layer's ring after one more token a row, at positions ``at`` [B]."""
    return _set(ring, (place, jnp.arange(len(at)), at % ring.keys.shape[2]), k, v)


def _set(ring: LayerCache, index: tuple[Array, ...], k: Array, v: Array) -> LayerCache:
    pairs = ((ring.keys, k), (ring.values, v))
    return LayerCache(*(kept.at[index].set(new.astype(kept.dtype), mode="drop") for kept, new in pairs))


def attend_cached(
    ring: LayerCache, place: Int[Array, ""], q: Float[Array, "B 1 N H"], at: Int[Array, " B"], c: config.Decoder
) -> Float[Array, "B 1 N H"]:
    """Attention of one token a row, at positions ``at``, over what a layer's ring holds."""
    mask = _position(at, ring.keys.shape[2]) >= 0
    q = q.astype(ring.keys.dtype)
    return dense_attention(
        q, ring.keys[place], ring.values[place], mask[:, None], c.attention_scale, c.attention_softcap
    )
