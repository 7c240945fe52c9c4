"""Codes as pairs: the vocabulary's table is the sum of its factors' rows, whichever way it is asked for."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import model
from alhena.model.embedding import collapse_gradient, embedding_rows, expand_logits, lookup
from alhena.model.int4 import quantize
from alhena.tokens.loader import padded_batch
from alhena.train.loss import batch_loss

FACTORS = (6, 4)
VOCABULARY = 10 + 24


@pytest.fixture(scope="module")
def rows() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (embedding_rows(VOCABULARY, FACTORS), 32))


def test_a_code_is_its_structure_plus_its_colour(rows):
    table = lookup(rows, jnp.arange(VOCABULARY), FACTORS)
    np.testing.assert_array_equal(table[:10], rows[:10])
    for code in range(24):
        np.testing.assert_array_equal(table[10 + code], rows[10 + code % 6] + rows[16 + code // 6])


def test_scores_of_rows_expand_to_scores_of_the_table(rows):
    x = jax.random.normal(jax.random.key(1), (3, 5, 32))
    whole = x @ lookup(rows, jnp.arange(VOCABULARY), FACTORS).T
    np.testing.assert_allclose(expand_logits(x @ rows.T, FACTORS), whole, atol=1e-5)


def test_collapse_is_the_transpose_of_expand():
    scores = jax.random.normal(jax.random.key(2), (7, embedding_rows(VOCABULARY, FACTORS)))
    slopes = jax.random.normal(jax.random.key(3), (7, VOCABULARY))
    (expected,) = jax.vjp(lambda s: expand_logits(s, FACTORS), scores)[1](slopes)
    np.testing.assert_allclose(collapse_gradient(slopes, FACTORS), expected, atol=1e-6)


def test_a_4_bit_table_is_looked_up_like_its_dequantised_rows(rows):
    small, ids = quantize(rows, 16, transposed=True), jnp.array([[0, 9, 10], [17, 33, 5]])
    dense = lookup(small, jnp.arange(VOCABULARY), FACTORS)
    np.testing.assert_allclose(lookup(small, ids, FACTORS), dense[ids], atol=1e-6)


def test_a_model_of_pairs_equals_the_model_of_the_whole_table(tiny, encoder, documents):
    """Loss and the gradient to everything but the embedding are those of a model that has a row for each code."""
    params, c = tiny
    table = lookup(params.embedding, jnp.arange(c.vocabulary), c.code_factors)
    whole, one = replace(params, embedding=table), replace(c, code_factors=None)
    batch = jax.tree.map(jnp.asarray, padded_batch(encoder.encode(documents[1], 256), 64, 128, 2))
    targets = jnp.where(batch.weights > 0, (batch.targets + 7) % c.vocabulary, batch.targets)  # codes among them
    batch = replace(batch, targets=targets)
    run = jax.jit(jax.value_and_grad(lambda p, c: batch_loss(p, c, batch)[0]), static_argnums=1)
    (loss, slope), (expected, other) = run(params, c), run(whole, one)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(slope.layers), jax.tree.leaves(other.layers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    to_rows = jax.vjp(lambda e: lookup(e, jnp.arange(c.vocabulary), c.code_factors), params.embedding)[1]
    np.testing.assert_allclose(slope.embedding, to_rows(other.embedding)[0], atol=1e-5)
    assert model.count(params) < model.count(whole)
