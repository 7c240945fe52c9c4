"""Decoding from the paged cache: prompts of several lengths are read together, then every step takes a token of each."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alhena.batch import Batch
from alhena.model import config, model
from alhena.model.attention import paged_cache
from alhena.model.attention.paged_cache import PAGE, PagedCache, Tokens
from alhena.shapes import Array, Bool, Float, Int


def empty(c: config.Model, batch_size: int, tokens: int) -> PagedCache:
    """A cache for sequences of up to that many tokens."""
    counts = (batch_size * -(-tokens // PAGE),) * len(paged_cache.kinds(c.decoder))
    return paged_cache.empty(c.decoder, counts, c.compute_dtype)


def _at(
    cache: PagedCache, positions: Int[Array, "B L"], limits: Int[Array, "B L"], valid: Bool[Array, "B L"]
) -> Tokens:
    """Sequences whose pages alternate: the cache has as many for each of them."""
    tables = tuple(jnp.arange(pages.keys.shape[1]).reshape(-1, len(positions)).T for pages in cache)
    return Tokens(tables, positions, limits, valid)


def _limits(blocks: Int[Array, "B L"] | None, positions: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """The last position that each token attends to: the end of its image, or its own."""
    if blocks is None:
        return positions
    ends = jnp.where(blocks != jnp.pad(blocks[:, 1:], ((0, 0), (0, 1))), positions, positions.shape[1])
    return jnp.where(blocks > 0, jax.lax.cummin(ends, axis=1, reverse=True), positions)


def prefill(params: model.Params, c: config.Model, batch: Batch, tokens: int) -> tuple[Float[Array, "B D"], PagedCache]:
    """Hidden states of the last token of each prompt, right padded, and a cache for sequences of up to ``tokens`` tokens."""
    cache, packing = empty(c, len(batch.tokens), tokens), model.packing(c, batch)
    valid, positions = packing.segments > 0, jnp.asarray(packing.positions)
    vectors = model.embed(params, c, batch)
    if not c.replace_placeholders:
        vectors -= model.embed_tokens(params, c, batch.tokens)
    media = model.Media(vectors, model.is_image(c, batch.tokens) | (batch.tokens == c.audio_token))
    at = _at(cache, positions, _limits(packing.blocks, positions), valid)
    hidden, cache = model.extend(params, c, batch.tokens, at, cache, media)
    return hidden[jnp.arange(len(hidden)), valid.sum(1) - 1], cache


def decode(
    params: model.Params, c: config.Model, tokens: Int[Array, " B"], positions: Int[Array, " B"], cache: PagedCache
) -> tuple[Float[Array, "B D"], PagedCache]:
    """Hidden states of one token of each sequence, and the cache with it."""
    at = _at(cache, positions[:, None], positions[:, None], jnp.ones((len(tokens), 1), bool))
    hidden, cache = model.extend(params, c, tokens[:, None], at, cache)
    return hidden[:, 0], cache
