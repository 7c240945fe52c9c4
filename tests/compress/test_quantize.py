"""What the search for scales buys, what is quantized in a model and what is not, and that the loss hardly moves."""

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


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_searched_scales_lose_less_than_the_largest_value_does_in_every_group():
    w = weight(64, GROUP, 50)
    searched = np.asarray(dequantize(quantize(w, GROUP)))
    scale = np.abs(w).max(1, keepdims=True) / 7.5
    plain = np.clip(np.round(w / scale), -8, 7) * scale
    ours, theirs = (((x - w) ** 2).mean(1) for x in (searched, plain))
    assert (ours <= theirs * (1 + 1e-5)).all()
    assert ours.mean() < 0.75 * theirs.mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_either_sign_of_the_largest_value_costs_the_same(sign):
    w = np.abs(weight(GROUP, 20))
    q = dequantize(quantize(sign * w, GROUP))
    np.testing.assert_array_equal(q, sign * np.asarray(dequantize(quantize(w, GROUP))))


def test_values_on_the_grid_of_their_group_are_kept():
    steps = np.random.default_rng(0).integers(-7, 8, (4 * GROUP, 9)).astype(np.float32)
    steps[::GROUP] = -7.5  # the largest of each group sets the scale, and is the only one between two steps
    back = np.asarray(dequantize(quantize(steps * 0.25, GROUP)))
    assert np.abs(np.delete(back - steps * 0.25, np.s_[::GROUP], 0)).max() < 1e-6


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
    for name in changed:  # half a byte a value, four bytes a group of sixteen
        stored = after[name + ".packed"].nbytes + after[name + ".scales"].nbytes
        assert stored == before[name].size * (1 / 2 + 4 / 16)


def test_quantising_twice_changes_nothing(tiny):
    specs = model.weights(tiny[1])
    once = quantize_model(tiny[0], specs, 16)
    jax.tree.map(np.testing.assert_array_equal, quantize_model(once, specs, 16), once)


def test_layers_are_quantised_one_by_one(tiny):
    """A scan over stacked 4-bit layers slices packed values and scales alike."""
    layers, small = tiny[0].layers, quantize_model(tiny[0], model.weights(tiny[1]), 16).layers
    for field in fields(layers):
        stacked = getattr(small, field.name)
        if isinstance(stacked, Int4):
            _, sliced = jax.lax.scan(lambda _, w: (0, dequantize(w)), 0, stacked)
            alone = [dequantize(quantize(layer, 16)) for layer in getattr(layers, field.name)]
            np.testing.assert_array_equal(sliced, np.stack(alone))


def test_loss_moves_little_and_hidden_states_less_with_smaller_groups(tiny, encoder, documents):
    params, c = tiny
    batch = jax.tree.map(jnp.asarray, padded_batch(encoder.encode(documents[0], 256), 64, 0, 0))
    run = jax.jit(lambda p: (model.forward(p, c, batch), batch_loss(p, c, batch)[0]))
    is_small = lambda w: isinstance(w, Int4)  # noqa: E731
    hidden, loss = run(params)
    drift = {}
    for group in (2, 16):
        small = quantize_model(params, model.weights(c), group)
        moved, its_loss = run(jax.tree.map(lambda w: dequantize(w) if is_small(w) else w, small, is_leaf=is_small))
        drift[group] = float(jnp.mean((moved - hidden) ** 2))
        assert abs(float(its_loss - loss)) < 0.05 * float(loss)
    assert 0 < drift[2] < drift[16]
