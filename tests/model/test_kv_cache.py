"""Cached = full forward with windows (without: tests/model/test_model.py), around windows and pages, without what is before a window."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config, model
from alhena.model.attention import paged_cache
from alhena.model.attention.paged_cache import PAGE, PagedCache
from tests.model import cached
from tests.model.test_gemma import text_batch

# Prompt lengths, around a window of 8 and the pages.
LENGTHS = np.array([1, 7, 8, 9, PAGE - 5, PAGE, PAGE + 9, 2 * PAGE + 1])
STEPS = 12


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 50, (len(LENGTHS), LENGTHS.max() + STEPS))


def make(**settings) -> tuple[model.Params, config.Model]:
    decoder = config.Decoder(width=32, layers=3, heads=4, head_dim=8, hidden=48, rope_scaling_factor=2.0, **settings)
    c = config.Model(50, 1, 2, decoder, None, None)
    return jax.jit(model.init, static_argnums=1)(jax.random.key(0), c), c


def without_past(cache: PagedCache, c: config.Decoder, positions: np.ndarray) -> PagedCache:
    """NaN in the pages of the local layers that are before the windows of tokens at these positions."""
    numbers = np.arange(cache[0].keys.shape[1])
    first = np.maximum(positions - c.window + 1, 0) // PAGE
    # Pages of the sequences alternate.
    past = (numbers // len(positions) < first[numbers % len(positions)])[:, None, None, None]

    def without(kind: paged_cache.Kind, pages: paged_cache.Pages) -> paged_cache.Pages:
        return pages if kind.is_global else jax.tree.map(lambda a: jnp.where(past, jnp.nan, a), pages)

    return tuple(map(without, paged_cache.kinds(c), cache))


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 8, "global_every": 3, "kv_heads": 2},
        {"window": 8, "global_every": 2, "attention_softcap": 2.0, "local_rope_base": 100.0},
        {"window": 8, "global_every": 9},
        {"window": 200, "global_every": 2},
    ],
)
def test_cached_equals_full(settings, tokens):
    params, c = make(**settings)
    full = np.asarray(jax.jit(model.forward, static_argnums=1)(params, c, text_batch(tokens)))
    mask = np.arange(LENGTHS.max())[None] < LENGTHS[:, None]
    prompts = text_batch(tokens[:, : LENGTHS.max()])
    prompts = replace(prompts, segments=prompts.segments * mask, tokens=prompts.tokens * mask)
    hidden, cache = jax.jit(cached.prefill, static_argnums=(1, 3))(params, c, prompts, tokens.shape[1])
    decode, batch = jax.jit(cached.decode, static_argnums=1), np.arange(len(LENGTHS))
    for positions in LENGTHS + np.arange(STEPS)[:, None]:
        np.testing.assert_allclose(hidden, full[batch, positions - 1], atol=2e-5, rtol=0)
        cache = without_past(cache, c.decoder, positions)
        hidden, cache = decode(
            params, c, jnp.asarray(tokens[batch, positions]), jnp.asarray(positions, jnp.int32), cache
        )
    np.testing.assert_allclose(hidden, full[batch, positions], atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", paged_cache.INT8])
def test_a_page_has_the_keys_and_values_of_the_layers_of_its_kind(dtype):
    _, c = make(window=8, global_every=3, kv_heads=2)
    kinds, counts = paged_cache.kinds(c.decoder), (5, 3)
    assert [(kind.is_global, kind.writers) for kind in kinds] == [(True, 1), (False, 2)]
    cache = paged_cache.empty(c.decoder, counts, dtype)
    for kind, count, pages in zip(kinds, counts, cache, strict=True):
        assert count * paged_cache.page_bytes(kind, dtype) == sum(a.nbytes for a in pages.arrays)
