"""The scale search reduces the error; the right weights of a model are quantized; the loss changes little."""

from __future__ import annotations

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.compress.quantize import quantize_model
from alhena.model import model
from alhena.model.int4 import Int4, dequantize, quantize
from alhena.model.weights import flatten
from alhena.tokens.loader import padded_batch
from alhena.train.loss import batch_loss

GROUP = 32


def random_weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_searched_scales_have_less_error_than_absmax_scales_in_every_group():
    w = random_weight(64, GROUP, 50)
    searched = np.asarray(dequantize(quantize(w, GROUP)))
    scale = np.abs(w).max(1, keepdims=True) / 7.5
    absmax = np.clip(np.round(w / scale), -8, 7) * scale
    searched_error, absmax_error = (((x - w) ** 2).mean(1) for x in (searched, absmax))
    assert (searched_error <= absmax_error * (1 + 1e-5)).all()
    assert searched_error.mean() < 0.75 * absmax_error.mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_quantization_is_symmetric_in_the_sign_of_the_largest_value(sign):
    w = np.abs(random_weight(GROUP, 20))
    q = dequantize(quantize(sign * w, GROUP))
    np.testing.assert_array_equal(q, sign * np.asarray(dequantize(quantize(w, GROUP))))


def test_values_on_the_grid_of_their_group_are_exact():
    steps = np.random.default_rng(0).integers(-7, 8, (4 * GROUP, 9)).astype(np.float32)
    steps[::GROUP] = -7.5  # sets the scale of its group; the only value off the grid
    restored = np.asarray(dequantize(quantize(steps * 0.25, GROUP)))
    assert np.abs(np.delete(restored - steps * 0.25, np.s_[::GROUP], 0)).max() < 1e-6


def test_a_weight_of_zeros_stays_zero():
    q = quantize(np.zeros((2, 64, 8), np.float32), GROUP)
    np.testing.assert_array_equal(dequantize(q), np.zeros((2, 64, 8)))
    assert np.isfinite(q.scales).all()


def test_the_matrices_of_the_decoder_and_the_embedding_become_4_bit_and_nothing_else(tiny):
    params, c = tiny
    before, after = flatten(params), flatten(quantize_model(params, model.weights(c), 16))
    changed = {"embedding"} | {f"layers.{n}" for n in ("query", "key", "value", "output", "gate", "up", "down")}
    assert before.keys() - after.keys() == changed
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(before[name], after[name])
    for name in changed:  # half a byte per value, four bytes per group of sixteen
        stored = after[name + ".packed"].nbytes + after[name + ".scales"].nbytes
        assert stored == before[name].size * (1 / 2 + 4 / 16)


def test_quantizing_twice_changes_nothing(tiny):
    specs = model.weights(tiny[1])
    once = quantize_model(tiny[0], specs, 16)
    jax.tree.map(np.testing.assert_array_equal, quantize_model(once, specs, 16), once)


def test_a_scan_over_4_bit_layers_slices_packed_values_and_scales(tiny):
    layers, quantized = tiny[0].layers, quantize_model(tiny[0], model.weights(tiny[1]), 16).layers
    for field in fields(layers):
        stacked = getattr(quantized, field.name)
        if isinstance(stacked, Int4):
            _, sliced = jax.lax.scan(lambda _, w: (0, dequantize(w)), 0, stacked)
            separate = [dequantize(quantize(layer, 16)) for layer in getattr(layers, field.name)]
            np.testing.assert_array_equal(sliced, np.stack(separate))


def test_the_loss_changes_little_and_hidden_states_less_with_smaller_groups(tiny, encoder, documents):
    params, c = tiny
    batch = jax.tree.map(jnp.asarray, padded_batch(encoder.encode(documents[0], 256), 64, 0, 0))
    run = jax.jit(lambda p: (model.forward(p, c, batch), batch_loss(p, c, batch)[0]))
    is_int4 = lambda w: isinstance(w, Int4)  # noqa: E731
    hidden, loss = run(params)
    error = {}
    for group in (2, 16):
        quantized = quantize_model(params, model.weights(c), group)
        quantized_hidden, quantized_loss = run(
            jax.tree.map(lambda w: dequantize(w) if is_int4(w) else w, quantized, is_leaf=is_int4)
        )
        error[group] = float(jnp.mean((quantized_hidden - hidden) ** 2))
        assert abs(float(quantized_loss - loss)) < 0.05 * float(loss)
    assert 0 < error[2] < error[16]
