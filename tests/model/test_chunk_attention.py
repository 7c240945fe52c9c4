"""The compiled kernel of attention to pages equals XLA's program, and a token of it depends on no other, bitwise."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config
from alhena.model.attention import native, paged_cache
from alhena.model.attention.paged_cache import PAGE, Tokens

if not native.is_available():
    pytest.skip("the kernels of decoding are not built", allow_module_level=True)

MULTI_QUERY = config.Decoder(width=64, layers=2, heads=4, head_dim=64, hidden=64, window=160, global_every=2)
GROUPED = replace(MULTI_QUERY, heads=6, kv_heads=2, head_dim=32, attention_softcap=3.0)
SMALL_HEADS = replace(MULTI_QUERY, heads=2, head_dim=16, image_attention="all")
L, T = 96, 5
# Positions of the first tokens of sequences: at the beginning, in the second page, at the end of a page, in the last pages.
STARTS = np.array([0, PAGE + 7, 2 * PAGE - L, T * PAGE - L - 3], np.int32)
GLOBAL, LOCAL = 0, 1


def random_cache(c: config.Decoder, dtype: str) -> paged_cache.PagedCache:
    rng = np.random.default_rng(0)

    def fill(a):
        if a.dtype == jnp.int8:
            return jnp.asarray(rng.integers(-127, 128, a.shape), jnp.int8)
        values = rng.normal(size=a.shape) if a.ndim == 5 else rng.uniform(0, 0.02, a.shape)
        if a.dtype == jnp.uint16:
            return jax.lax.bitcast_convert_type(jnp.asarray(values, jnp.bfloat16), jnp.uint16)
        return jnp.asarray(values, jnp.float32)

    return jax.tree.map(fill, paged_cache.empty(c, (T * len(STARTS),) * 2, dtype))


def case(c: config.Decoder) -> tuple[jax.Array, Tokens]:
    """Queries, and where they are; the last eleven of each sequence are padding."""
    rng, B = np.random.default_rng(1), len(STARTS)
    tables = tuple(jnp.asarray(rng.permutation(T * B).reshape(B, T), jnp.int32) for _ in range(2))
    positions = STARTS[:, None] + np.arange(L, dtype=np.int32)
    # Images of eight tokens, which attend to each other.
    limits = positions // 8 * 8 + 7
    valid = np.arange(L)[None] < np.full((B, 1), L - 11)
    q = jnp.asarray(rng.normal(size=(B, L, c.heads, c.head_dim)), jnp.float32)
    return q, Tokens(tables, *map(jnp.asarray, (positions, limits, valid)))


def attended(c, cache, entry, q, at) -> np.ndarray:
    run = jax.jit(lambda *a: paged_cache.attend(a[0], entry, jnp.int32(0), a[1], a[2], c))
    return np.asarray(run(cache, q, at))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("entry", [GLOBAL, LOCAL], ids=["global", "local"])
@pytest.mark.parametrize("c", [MULTI_QUERY, GROUPED, SMALL_HEADS], ids=["multi-query", "grouped", "small-heads"])
def test_the_kernel_equals_xla(c, entry, dtype, monkeypatch):
    cache, (q, at) = random_cache(c, dtype), case(c)
    found = attended(c, cache, entry, q, at)
    monkeypatch.setattr(native, "is_available", lambda: False)
    expected = attended(c, cache, entry, q, at)
    valid = np.asarray(at.valid)
    # XLA rounds queries and weights to the bfloat16 of the cache.
    np.testing.assert_allclose(found[valid], expected[valid], atol=2e-2 if dtype == "bfloat16" else 2e-5)
    assert not found[~valid].any()


@pytest.mark.parametrize("c", [MULTI_QUERY, GROUPED], ids=["multi-query", "grouped"])
@pytest.mark.parametrize("entry", [GLOBAL, LOCAL], ids=["global", "local"])
def test_a_token_is_the_same_alone_and_among_others(c, entry):
    cache, (q, at) = random_cache(c, "bfloat16"), case(c)
    found = attended(c, cache, entry, q, at)
    for sequence, tokens in ((2, slice(0, 1)), (3, slice(5, 70)), (1, slice(80, 85))):
        rows = jnp.array([sequence])
        some = Tokens(
            tuple(t[rows] for t in at.tables),
            *(a[rows, tokens] for a in (at.positions, at.limits, at.valid)),
        )
        alone = attended(c, cache, entry, q[rows, tokens], some)
        np.testing.assert_array_equal(alone[0], found[sequence, tokens])


def test_what_a_token_does_not_attend_to_has_no_effect():
    """Pages outside the window and tokens after the last one may hold anything."""
    c, (q, at) = MULTI_QUERY, case(MULTI_QUERY)
    cache = random_cache(c, "float32")
    found = attended(c, cache, LOCAL, q, at)
    number = int(at.tables[LOCAL][3, 0])
    changed = jax.tree.map(lambda a: a.at[:, number].set(1e4), cache)
    np.testing.assert_array_equal(attended(c, changed, LOCAL, q, at), found)
    last = int(at.positions[1, -1]) + 1
    number, offset = int(at.tables[LOCAL][1, last // PAGE]), last % PAGE
    later = jax.tree.map(lambda a: a.at[:, number, :, offset:].set(1e4), cache)
    reading = Tokens(at.tables, at.positions, at.positions, at.valid)
    before = attended(c, cache, LOCAL, q, reading)
    np.testing.assert_array_equal(attended(c, later, LOCAL, q, reading), before)
