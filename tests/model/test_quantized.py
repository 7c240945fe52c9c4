"""Layout of quantized weights, rounding to them, and matmul by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.model.quantized import gpu
from alhena.model.quantized.layout import at, dequantize, from_gguf_blocks, packed_shapes, to_gguf_blocks
from alhena.model.quantized.matmul import matmul, matmuls, portable_matmul
from alhena.model.quantized.rounding import quantize

KINDS = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}


def weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_those_of_gguf_in_both_directions(bits):
    """Any bytes are a weight: nothing is lost."""
    rng = np.random.default_rng(bits)
    blocks = rng.integers(0, 256, (2, 21, 3, 2 + 4 * bits), np.uint8)
    blocks[..., :2] = rng.normal(size=(2, 21, 3, 1)).astype(np.float16).view(np.uint8)
    w = from_gguf_blocks(blocks)
    np.testing.assert_array_equal(to_gguf_blocks(w), blocks)
    theirs = quants.dequantize(blocks.reshape(42, -1), KINDS[bits]).reshape(2, 21, 96)
    np.testing.assert_array_equal(dequantize(w), theirs.swapaxes(1, 2))
    np.testing.assert_array_equal(dequantize(from_gguf_blocks(blocks, transposed=True)), theirs)
    assert w.shape == (2, 96, 21) and w.packed.shape == (2, *packed_shapes(bits, 96, 21)[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 8]), st.floats(1e-2, 1e3))
def test_the_quantization_error_is_bounded_by_the_step(seed, bits, size):
    w = size * weight(seed, 2, 64, 5)
    error, largest = (np.abs(a).reshape(2, 2, 32, 5).max(2) for a in (np.asarray(dequantize(quantize(w, bits))) - w, w))
    # In 4 bits values are clipped to 0.7 of the largest, plus half a step; float16 holds 11 bits of a scale.
    assert (error <= largest * (0.35 if bits == 4 else 1 / 200)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_large_weight_is_quantized_in_blocks(bits, monkeypatch):
    w = weight(0, 3, 64, 70)
    whole = quantize(w, bits)
    monkeypatch.setattr("alhena.model.quantized.rounding.BLOCK", 1)
    jax.tree.map(np.testing.assert_array_equal, quantize(w, bits), whole)
    transposed = quantize(w.swapaxes(1, 2), bits, transposed=True)
    np.testing.assert_array_equal(dequantize(transposed), dequantize(whole).swapaxes(1, 2))


def test_a_weight_that_cannot_be_quantized_is_refused():
    with pytest.raises(ValueError, match="48 inputs cannot be quantized: groups of 32"):
        quantize(weight(0, 48, 4))
    for value in (np.nan, np.inf, 1e6):
        with pytest.raises(ValueError, match="not finite, or too large"):
            quantize(np.full((32, 4), value, np.float32))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_matmul_is_that_of_rounded_activations(bits):
    """In float64, from the formula."""
    x, w = weight(0, 7, 96), quantize(weight(1, 96, 50), bits)
    grouped = x.reshape(7, 3, 32).astype(np.float64)
    scale = np.abs(grouped).max(-1, keepdims=True) / 127
    rounded = (np.rint(grouped / scale) * scale).reshape(7, 96)
    expected = rounded @ np.asarray(dequantize(w), np.float64)
    np.testing.assert_allclose(portable_matmul(jnp.asarray(x), w), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(matmul(jnp.asarray(x), w), expected, rtol=0, atol=1e-5)


def test_a_layer_of_a_stack_of_stacks_is_an_index():
    x, w = jnp.asarray(weight(0, 2, 32)), quantize(weight(1, 3, 4, 32, 20))
    one = at(at(w, 2), jnp.int32(1))
    assert one.shape == (32, 20) and one.packed.shape[0] == 12
    np.testing.assert_array_equal(dequantize(one), dequantize(w)[2, 1])
    np.testing.assert_array_equal(matmul(x, one), matmul(x, quantize(weight(1, 3, 4, 32, 20)[2, 1])))
    with pytest.raises(ValueError, match=r"do not fit a quantized weight of shape \(4, 32, 20\)"):
        matmul(x, at(w, 0))


def test_gradients_are_those_of_the_dequantized_weight():
    x, w = jnp.asarray(weight(0, 5, 64)), quantize(weight(1, 3, 64, 20))
    dense, cotangent = dequantize(w)[1], weight(2, 5, 20)
    value, pull = jax.vjp(lambda x: matmul(x, at(w, 1)), x)
    np.testing.assert_allclose(value, x @ dense, atol=1e-4)
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], cotangent @ dense.T, atol=1e-4)


def test_one_call_takes_several_weights():
    x, weights = jnp.asarray(weight(0, 3, 64)), [quantize(weight(n, 64, n), bits) for n, bits in ((5, 4), (40, 8))]
    for ours, w in zip(matmuls(x, weights), weights, strict=True):
        np.testing.assert_array_equal(ours, matmul(x, w))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_kernel_of_gpus_interpreted(bits):
    """On any machine, and down to Triton's intermediate language; not compiled for a GPU."""
    x, w = jnp.asarray(weight(0, 5, 96)), at(quantize(weight(1, 2, 96, 150), bits), 1)
    expected = x.astype(jnp.bfloat16).astype(jnp.float32) @ dequantize(w)
    np.testing.assert_allclose(gpu.matmul(x, w, interpret=True), expected, rtol=0, atol=1e-4)
    lowered = jax.jit(gpu.matmul).trace(x, w).lower(lowering_platforms=("cuda",))
    assert "quantized_matmul" in lowered.as_text()
