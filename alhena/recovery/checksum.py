"""Checksums of arrays: they depend on every bit, need one pass over memory, and are the same for every sharding.

    float32 [2, 3] ─ its bits as words ─ each word hashed with its index ─ sum modulo 2³² ─► one word

The hash (the finalizer of MurmurHash3, Appleby 2011) is a bijection: an array in which a single word differs always has another sum.
Several changed words cancel out with probability 2⁻³². Integer addition is exact in any order, so the sum does not depend on the
number of devices, as a floating-point sum would.

>>> a = jnp.arange(6.0).reshape(2, 3)
>>> [combined(checksums({"a": b})) for b in (a, a + 0.0, a[::-1], a.at[1, 2].add(1e-6))]
['5eb34306', '5eb34306', '0791155d', 'c3fefb1f']
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.shapes import Array, Shaped, UInt32

_INDEX_FACTOR = 0x9E3779B9  # odd, so that indices get different words; 2³² over the golden ratio


def _hash(words: UInt32[Array, ...]) -> UInt32[Array, ...]:
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _words(x: Shaped[Array, ...]) -> UInt32[Array, ...]:
    """The bits of each value: one 32-bit word, or two along a new last axis."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def _sum(x: Shaped[Array, ...]) -> UInt32[Array, ""]:
    words = _words(x)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_hash(words ^ (index * jnp.uint32(_INDEX_FACTOR))), dtype=jnp.uint32)


@jax.jit
def checksums(tree: Any) -> UInt32[Array, " leaves"]:
    """One word per array of a pytree, in the order of ``jax.tree.leaves``."""
    return jnp.stack([_sum(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def combined(words: UInt32[Array, " leaves"] | UInt32[np.ndarray, " leaves"]) -> str:
    """Hash of several words, in eight hexadecimal digits."""
    return hashlib.blake2b(np.asarray(words, "<u4").tobytes(), digest_size=4).hexdigest()
