"""Factorized codes: embeddings and logits equal those of a table with one row per code."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import model
from alhena.model.quantized.rounding import quantize
from alhena.model.transformer.embedding import collapse_gradient, embedding_rows, expand_logits, lookup
from alhena.tokens.examples.padding import padded_batch
from alhena.train.loss import batch_loss

FACTORS = (6, 4)
VOCABULARY = 10 + 24


@pytest.fixture(scope="module")
def rows() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (embedding_rows(VOCABULARY, FACTORS), 32))


def test_the_embedding_of_a_code_is_the_sum_of_its_factors(rows):
    table = lookup(rows, jnp.arange(VOCABULARY), FACTORS)
    np.testing.assert_array_equal(table[:10], rows[:10])
    for code in range(24):
        np.testing.assert_array_equal(table[10 + code], rows[10 + code % 6] + rows[16 + code // 6])


def test_logits_of_rows_expand_to_logits_of_the_vocabulary(rows):
    x = jax.random.normal(jax.random.key(1), (3, 5, 32))
    expected = x @ lookup(rows, jnp.arange(VOCABULARY), FACTORS).T
    np.testing.assert_allclose(expand_logits(x @ rows.T, FACTORS), expected, atol=1e-5)


def test_collapse_is_the_transpose_of_expand():
    logits = jax.random.normal(jax.random.key(2), (7, embedding_rows(VOCABULARY, FACTORS)))
    gradient = jax.random.normal(jax.random.key(3), (7, VOCABULARY))
    (expected,) = jax.vjp(lambda x: expand_logits(x, FACTORS), logits)[1](gradient)
    np.testing.assert_allclose(collapse_gradient(gradient, FACTORS), expected, atol=1e-6)


def test_lookup_in_a_4_bit_table_equals_lookup_in_the_dequantized_one(rows):
    quantized, ids = quantize(rows, transposed=True), jnp.array([[0, 9, 10], [17, 33, 5]])
    table = lookup(quantized, jnp.arange(VOCABULARY), FACTORS)
    np.testing.assert_allclose(lookup(quantized, ids, FACTORS), table[ids], atol=1e-6)


def test_a_factorized_model_equals_the_model_with_one_row_per_code(tiny, encoder, documents):
    """Compares the loss and all gradients."""
    params, c = tiny
    table = lookup(params.embedding, jnp.arange(c.vocabulary), c.code_factors)
    unfactorized, unfactorized_c = replace(params, embedding=table), replace(c, code_factors=None)
    batch = jax.tree.map(jnp.asarray, padded_batch(encoder.encode(documents[1], 256), 64, 128, 2))
    # Shifted targets, so that some are codes.
    targets = jnp.where(batch.weights > 0, (batch.targets + 7) % c.vocabulary, batch.targets)
    batch = replace(batch, targets=targets)
    run = jax.jit(jax.value_and_grad(lambda p, c: batch_loss(p, c, batch)[0]), static_argnums=1)
    (loss, gradient), (expected, other) = run(params, c), run(unfactorized, unfactorized_c)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient.layers), jax.tree.leaves(other.layers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    to_rows = jax.vjp(lambda e: lookup(e, jnp.arange(c.vocabulary), c.code_factors), params.embedding)[1]
    np.testing.assert_allclose(gradient.embedding, to_rows(other.embedding)[0], atol=1e-5)
    assert model.count(params) < model.count(unfactorized)
