"""int4 = dequantized, packing and error bounds, and 4-bit weights inside the model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.compress.quantize import quantize_model
from alhena.model import model
from alhena.model.int4 import Int4, dequantize, quantize
from alhena.model.linear import einsum, take_rows
from alhena.model.weights import load_model, save_model
from alhena.tokens.loader import padded_batch


def weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int4_equals_dequantized(dtype):
    x, w = jnp.asarray(weight(0, 3, 5, 64)), quantize(weight(1, 64, 24), 16)
    spec = "...i,io->...o"
    np.testing.assert_array_equal(einsum(spec, x, w, dtype), einsum(spec, x, dequantize(w), dtype))


def test_int4_embedding_equals_dequantized():
    x, table = jnp.asarray(weight(0, 7, 32)), quantize(weight(1, 50, 32), 8, transposed=True)
    ids = jnp.array([[0, 49], [7, 7]])
    np.testing.assert_array_equal(take_rows(table, ids), dequantize(table)[ids])
    np.testing.assert_array_equal(einsum("...i,oi->...o", x, table), einsum("...i,oi->...o", x, dequantize(table)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 16]), st.floats(1e-3, 1e3))
def test_the_quantization_error_is_bounded_by_the_step(seed, group, size):
    w = size * weight(seed, 2, 32, 5)
    q = quantize(w, group)
    largest = np.abs(w).reshape(2, 32 // group, group, 5).max(2)
    error = np.abs(np.asarray(dequantize(q)) - w).reshape(2, 32 // group, group, 5).max(2)
    # Clipped to 0.7 of the largest value, plus half a step.
    assert (error <= largest * 0.35).all()
    assert np.mean(error**2) < np.mean(w**2) * 0.1


def test_a_group_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="groups of 32"):
        quantize(weight(0, 48, 4), 32)


def test_a_4_bit_model_equals_its_dequantized_model(tiny, encoder, documents, tmp_path):
    params, c = tiny
    quantized = quantize_model(params, model.weights(c), 8)
    dequantized = jax.tree.map(
        lambda w: dequantize(w) if isinstance(w, Int4) else w, quantized, is_leaf=lambda w: isinstance(w, Int4)
    )
    batch = jax.tree.map(jnp.asarray, padded_batch([e for d in documents for e in encoder.encode(d, 256)], 64, 64, 4))
    forward = jax.jit(model.forward, static_argnums=1)
    np.testing.assert_allclose(forward(quantized, c, batch), forward(dequantized, c, batch), atol=1e-5)
    save_model(tmp_path, quantized, c, {})
    loaded, _ = load_model(tmp_path)
    for a, b in zip(jax.tree.leaves(quantized), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
