"""The loss of a large vocabulary: a few logits at once, and no gradients where nobody differentiates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.train.loss import MAX_LOGITS, LossOptions, weighted_loss


@pytest.mark.parametrize("factors", [None, (16, 4)])
def test_the_value_alone_is_that_beside_the_gradients(factors):
    rng = np.random.default_rng(0)
    hidden, table = (jnp.asarray(rng.normal(size=(n, 8)), jnp.float32) for n in (700, 40))
    targets = jnp.asarray(rng.integers(0, 40, 700))
    weights = jnp.asarray(rng.random(700) * (rng.random(700) < 0.6), jnp.float32)
    options = LossOptions("float32", 3.0, factors)

    def loss(hidden):
        return weighted_loss(hidden, table, targets, weights, options)

    (total, nats), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(hidden)
    value, nats_alone = jax.jit(loss)(hidden)
    np.testing.assert_allclose(value, total, rtol=1e-6)
    np.testing.assert_allclose(nats_alone, nats, atol=1e-5)


def test_logits_of_a_large_vocabulary_are_computed_in_blocks():
    """Ten times as many tokens as one block may have take little more memory."""
    vocabulary, D = 262_144, 4

    def temporary(tokens: int, differentiate: bool) -> int:
        loss = lambda h, e, t, w: weighted_loss(h, e, t, w, LossOptions("float32"))[0]  # noqa: E731
        function = jax.value_and_grad(loss, (0, 1)) if differentiate else loss
        hidden, table = (jax.ShapeDtypeStruct((n, D), jnp.float32) for n in (tokens, vocabulary))
        targets, weights = (jax.ShapeDtypeStruct((tokens,), dtype) for dtype in (jnp.int32, jnp.float32))
        return jax.jit(function).lower(hidden, table, targets, weights).compile().memory_analysis().temp_size_in_bytes

    assert temporary(640, False) < 3 * 4 * MAX_LOGITS
    assert temporary(640, True) < 3 * 4 * MAX_LOGITS
