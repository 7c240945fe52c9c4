"""The compiled kernels of decoding equal XLA's programs, and a row of theirs depends on no other, bitwise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config, model
from alhena.model.attention import native, paged_cache
from alhena.model.attention.paged_cache import PAGE, Tokens
from alhena.model.layers import rms_norm
from tests.compiled import fully_optimized

if not native.is_available():
    pytest.skip("the kernels of decoding are not built", allow_module_level=True)

GEMMA_3 = config.Decoder(
    width=64, layers=4, heads=6, head_dim=32, hidden=96, window=160, global_every=2, local_rope_base=1e3, rope_base=1e4
)
GEMMA_2 = replace(GEMMA_3, kv_heads=2, qk_norm=False, attention_softcap=5.0, rope_scaling_factor=8.0)
GEMMA_4 = replace(
    GEMMA_3, layers=6, global_head_dim=64, value_norm=True, kv_sharing_layers=2, kv_sharing_hidden=128,
    global_rope_fraction=0.5, query_pre_attn_scalar=1.0, global_key_as_value=True,
)  # fmt: skip
LOG_SCALED = replace(GEMMA_3, global_rope_fraction=0.0, log_scaling_start=64)
# Positions of the next tokens: in the first page, at its end, behind a window, in a third page.
POSITIONS = np.array([3, PAGE - 1, PAGE, 2 * PAGE + 77, 0], np.int32)


def case(decoder: config.Decoder, dtype: str, cache_dtype: str | None = None):
    """Params, a model, and a random cache with what the tokens attend to."""
    c = config.Model(96, 1, 2, decoder, None, None, compute_dtype=dtype)
    params = jax.tree.map(lambda w: w.astype(dtype), model.init(jax.random.key(0), c))
    kinds, B = paged_cache.kinds(decoder), len(POSITIONS)
    tables = tuple(
        jnp.asarray(np.random.default_rng(k).permutation(3 * B).reshape(B, 3), jnp.int32) for k in range(len(kinds))
    )
    cache = paged_cache.empty(decoder, (3 * B,) * len(kinds), cache_dtype or dtype)
    start = np.zeros((B, 3 * PAGE), np.int32) + np.arange(3 * PAGE, dtype=np.int32)
    at = Tokens(tables, jnp.asarray(start), jnp.asarray(start), jnp.asarray(start < POSITIONS[:, None]))
    tokens = jax.random.randint(jax.random.key(1), start.shape, 0, 96)
    _, cache = jax.jit(model.extend, static_argnums=1)(params, c, tokens, at, cache)
    return params, c, cache, tables


def next_hidden(params, c, cache, tables, rows):
    """Hidden states after one more token of some sequences, and the cache; the last of them is padding."""
    positions = jnp.asarray(POSITIONS[rows, None])
    valid = jnp.asarray(np.array(rows) < len(POSITIONS) - 1)[:, None]
    at = Tokens(tuple(t[jnp.asarray(rows)] for t in tables), positions, positions, valid)
    tokens = jnp.asarray(np.arange(5, 10)[rows, None], jnp.int32)
    run = jax.jit(lambda *a: model.extend(a[0], c, a[1], a[2], a[3]))
    hidden, cache = run(params, tokens, at, cache)
    return np.asarray(hidden), jax.tree.map(np.asarray, cache)


@pytest.mark.parametrize(
    ("decoder", "dtype"),
    [(GEMMA_3, "float32"), (GEMMA_2, "bfloat16"), (GEMMA_4, "float32"), (LOG_SCALED, "float32")],
    ids=["gemma3", "gemma2", "gemma4", "log_scaled"],
)
def test_one_token_equals_xla(decoder, dtype, monkeypatch):
    params, c, cache, tables = case(decoder, dtype)
    run = partial(next_hidden, params, c, cache, tables)
    rows = list(range(len(POSITIONS)))
    hidden, written = run(rows)
    for some in ([2], [4, 0, 3]):
        np.testing.assert_array_equal(run(some)[0], hidden[some])
    monkeypatch.setattr(native, "is_available", lambda: False)
    reference, expected = run(rows)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(hidden[:-1], reference[:-1], atol=tolerance)
    for a, b, before in zip(*map(jax.tree.leaves, (written, expected, cache)), strict=True):
        changed = np.any(b != np.asarray(before), -1)
        # Padding is not written, and nothing but the new tokens.
        np.testing.assert_array_equal(np.any(a != np.asarray(before), -1), changed)
        if dtype == "float32":
            np.testing.assert_allclose(a, b, atol=tolerance)
        else:
            as_float = [jax.lax.bitcast_convert_type(jnp.asarray(x), jnp.bfloat16).astype(jnp.float32) for x in (a, b)]
            np.testing.assert_allclose(*as_float, atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "transposed"), [((96, 352), False), ((3, 64, 608), False), ((75, 64), True)])
def test_a_matmul_of_a_few_rows_equals_xla(dtype, shape, transposed):
    w = jax.random.normal(jax.random.key(0), shape, dtype)
    x = jax.random.normal(jax.random.key(1), (9, shape[-1] if transposed else shape[-2]))
    run = jax.jit(partial(native.multiply, transposed=transposed))
    out = np.asarray(run(x, w, 1))
    matrix = w[1] if w.ndim == 3 else w
    operands = x.astype(dtype).astype(jnp.float32), (matrix.T if transposed else matrix).astype(jnp.float32)
    np.testing.assert_allclose(out, jnp.matmul(*operands, precision="highest"), rtol=1e-4, atol=1e-4)
    for rows in (1, 4, 7):
        np.testing.assert_array_equal(np.asarray(run(x[:rows], w, 1)), out[:rows])


@fully_optimized
def test_a_row_of_a_wide_model_has_the_same_bits_alone():
    """From 4,096 numbers on XLA divides the sum of a norm otherwise, which the tiny models of other tests do not have."""
    x, scale = jax.random.normal(jax.random.key(0), (16, 1, 640)) * 3, jax.random.normal(jax.random.key(1), (640,))
    norm = jax.jit(rms_norm)
    np.testing.assert_array_equal(jnp.concatenate([norm(x[i : i + 1], scale) for i in range(16)]), norm(x, scale))
    params, c, cache, tables = case(replace(GEMMA_3, width=1024, layers=2), "bfloat16")
    run = partial(next_hidden, params, c, cache, tables)
    hidden = run(list(range(len(POSITIONS))))[0]
    for row in range(len(POSITIONS)):
        np.testing.assert_array_equal(run([row])[0], hidden[row : row + 1])


def test_the_norm_of_a_few_rows_equals_xla():
    x, scale = jax.random.normal(jax.random.key(0), (8, 2, 96)) * 3, jax.random.normal(jax.random.key(1), (96,))
    # Of so many rows it is XLA's.
    many = jnp.tile(x, (2, 1, 1))
    for s in (scale, scale.astype(jnp.bfloat16), None):
        np.testing.assert_allclose(rms_norm(x, s), rms_norm(many, s)[:8], rtol=1e-5)
    gradient = jax.grad(lambda x: (rms_norm(x, scale) ** 3).sum())
    np.testing.assert_allclose(gradient(x), gradient(many)[:8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "xla"])
def test_an_int8_cache_changes_hidden_states_by_little(by_kernel, monkeypatch):
    """Rounding to 127 steps of the largest value: an error of a few thousandths of the values, and a page of about half the bytes."""
    params, c, cache, tables = case(GEMMA_4, "float32")
    rows = list(range(len(POSITIONS)))
    exact = next_hidden(params, c, cache, tables, rows)[0]
    if not by_kernel:
        monkeypatch.setattr(native, "is_available", lambda: False)
    params, c, rounded, tables = case(GEMMA_4, "float32", paged_cache.INT8)
    hidden = next_hidden(params, c, rounded, tables, rows)[0]
    error = np.abs(hidden - exact)[:-1]
    assert 0 < error.max() < 0.05 and error.mean() < 0.01
    kind = paged_cache.kinds(GEMMA_4)[0]
    assert paged_cache.page_bytes(kind, "int8") < 0.6 * paged_cache.page_bytes(kind, "bfloat16")
