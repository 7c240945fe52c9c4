"""The loss on soft targets: value and gradient equal a direct computation; a teacher equal to the student costs its entropy and teaches nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model.layers import softcap
from alhena.model.transformer.embedding import expand_logits
from alhena.train.chunk_loss import Z_LOSS, Labels, LossOptions, Mix, TeacherHidden, TeacherTokens
from alhena.train.loss import MAX_LOGITS, labeled_loss

N, ROWS, FACTORS = 700, 40, (16, 4)


def problem(vocabulary: int):
    """Hidden states and table of a student and of a wider teacher, and random labels; some positions have no loss weight."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    weights = jnp.asarray(rng.random(N) * (rng.random(N) < 0.6), jnp.float32)
    return draw(N, 8), draw(ROWS, 8), draw(N, 12), draw(ROWS, 12), jnp.asarray(rng.integers(0, vocabulary, N)), weights


def direct(hidden, table, p, targets, weights, options: LossOptions):
    """The mixed loss from complete logits."""
    mix, T = options.mix, options.mix.temperature
    logits = softcap(expand_logits(hidden @ table.T, options.code_factors), options.softcap)
    log_z = jax.nn.logsumexp(logits, -1)
    nats = log_z - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
    soft = -jnp.sum(p * jax.nn.log_softmax(logits / T), -1)
    return jnp.sum(weights * (mix.hard * (nats + Z_LOSS * log_z**2) + mix.soft * T**2 * soft))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("factors", [None, FACTORS])
@pytest.mark.parametrize("form", ["hidden", "tokens"])
def test_value_and_gradients_equal_a_direct_computation(form, factors, temperature):
    vocabulary = ROWS if factors is None else ROWS - sum(FACTORS) + FACTORS[0] * FACTORS[1]
    hidden, table, taught, teacher, targets, weights = problem(vocabulary)
    how = LossOptions("float32", 5.0, factors)
    options = LossOptions("float32", 3.0, factors, mix=Mix(0.3, 0.6, temperature), teacher=how)
    p = jax.nn.softmax(softcap(expand_logits(taught @ teacher.T, factors), 5.0) / temperature)
    soft = TeacherHidden(taught)
    if form == "tokens":
        values, ids = jax.lax.top_k(p, 6)
        soft, teacher = TeacherTokens(ids, values / values.sum(-1, keepdims=True)), None
        p = jnp.zeros_like(p).at[jnp.arange(N)[:, None], ids].set(soft.probabilities)
    ours = lambda h, e: labeled_loss(h, e, Labels(targets, weights, soft), teacher, options)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, table)
    reference = lambda h, e: direct(h, e, p, targets, weights, options)  # noqa: E731
    expected, expected_gradients = jax.jit(jax.value_and_grad(reference, (0, 1)))(hidden, table)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(ours)(hidden, table), expected, rtol=1e-5)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_equal_to_the_student_costs_its_entropy_and_has_no_gradient(temperature):
    hidden, table, *_, targets, weights = problem(ROWS)
    how = LossOptions("float32", 3.0)
    options = LossOptions("float32", 3.0, mix=Mix(0.0, 1.0, temperature), teacher=how)
    labels = Labels(targets, weights, TeacherHidden(hidden))
    loss = lambda h, e: labeled_loss(h, e, labels, table, options)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, table)
    log_p = jax.nn.log_softmax(softcap(hidden @ table.T, 3.0) / temperature)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    np.testing.assert_allclose(value, temperature**2 * jnp.sum(weights * entropy), rtol=1e-5)
    assert max(float(jnp.abs(g).max()) for g in gradients) < 1e-4


def test_two_large_vocabularies_are_compared_in_blocks():
    """Ten times as many tokens as one block may have take little more memory than logits of a few blocks."""
    tokens, vocabulary, D, E = 640, 262_144, 4, 8
    options = LossOptions("float32", mix=Mix(), teacher=LossOptions("float32"))
    hidden, taught, table, teacher = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((tokens, D), (tokens, E), (vocabulary, D), (vocabulary, E))
    )
    labels = Labels(
        jax.ShapeDtypeStruct((tokens,), jnp.int32), jax.ShapeDtypeStruct((tokens,), jnp.float32), TeacherHidden(taught)
    )
    loss = lambda h, e, labels, t: labeled_loss(h, e, labels, t, options)[0]  # noqa: E731
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, table, labels, teacher)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 5 * 4 * MAX_LOGITS
