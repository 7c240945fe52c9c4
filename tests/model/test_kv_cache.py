"""Cached = full forward with windows (without: tests/model/test_model.py): prompts around the window, rings that wrap."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config, model
from alhena.model.attention.ring_cache import cache_bytes
from tests.model.test_gemma import text_batch

# Prompt lengths, around a window of 8.
LENGTHS = np.array([1, 7, 8, 9, 30])
STEPS, SLOTS = 18, 48


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 50, (len(LENGTHS), LENGTHS.max() + STEPS))


def make(**settings) -> tuple[model.Params, config.Model]:
    decoder = config.Decoder(width=32, layers=3, heads=4, head_dim=8, hidden=48, rope_scaling_factor=2.0, **settings)
    c = config.Model(50, 1, 2, decoder, None, None)
    return jax.jit(model.init, static_argnums=1)(jax.random.key(0), c), c


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
    hidden, cache = jax.jit(model.prefill, static_argnums=(1, 3))(params, c, prompts, SLOTS)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == len(LENGTHS) * cache_bytes(
        c.decoder, SLOTS, "float32"
    )
    decode, batch = jax.jit(model.decode, static_argnums=1), np.arange(len(LENGTHS))
    for positions in LENGTHS + np.arange(STEPS)[:, None]:
        np.testing.assert_allclose(hidden, full[batch, positions - 1], atol=2e-5, rtol=0)
        hidden, cache = decode(
            params, c, jnp.asarray(tokens[batch, positions]), jnp.asarray(positions, jnp.int32), cache
        )
    np.testing.assert_allclose(hidden, full[batch, positions], atol=2e-5, rtol=0)


def test_the_cache_has_the_dtype_of_the_model():
    params, c = make()
    c = replace(c, compute_dtype="bfloat16")
    _, cache = jax.eval_shape(lambda p: model.prefill(p, c, text_batch(np.ones((2, 16), int)), 32), params)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)) == 2 * cache_bytes(c.decoder, 32)


def test_a_window_bounds_the_size_of_the_cache():
    c = config.Decoder(width=8, layers=6, heads=8, head_dim=4, hidden=8, window=10, global_every=3)
    # Keys and values of one head, two bytes each.
    per_token = 2 * 4 * 2
    assert cache_bytes(c, 7) == 6 * 7 * per_token
    assert cache_bytes(c, 100) == (2 * 100 + 4 * 10) * per_token
    assert cache_bytes(replace(c, kv_heads=8), 100) == 8 * cache_bytes(c, 100)
