"""Sorted blocks = every expert on every token, in values and gradients: one token, many, experts without tokens, all weight types."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config, sharding, spec
from alhena.model.linear import dense
from alhena.model.quantized.rounding import quantize
from alhena.model.variants import moe

D, F = 32, 64


def make(experts: int, chosen: int, seed: int = 0) -> tuple[moe.Layer, config.Experts]:
    c = config.Decoder(D, 2, 2, 8, 32, experts=config.Experts(experts, chosen, F))
    rng = np.random.default_rng(seed)
    w = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), spec.shapes(moe.weights(c)))
    # Distinct probabilities, so that some experts have many tokens and some none.
    w = replace(w, router=4 * w.router, router_scale=w.router_scale + 1, expert_scale=w.expert_scale + 1)
    return jax.tree.map(jnp.asarray, w), c.experts


def tokens(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(1, n, D)).astype(np.float32)


def rms(x, scale=0.0):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (1 + scale)


def reference(w: moe.Layer, x, mlp_out, c: config.Experts):
    """Every expert of every token, times 0 where it is not chosen; from the formulas of Gemma 4."""
    r = jax.nn.softmax(rms(x) * w.router_scale * D**-0.5 @ w.router)
    kth = jnp.sort(r, -1)[..., -c.chosen, None]
    r = jnp.where(r >= kth, r, 0)
    r = r / r.sum(-1, keepdims=True) * w.expert_scale
    h, (gate, up, down) = rms(x, w.pre_norm), map(dense, (w.gate, w.up, w.down))
    hidden = jax.nn.gelu(jnp.einsum("bld,edf->blef", h, gate), approximate=True) * jnp.einsum("bld,edf->blef", h, up)
    y = jnp.einsum("ble,blef,efd->bld", r, hidden, down)
    return rms(mlp_out, w.dense_post_norm) + rms(y, w.expert_post_norm)


@pytest.mark.parametrize(
    ("experts", "chosen", "n", "max_block"),
    [(8, 2, 1, 256), (64, 2, 40, 256), (3, 2, 300, 16)],
)
def test_sorted_blocks_equal_all_experts(experts, chosen, n, max_block, monkeypatch):
    monkeypatch.setattr(moe, "MAX_BLOCK", max_block)
    w, c = make(experts, chosen)
    x, mlp_out, cotangent = tokens(n), tokens(n + 1)[:, 1:], tokens(n + 2)[:, 2:]

    def with_gradients(f):
        out, pull = jax.vjp(f, w, x, mlp_out)
        return out, pull(cotangent)

    actual = jax.jit(lambda: with_gradients(lambda *a: moe.with_mlp(*a, c, "float32")))()
    expected = jax.jit(lambda: with_gradients(lambda *a: reference(*a, c)))()
    assert len(jax.tree.leaves(actual)) == 12
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4 * float(jnp.abs(e).max()) + 1e-6, rtol=0)


def test_weights_may_be_bfloat16_or_4_bit():
    """In values and in the gradient of the tokens; 4-bit weights themselves have none, and round the activations."""
    w, c = make(8, 2)
    x, mlp_out = tokens(9), tokens(10)[:, 1:]
    for convert, tolerance in ((lambda a: a.astype(jnp.bfloat16), 1e-4), (lambda a: quantize(a), 0.05)):
        converted = replace(w, gate=convert(w.gate), up=convert(w.up), down=convert(w.down))
        plain = replace(w, **{k: dense(getattr(converted, k)).astype(jnp.float32) for k in ("gate", "up", "down")})

        def loss(f, w, x):
            return jnp.sum(f(w, x, mlp_out) * mlp_out)

        ours = partial(loss, lambda *a: moe.with_mlp(*a, c, "float32"))
        value, gradient = jax.jit(jax.value_and_grad(ours, 1))(converted, x)
        reference_loss = partial(loss, lambda *a: reference(*a, c))
        expected, expected_gradient = jax.jit(jax.value_and_grad(reference_loss, 1))(plain, x)
        np.testing.assert_allclose(value, expected, rtol=1e-3)
        np.testing.assert_allclose(gradient, expected_gradient, atol=tolerance)


def test_an_output_does_not_depend_on_the_other_tokens():
    w, c = make(8, 2)
    x = tokens(30)
    run = jax.jit(lambda x: moe.moe(w, x, c, "float32"))
    together, alone = run(x), jnp.concatenate([run(x[:, i : i + 1]) for i in range(3)], 1)
    np.testing.assert_allclose(together[:, :3], alone, atol=1e-5)


def test_a_plan_has_every_pair_once_and_one_expert_a_block():
    chosen = jnp.asarray(np.random.default_rng(0).integers(0, 3, (50, 2)) * 3, jnp.int32)
    plan = jax.jit(moe.make_plan, static_argnums=1)(chosen, 9)
    assert sorted(np.asarray(plan.pairs)[np.asarray(plan.valid)]) == list(range(100))
    for expert, pairs, valid in zip(plan.expert, plan.pairs, plan.valid, strict=True):
        assert set(np.asarray(chosen).reshape(-1)[np.asarray(pairs)[np.asarray(valid)]]) <= {int(expert)}
    assert np.asarray(plan.valid)[: int(plan.used)].any(1).all()
    assert not np.asarray(plan.valid)[int(plan.used) :].any()


def test_memory_is_that_of_a_few_experts():
    """Neither the hidden units of every token in every expert, nor a float32 copy of bfloat16 experts."""
    w, c = make(100, 2)
    w = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.ndim == 3 else a, w)
    for n, bound in ((512, 512 * 100 * F * 4 / 4), (1, w.gate.size)):
        program = jax.jit(lambda w, x: moe.moe(w, x, c, "float32")).lower(w, tokens(n)).compile()
        assert program.memory_analysis().temp_size_in_bytes < bound


def test_what_is_not_possible_is_refused():
    with pytest.raises(ValueError, match="experts is None"):
        moe.weights(config.Decoder(D, 2, 2, 8, 32))
    w, c = make(4, 2)
    mesh = jax.sharding.AbstractMesh((1, 1, 2), ("pod", "data", "model"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert sharding.has_mesh()
        with pytest.raises(ValueError, match="without a mesh"):
            jax.eval_shape(lambda x: moe.moe(w, x, c, "float32"), tokens(2))
