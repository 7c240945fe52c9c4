"""Quantized weights inside the model: quantized = dequantized within the rounding of the activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.compress.quantize import quantize_model
from alhena.model import config, model, sharding, spec
from alhena.model.linear import column_parallel, dense, einsum, slice_stack, take_rows
from alhena.model.quantized.layout import dequantize, is_quantized
from alhena.model.quantized.rounding import quantize
from alhena.model.storage.weights import load_model, save_model
from alhena.tokens.examples.padding import padded_batch
from tests.model import cached

PROJECT, LOGITS = "...i,io->...o", "...i,oi->...o"


def weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_near(ours, expected):
    """Equal within the rounding of activations to 8 bits."""
    np.testing.assert_allclose(ours, expected, rtol=0, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_equals_dequantized(bits):
    x, w = jnp.asarray(weight(0, 3, 5, 64)), quantize(weight(1, 64, 24), bits)
    assert_near(einsum(PROJECT, x, w), einsum(PROJECT, x, dequantize(w)))
    table = quantize(weight(1, 50, 64), bits, transposed=True)
    ids = jnp.array([[0, 49], [7, 7]])
    np.testing.assert_array_equal(take_rows(table, ids), dequantize(table)[ids])
    assert_near(einsum(LOGITS, x, table), einsum(LOGITS, x, dequantize(table)))
    for formula, other in ((LOGITS, w), (PROJECT, table)):
        with pytest.raises(ValueError, match=r"the quantized weight of shape .* has the other orientation"):
            einsum(formula, x, other)


def test_quantized_and_plain_weights_share_an_input():
    x = jnp.asarray(weight(0, 2, 3, 64))
    weights = quantize(weight(1, 64, 24)), jnp.asarray(weight(2, 64, 8)), quantize(weight(3, 64, 40), 8)
    for ours, w in zip(column_parallel(x, weights, (None,) * 3, "float32"), weights, strict=True):
        assert_near(ours, einsum(PROJECT, x, dense(w)))


@pytest.mark.parametrize("unroll", [1, 3])
def test_a_scan_over_quantized_layers_copies_no_weights(unroll):
    x, stack = jnp.asarray(weight(0, 2, 64)), quantize(weight(1, 3, 64, 64) / 8)

    def layer(x, index):
        return einsum(PROJECT, x, slice_stack(stack, index)), None

    run = jax.jit(lambda x: jax.lax.scan(layer, x, jnp.arange(3), unroll=unroll)[0])
    expected = x
    for w in dequantize(stack):
        expected = einsum(PROJECT, expected, w)
    assert_near(run(x), expected)


def test_experts_of_all_layers_stay_in_one_quantized_stack():
    decoder = config.Decoder(64, 3, 2, 32, 64, experts=config.Experts(4, 2, 64))
    c = config.Model(64, -1, -1, decoder, None, None)
    quantized = quantize_model(model.init(jax.random.key(0), c), model.weights(c))
    dequantized = jax.tree.map(lambda w: dequantize(w) if is_quantized(w) else w, quantized, is_leaf=is_quantized)
    cache = cached.empty(c, 3, 8)
    run = jax.jit(lambda params: cached.decode(params, c, jnp.array([5, 9, 33]), jnp.zeros(3, jnp.int32), cache)[0])
    ours, expected = run(quantized), run(dequantized)
    assert np.sqrt(np.mean((ours - expected) ** 2)) < 0.03 * np.sqrt(np.mean(expected**2))


def test_on_a_mesh_weights_are_dequantized(tiny, encoder, documents):
    params, c = tiny
    quantized, specs = quantize_model(params, model.weights(c)), model.weights(c)
    dequantized = jax.tree.map(lambda w: dequantize(w) if is_quantized(w) else w, quantized, is_leaf=is_quantized)
    batch = jax.tree.map(jnp.asarray, padded_batch(encoder.encode(documents[0], 256), 64, 64, 4))
    parts = spec.shardings(quantized, specs)
    # [layers, tiles of outputs, groups of inputs, …]; the embedding is [vocabulary, width].
    assert parts.layers.down.packed[:3] == (None, "data", "model") == parts.layers.down.scales[:3]
    assert parts.embedding.packed[:2] == ("model", "data")
    with sharding.use_mesh(sharding.Mesh()):
        forward = jax.jit(model.forward, static_argnums=1)
        ours = forward(sharding.shard(quantized, parts), c, batch)
        np.testing.assert_allclose(ours, forward(dequantized, c, batch), atol=1e-5)


def test_a_4_bit_model_equals_its_dequantized_model(tiny, encoder, documents, tmp_path):
    params, c = tiny
    quantized = quantize_model(params, model.weights(c))
    dequantized = jax.tree.map(lambda w: dequantize(w) if is_quantized(w) else w, quantized, is_leaf=is_quantized)
    batch = jax.tree.map(jnp.asarray, padded_batch([e for d in documents for e in encoder.encode(d, 256)], 64, 64, 4))
    forward = jax.jit(model.forward, static_argnums=1)
    ours, expected = forward(quantized, c, batch), forward(dequantized, c, batch)
    assert np.sqrt(np.mean((ours - expected) ** 2)) < 0.03 * np.sqrt(np.mean(expected**2))
    save_model(tmp_path, quantized, c, {})
    loaded, _ = load_model(tmp_path)
    assert jax.tree.structure(quantized) == jax.tree.structure(loaded)
    for a, b in zip(jax.tree.leaves(quantized), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
