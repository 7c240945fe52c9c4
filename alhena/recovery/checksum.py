"""Checksums of arrays that know every bit, cost one pass over memory, and do not care how an array is laid out over devices.

    float32 [2, 3] ─ its bits as words ─ each word scrambled with its place ─ sum modulo 2³² ─► one word

Scrambling (the last rounds of MurmurHash3, Appleby 2011) is one to one: an array in which a single word differs, be it by its
lowest bit, always has another sum. Several changed words cancel out once in 2³². Adding integers is exact in any order, so one
device and a thousand give the same sum, which no sum of floating-point numbers promises.

>>> a = jnp.arange(6.0).reshape(2, 3)
>>> [together(checksums({"a": b})) for b in (a, a + 0.0, a[::-1], a.at[1, 2].add(1e-6))]
['5eb34306', '5eb34306', '0791155d', 'c3fefb1f']
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.shapes import Array, Shaped, UInt32

_STEP = 0x9E3779B9  # odd, so that places get different words; 2³² over the golden ratio


def _scramble(words: UInt32[Array, ...]) -> UInt32[Array, ...]:
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _words(x: Shaped[Array, ...]) -> UInt32[Array, ...]:
    """The bits of each value: one word of 32, or two along a new last axis."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    wide = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, wide).astype(jnp.uint32)


def _sum(x: Shaped[Array, ...]) -> UInt32[Array, ""]:
    words = _words(x)
    place, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_scramble(words ^ (place * jnp.uint32(_STEP))), dtype=jnp.uint32)


@jax.jit
def checksums(tree: Any) -> UInt32[Array, " leaves"]:
    """One word for each array of a pytree, in the order of ``jax.tree.leaves``."""
    return jnp.stack([_sum(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def combined(words: UInt32[Array, " leaves"] | np.ndarray) -> str:
    """Several words as one, in eight hexadecimal digits."""
    return hashlib.blake2b(np.asarray(words, "<u4").tobytes(), digest_size=4).hexdigest()
