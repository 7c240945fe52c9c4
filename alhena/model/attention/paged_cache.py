"""Paged KV cache: keys and values of many sequences in pages of 128 tokens, in one array for each kind of layer that writes some.

    sequence   table of the global layers   table of the local ones       page 7 holds positions 0–127 of A and of B,
    A          7  2  5                      ·  ·  4                       page 2 positions 128–255, page 5 256–383 of A
    B          7  2  9                      ·  3  1

Sequences with the same beginning share its pages. A local layer needs those of its window; earlier ones are free for others
(alhena/serve/decoding/pages.py). Attention iterates over the pages of a sequence with an online softmax, in the compiled kernel or in XLA: pages
that a sequence does not have contribute exact zeros, so that its result is the same, bitwise, whatever other sequences it is computed with.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config
from alhena.model.attention import native
from alhena.model.attention.full import MASKED
from alhena.model.layers import softcap
from alhena.model.transformer.layer_kinds import is_global, layer_kind
from alhena.shapes import Array, Bool, Float, Int, Shaped, pytree

# Tokens of a page.
PAGE = 128
# The dtype of a cache whose keys and values are rounded.
INT8 = "int8"

# Of one layer.
KeysValues = tuple[Float[Array, "B L K H"], Float[Array, "B L K H"]]


@dataclass(frozen=True)
class Kind:
    """The layers that share the pages of an entry of the cache: the global ones, or the local ones."""

    is_global: bool
    # The layers that attend to the pages.
    layers: Bool[np.ndarray, " layers"]
    # Number of layers that write to them: those with keys and values of their own.
    writers: int
    kv_heads: int
    head_dim: int


@pytree
@dataclass(frozen=True)
class Pages:
    """Keys and values of all layers of one kind; bfloat16 is stored as uint16, which XLA's CPU backend does not convert to float32.

    8-bit ones have a scale for each token and head: the largest of its values is 127.
    """

    keys: Shaped[Array, "layers pages K page H"]
    values: Shaped[Array, "layers pages K page H"]

    key_scales: Float[Array, "layers pages K page"] | None = None
    value_scales: Float[Array, "layers pages K page"] | None = None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Those that there are."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys, self.values
        return self.keys, self.values, self.key_scales, self.value_scales


# One for each of the kinds.
PagedCache = tuple[Pages, ...]


@pytree
@dataclass(frozen=True)
class Tokens:
    """Where the next L tokens of B sequences are, and what they attend to."""

    # Of each entry of the cache: the page of every 128 positions.
    tables: tuple[Int[Array, "B T"], ...]
    positions: Int[Array, "B L"]
    # The last position that a token attends to: its own, or the end of its image.
    limits: Int[Array, "B L"]
    # False: padding, which is not written.
    valid: Bool[Array, "B L"]


def kinds(c: config.Decoder) -> list[Kind]:
    """The entries of a cache: the global and the local layers, where there are any."""
    out = []
    for of_kind in (True, False):
        layers = is_global(c) == of_kind
        if layers.any():
            kind = layer_kind(c, int(np.argmax(layers)))
            writers = int(layers[: c.layers - c.kv_sharing_layers].sum())
            out.append(Kind(of_kind, layers, writers, kind.kv_heads, kind.head_dim))
    return out


def entries(c: config.Decoder, is_global: bool | None) -> tuple[int, ...]:
    """The entries of a cache that layers of a kind may use; None: of any kind."""
    return tuple(i for i, kind in enumerate(kinds(c)) if is_global in (None, kind.is_global))


def layer_index(c: config.Decoder) -> Int[np.ndarray, "layers kinds"]:
    """Index of each layer in the entries of a cache; out of bounds where it is not of that kind, so that writes are dropped.

    A layer without keys and values of its own has the index of the last layer of its kind that has some.
    """
    index = [np.where(k.layers, np.minimum(np.cumsum(k.layers), k.writers) - 1, k.writers) for k in kinds(c)]
    return np.stack(index, 1).astype(np.int32)


def page_bytes(kind: Kind, dtype: str) -> int:
    """Bytes of a page of one kind.

    >>> multi_query = config.Decoder(width=2048, layers=18, heads=8, head_dim=256, hidden=16384)
    >>> [page_bytes(kind, "bfloat16") // PAGE for kind in kinds(multi_query)]
    [18432]
    """
    scale = jnp.dtype(jnp.float32).itemsize if dtype == INT8 else 0
    return kind.writers * PAGE * 2 * kind.kv_heads * (kind.head_dim * jnp.dtype(dtype).itemsize + scale)


def empty(c: config.Decoder, counts: tuple[int, ...], dtype: str) -> PagedCache:
    """Zeros: that many pages of each kind."""
    stored = "uint16" if dtype == "bfloat16" else dtype
    shapes = [(k.writers, n, k.kv_heads, PAGE, k.head_dim) for k, n in zip(kinds(c), counts, strict=True)]

    def pages(shape: tuple[int, ...]) -> Pages:
        scales = [jnp.zeros(shape[:-1], jnp.float32) for _ in range(2 if dtype == INT8 else 0)]
        return Pages(jnp.zeros(shape, stored), jnp.zeros(shape, stored), *scales)

    return tuple(map(pages, shapes))


def write(
    cache: PagedCache, entries: tuple[int, ...], index: Int[Array, " kinds"], kv: KeysValues, at: Tokens
) -> PagedCache:
    """The cache with the keys and values of tokens written to one layer.

    ``entries`` are those that the layer may use, ``index`` its index in each.
    """

    def one(i: int, pages: Pages) -> Pages:
        if i not in entries:
            return pages
        numbers = jnp.take_along_axis(at.tables[i], at.positions // PAGE, 1)
        where = (index[i], jnp.where(at.valid, numbers, pages.keys.shape[1]), slice(None), at.positions % PAGE)
        stored = zip(pages.arrays, _rounded(kv) if pages.key_scales is not None else kv, strict=True)
        return Pages(*(_set(a, where, new) for a, new in stored))

    return tuple(one(i, pages) for i, pages in enumerate(cache))


def _rounded(kv: KeysValues) -> tuple[Array, ...]:
    """Keys and values as integers -127..127, and their scales."""
    scales = [jnp.abs(a).max(-1) / 127 for a in kv]
    integers = [jnp.round(a / jnp.maximum(s, 1e-30)[..., None]) for a, s in zip(kv, scales, strict=True)]
    return *integers, *scales


def _set(stored: Shaped[Array, "layers pages K page *H"], where: tuple, new: Float[Array, "B L K *H"]) -> Array:  # type: ignore[type-arg]
    if stored.dtype == jnp.uint16:
        new = jax.lax.bitcast_convert_type(new.astype(jnp.bfloat16), jnp.uint16)
    return stored.at[where].set(new.astype(stored.dtype), mode="drop")


def _get(pages: Pages, layer: Int[Array, ""], numbers: Int[Array, " B"]) -> list[Float[Array, "B K page H"]]:
    """Keys and values of a page of each sequence."""
    read, scales = (
        [a.at[layer, numbers].get(mode="clip") for a in part] for part in (pages.arrays[:2], pages.arrays[2:])
    )
    if scales:
        return [a * scale[..., None] for a, scale in zip(read, scales, strict=True)]
    return [jax.lax.bitcast_convert_type(a, jnp.bfloat16) if a.dtype == jnp.uint16 else a for a in read]


def _mask(at: Tokens, number: Int[Array, " B"], is_causal: bool, window: int | None) -> Bool[Array, "B L page"]:
    """Which keys of a page each token attends to."""
    keys, positions = number[:, None, None] * PAGE + jnp.arange(PAGE), at.positions[..., None]
    mask = keys <= (positions if is_causal else at.limits[..., None])
    return mask if window is None else mask & (keys > positions - window)


def attend(
    cache: PagedCache, i: int, layer: Int[Array, ""], q: Float[Array, "B L N H"], at: Tokens, c: config.Decoder
) -> Float[Array, "B L N H"]:
    """Attention of tokens to the pages of their sequences in one layer of entry ``i``, their own keys and values included."""
    (B, L, N, H), pages, is_global = q.shape, cache[i], kinds(c)[i].is_global
    K, scale = pages.keys.shape[2], c.attention_scale(H)
    is_causal, window = is_global and c.image_attention != "all", None if is_global else c.window
    if native.attends(H):
        begin = jnp.zeros_like(at.positions) if window is None else jnp.maximum(at.positions - window + 1, 0)
        end = jnp.where(at.valid, (at.positions if is_causal else at.limits) + 1, 0)
        settings = {"scale": np.float32(scale), "cap": np.float32(c.attention_softcap or 0)}
        return native.attend_chunk(q, (begin, end), layer, (*pages.arrays, at.tables[i]), settings)
    dtype = jnp.bfloat16 if pages.keys.dtype == jnp.uint16 else jnp.float32
    q = q.astype(dtype).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, (N // K) * L, H)
    first = jnp.zeros(B, jnp.int32) if window is None else jnp.maximum(at.positions[:, 0] - window + 1, 0) // PAGE
    last = at.limits.max(1) // PAGE

    def page(r: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        out, total, maximum = carry
        numbers = jnp.take_along_axis(at.tables[i], (first + r)[:, None], 1, mode="clip")[:, 0]
        k, v = _get(pages, layer, numbers)
        scores = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32)
        scores = softcap(scores * scale, c.attention_softcap).reshape(B, K, N // K, L, PAGE)
        mask = _mask(at, first + r, is_causal, window)[:, None, None]
        scores = jnp.where(mask, scores, MASKED).reshape(B, K, -1, PAGE)
        new_maximum = jnp.maximum(maximum, scores.max(-1, keepdims=True))
        weights, correction = jnp.exp(scores - new_maximum), jnp.exp(maximum - new_maximum)
        read = jnp.einsum("bkrs,bksh->bkrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out * correction + read, total * correction + weights.sum(-1, keepdims=True), new_maximum

    zero = jnp.zeros((B, K, (N // K) * L, 1), jnp.float32)
    start = jnp.zeros((B, K, (N // K) * L, H), jnp.float32), zero, zero + MASKED
    out, total, _ = jax.lax.fori_loop(0, jnp.max(last - first) + 1, page, start)
    return (out / total).reshape(B, K, N // K, L, H).transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)
