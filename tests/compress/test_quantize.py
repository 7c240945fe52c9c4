"""The scale search reduces the error; the right weights of a model are quantized; the loss changes little."""

from __future__ import annotations

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.compress.quantize import quantize_model
from alhena.model import model
from alhena.model.quantized.layout import GROUP, Quantized, at, dequantize
from alhena.model.quantized.rounding import quantize
from alhena.model.quantized.types import type_table
from alhena.model.storage.weights import flatten
from alhena.tokens.examples.padding import padded_batch
from alhena.train.loss import batch_loss
from tests.compress.small import dequantized, small_model


def random_weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_searched_scales_have_less_error_than_absmax_scales_in_every_group():
    w = random_weight(64, GROUP, 50)
    searched = np.asarray(dequantize(quantize(w)))
    scale = (np.abs(w).max(1, keepdims=True) / 7.5).astype(np.float16).astype(np.float32)
    absmax = np.clip(np.round(w / scale), -8, 7) * scale
    searched_error, absmax_error = (((x - w) ** 2).mean(1) for x in (searched, absmax))
    assert (searched_error <= absmax_error * (1 + 1e-5)).all()
    assert searched_error.mean() < 0.75 * absmax_error.mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_quantization_is_symmetric_in_the_sign_of_the_largest_value(sign):
    w = np.abs(random_weight(GROUP, 20))
    q = dequantize(quantize(sign * w))
    np.testing.assert_array_equal(q, sign * np.asarray(dequantize(quantize(w))))


def test_values_on_the_grid_of_their_group_are_exact():
    steps = np.random.default_rng(0).integers(-7, 8, (4 * GROUP, 9)).astype(np.float32)
    steps[::GROUP] = -7.5  # sets the scale of its group; the only value off the grid
    restored = np.asarray(dequantize(quantize(steps * 0.25)))
    assert np.abs(np.delete(restored - steps * 0.25, np.s_[::GROUP], 0)).max() < 1e-6


def test_a_weight_of_zeros_stays_zero():
    q = quantize(np.zeros((2, 64, 8), np.float32))
    np.testing.assert_array_equal(dequantize(q), np.zeros((2, 64, 8)))
    assert np.isfinite(q.scales).all()


def test_the_tensors_of_the_table_are_quantized_and_no_other_changes(tiny):
    params, c = tiny
    specs = model.weights(c)
    before, after = flatten(params), flatten(quantize_model(params, specs))
    bits = {name: entry.bits for name, entry in type_table(specs).items() if entry.bits}
    assert before.keys() - after.keys() == bits.keys() > {"embedding", "layers.down", "vision.patch", "audio.project"}
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(before[name], after[name])
    for name in bits:  # two bytes per group of 32, complete tiles of 16 outputs
        stored = after[name + ".packed"].nbytes + after[name + ".scales"].nbytes
        outputs = before[name].shape[-2 if name == "embedding" else -1]
        assert stored == before[name].size / outputs * (outputs + -outputs % 16) * (bits[name] / 8 + 2 / 32)


def test_a_model_with_quantized_encoders_computes_what_the_dequantized_one_does():
    params, c, batch = small_model()
    quantized = quantize_model(params, model.weights(c))
    run = jax.jit(lambda p: model.forward(p, c, batch))
    expected = run(dequantized(quantized))
    # Activations are rounded to 8 bits.
    error = jnp.linalg.norm(run(quantized) - expected) / jnp.linalg.norm(expected)
    assert 0 < error < 0.05


def test_quantizing_twice_changes_nothing(tiny):
    specs = model.weights(tiny[1])
    once = quantize_model(tiny[0], specs)
    jax.tree.map(np.testing.assert_array_equal, quantize_model(once, specs), once)


def test_a_scan_over_4_bit_layers_slices_packed_values_and_scales(tiny):
    layers, quantized = tiny[0].layers, quantize_model(tiny[0], model.weights(tiny[1])).layers
    for field in fields(layers):
        stacked = getattr(quantized, field.name)
        if isinstance(stacked, Quantized):
            _, sliced = jax.lax.scan(lambda w, i: (w, dequantize(at(w, i))), stacked, jnp.arange(3))
            separate = [dequantize(quantize(layer)) for layer in getattr(layers, field.name)]
            np.testing.assert_array_equal(sliced, np.stack(separate))


def test_the_loss_changes_little_and_hidden_states_less_with_8_bits(tiny, encoder, documents):
    params, c = tiny
    batch = jax.tree.map(jnp.asarray, padded_batch(encoder.encode(documents[0], 256), 64, 0, 0))
    run = jax.jit(lambda p: (model.forward(p, c, batch), batch_loss(p, c, batch)[0]))
    hidden, loss = run(params)
    error = {}
    for bits in (4, 8):

        def rounded(s, w, bits=bits):
            if s.contracted is None or s.shape[s.contracted] % GROUP:
                return w
            return dequantize(quantize(w, bits, s.contracted == -1))

        quantized_hidden, quantized_loss = run(jax.tree.map(rounded, model.weights(c), params))
        error[bits] = float(jnp.mean((quantized_hidden - hidden) ** 2))
        assert abs(float(quantized_loss - loss)) < 0.05 * float(loss)
    assert 0 < error[8] < 0.01 * error[4]
