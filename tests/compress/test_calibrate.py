"""Moments of inputs come out of one backward pass; rounding with regard to them changes outputs less than rounding to nearest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.compress import grid
from alhena.compress.calibrate import is_observed, moments, on_grid
from alhena.model import model
from alhena.model.linear import einsum
from alhena.model.quantized.layout import dequantize
from alhena.model.quantized.observed import Observed, observe
from alhena.model.quantized.rounding import quantize
from alhena.model.quantized.types import type_table
from tests.compress.small import small_model


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_moments_are_those_of_the_inputs_weighted_by_the_squared_gradients_of_the_outputs():
    x, w, cotangent = random(10, 64), random(64, 6, seed=1), random(10, 6, seed=2)
    # A position that no loss depends on counts nothing.
    cotangent[3] = 0

    def loss(moments):
        return (einsum("...i,io->...o", x, Observed(w, moments)) * cotangent).sum()

    value, found = jax.value_and_grad(loss)(observe(w).moments)
    assert value == pytest.approx(float(((x @ w) * cotangent).sum()), rel=1e-4)
    expected = np.einsum("t,ti,tj->ij", (cotangent**2).mean(1), x, x)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


def test_large_weights_have_moments_inside_blocks():
    assert observe(jnp.zeros((3, 2048, 4))).moments.shape == (3, 2, 1024, 1024)


def test_every_observed_weight_of_a_model_has_moments():
    params, c, batch = small_model()
    names = [name for name, entry in type_table(model.weights(c)).items() if is_observed(entry)]
    assert {"layers.down", "vision.layers.qkv", "vision.stem.window_in", "audio.layers.second_up"} <= {*names}
    found = moments(params, c, [batch], names)
    for name in names:
        diagonal = np.diagonal(found[name], axis1=-2, axis2=-1)
        assert (diagonal >= 0).all() and diagonal.max() > 0, name


@pytest.mark.parametrize("bits", [4, 8])
def test_compensated_values_are_stored_as_they_are_and_change_outputs_less(bits):
    # Inputs of which most directions are rare, as activations are.
    x = random(500, 64) @ np.diag(np.logspace(0, -2, 64).astype(np.float32)) @ random(64, 64, seed=4)
    w = random(64, 24, seed=1)
    found = on_grid(w, bits, jnp.asarray(x.T @ x)[None])
    stored = grid.encoded(found.values, found.scales, bits)
    np.testing.assert_array_equal(dequantize(stored), found.values)
    np.testing.assert_array_equal(grid.scales_of(stored), found.scales)
    errors = [np.square(x @ (np.asarray(q) - w)).mean() for q in (found.values, dequantize(quantize(w, bits)))]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_rounded_weight_is_encoded_as_the_quantization_has_it(bits, transposed):
    w = random(2, 20, 64) if transposed else random(2, 64, 20)
    expected = quantize(w, bits, transposed)
    rounded = on_grid(np.swapaxes(w, -1, -2) if transposed else w, bits)
    stored = grid.encoded(rounded.values, rounded.scales, bits, transposed)
    jax.tree.map(np.testing.assert_array_equal, stored, expected)
