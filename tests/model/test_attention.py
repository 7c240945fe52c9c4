"""Blockwise = plain, kernels = blockwise, in values and gradients: odd lengths, windows, caps, segments, few key heads."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import attention_kernels
from alhena.model.attention import causal_attention
from alhena.model.attention_kernels import AttentionOptions


def make(length: int, heads: int, kv_heads: int, head_dim: int = 8, sort: bool = True, rows: int = 2):
    rng = np.random.default_rng(length + heads)
    q, k, v = (
        jnp.asarray(rng.normal(size=(rows, length, n, head_dim)), jnp.float32) for n in (heads, kv_heads, kv_heads)
    )
    segments = rng.integers(0, 4, (rows, length))
    return q, k, v, jnp.asarray(np.sort(segments, 1) if sort else segments, jnp.int32)


def plain(q, k, v, segments, window=None, cap=None, scale=None):
    L, N = q.shape[1:3]
    back = jnp.arange(L)[:, None] - jnp.arange(L)
    mask = (back >= 0) & (back < (window or L)) & (segments[:, :, None] == segments[:, None, :])
    scores = jnp.einsum("blnh,bsnh->bnls", q, jnp.repeat(k, N // k.shape[2], 2)) * (scale or q.shape[-1] ** -0.5)
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
    return jnp.einsum("bnls,bsnh->blnh", weights, jnp.repeat(v, N // v.shape[2], 2))


def assert_same(f, g, q, k, v, segments) -> None:
    """Values, and gradients of a loss that weighs every output differently."""
    push = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def both(f, *x):
        out, pull = jax.vjp(partial(f, segments=segments), *x)
        return out, *pull(push)

    run = [jax.jit(partial(both, which))(q, k, v) for which in (f, g)]
    for ours, theirs in zip(*run, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5, rtol=0)


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "sort", "settings"),
    [
        (1, 2, 1, True, {}),
        (77, 4, 1, True, {"window": 1}),
        (128, 4, 4, True, {"cap": 3.0}),
        (300, 4, 2, True, {}),
        (300, 4, 1, False, {"window": 50}),
        (391, 6, 2, True, {"window": 200, "cap": 3.0, "scale": 0.5}),
        (513, 2, 1, False, {}),
    ],
)
def test_blockwise_equals_plain(length, heads, kv_heads, sort, settings):
    assert_same(
        partial(causal_attention, options=AttentionOptions(**settings)),
        partial(plain, **settings),
        *make(length, heads, kv_heads, sort=sort),
    )


def test_a_traced_switch_lifts_the_window():
    q, k, v, segments = make(200, 2, 1)
    for see_all, window in ((True, None), (False, 30)):
        ours = jax.jit(lambda s: causal_attention(q, k, v, segments, AttentionOptions(window=30), s))(see_all)
        np.testing.assert_allclose(ours, plain(q, k, v, segments, window), atol=3e-5, rtol=0)


def test_memory_is_linear_in_length():
    def temporary(length: int) -> int:
        shapes = jax.eval_shape(lambda: make(length, 4, 1, 32, rows=1))
        loss = lambda q, k, v, segments: causal_attention(q, k, v, segments).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    short, long = temporary(4096), temporary(32768)
    assert long < 8.5 * short
    assert long < 32768 * 4 * 32 * 4 * 16  # sixteen arrays of the size of the queries; one array L×L would be 32


@pytest.mark.parametrize(
    ("kv_heads", "settings"), [(1, {"window": None, "cap": None}), (2, {"window": 50, "cap": 3.0})]
)
def test_splash_equals_plain(kv_heads, settings):
    settings = settings | {"scale": 0.2}
    assert_same(
        partial(attention_kernels.splash, interpret=True, options=AttentionOptions(**settings)),
        partial(plain, **settings),
        *make(256, 4, kv_heads, 64),
    )


def test_on_a_tpu_splash_is_chosen_where_it_fits():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1, 1, 1), ("pod", "data", "model"), abstract_device=device)
    attention = partial(causal_attention, options=AttentionOptions(window=256, cap=50.0))

    def kernels_of(length: int) -> int:
        loss = lambda q, k, v, segments, see_all: attention(q, k, v, segments, everywhere=see_all).sum()  # noqa: E731
        shapes = jax.eval_shape(lambda: (*make(length, 2, 1, 128), jnp.array(True)))
        with jax.sharding.use_abstract_mesh(mesh):
            program = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(*shapes)
        return program.mlir_module().count("tpu_custom_call")

    assert kernels_of(1024) >= 6  # forward, to the queries and to the keys: with a window and without
    assert kernels_of(1000) == 0


SPREAD = """
import jax
from functools import partial
from alhena.model import kernels, sharding
from alhena.model.attention import causal_attention
from alhena.model.attention_kernels import AttentionOptions
from tests.model.test_attention import assert_same, make, plain
splash = partial(attention_kernels.splash, interpret=True)
settings = dict(window=50, scale=0.2)
for fitting in (lambda *_: splash, lambda *_: None):
    attention_kernels.fitting = fitting
    with sharding.on(sharding.Mesh(data=2, model=4)):
        for kv_heads in (1, 2, 4):
            assert_same(partial(causal_attention, options=AttentionOptions(**settings)), partial(plain, **settings), *make(128, 8, kv_heads))
"""


def test_attention_on_a_mesh_equals_plain():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SPREAD], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
