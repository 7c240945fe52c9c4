"""Blockwise = reference, kernels = reference, in values and gradients: odd lengths, windows, caps, segments, few key heads."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model.attention import full as attention
from alhena.model.attention import kernels as attention_kernels
from alhena.model.attention.full import Visibility, dense_attention, segment_attention
from alhena.model.attention.kernels import AttentionOptions


def causal_attention(q, k, v, segments, options=AttentionOptions(), is_global=False, blocks=None):
    return attention.causal_attention(q, k, v, Visibility(segments, blocks), options, is_global)


def make(length: int, heads: int, kv_heads: int, head_dim: int = 8, sort: bool = True, batch_size: int = 2):
    rng = np.random.default_rng(length + heads)
    q, k, v = (
        jnp.asarray(rng.normal(size=(batch_size, length, n, head_dim)), jnp.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    segments = rng.integers(0, 4, (batch_size, length))
    return q, k, v, jnp.asarray(np.sort(segments, 1) if sort else segments, jnp.int32)


def reference(q, k, v, segments, window=None, cap=None, scale=None):
    L, N = q.shape[1:3]
    distance = jnp.arange(L)[:, None] - jnp.arange(L)
    mask = (distance >= 0) & (distance < (window or L)) & (segments[:, :, None] == segments[:, None, :])
    scores = jnp.einsum("blnh,bsnh->bnls", q, jnp.repeat(k, N // k.shape[2], 2)) * (scale or q.shape[-1] ** -0.5)
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
    return jnp.einsum("bnls,bsnh->blnh", weights, jnp.repeat(v, N // v.shape[2], 2))


def assert_same(f, g, q, k, v, segments) -> None:
    """Compares values and gradients, for a random cotangent."""
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def both(f, *x):
        out, pull = jax.vjp(partial(f, segments=segments), *x)
        return out, *pull(cotangent)

    results = [jax.jit(partial(both, function))(q, k, v) for function in (f, g)]
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, atol=3e-5, rtol=0)


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
def test_blockwise_equals_the_reference(length, heads, kv_heads, sort, settings):
    assert_same(
        partial(causal_attention, options=AttentionOptions(**settings)),
        partial(reference, **settings),
        *make(length, heads, kv_heads, sort=sort),
    )


def make_images(segments: np.ndarray, places: list[tuple[int, int, int]]) -> jnp.ndarray:
    """Images as (sequence, first token, tokens), each within one segment; every one has the next id of its sequence."""
    blocks = np.zeros(segments.shape, np.int32)
    for sequence, start, size in places:
        assert len(set(np.asarray(segments[sequence, start : start + size]))) == 1
        blocks[sequence, start : start + size] = blocks[sequence].max() + 1
    return jnp.asarray(blocks)


def image_mask(segments, blocks, window):
    L = segments.shape[1]
    distance = jnp.arange(L)[:, None] - jnp.arange(L)
    same_image = (blocks[:, :, None] == blocks[:, None, :]) & (blocks[:, :, None] > 0)
    visible = ((distance >= 0) | same_image) & (distance < (window or L))
    return visible & (segments[:, :, None] == segments[:, None, :])


@pytest.mark.parametrize("settings", [{"window": 4}, {"window": 200, "cap": 3.0}, {}])
def test_tokens_of_an_image_attend_to_each_other_in_both_directions(settings):
    """The first image reaches into the block after the next one; another begins at its last token; one ends the sequence."""
    q, k, v, _ = make(411, 4, 2)
    segments = jnp.asarray(np.repeat([[1, 1, 2, 2, 2, 2, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2, 2, 0, 0]], 42, 1)[:, :411])
    blocks = make_images(segments, [(0, 100, 200), (0, 300, 3), (0, 345, 66), (1, 1, 3), (1, 6, 125), (1, 253, 60)])

    def reference(q, k, v, segments):
        return dense_attention(q, k, v, image_mask(segments, blocks, settings.get("window")), cap=settings.get("cap"))

    function = partial(causal_attention, options=AttentionOptions(**settings), blocks=blocks)
    assert_same(function, reference, q, k, v, segments)


def test_a_traced_flag_disables_the_window_of_images_too():
    q, k, v, segments = make(200, 2, 1)
    blocks = make_images(segments, [(0, int(np.argmax(segments[0] == 2)), 30)])
    for is_global, window in ((True, None), (False, 10)):
        actual = causal_attention(q, k, v, segments, AttentionOptions(window=10), is_global, blocks)
        expected = dense_attention(q, k, v, image_mask(segments, blocks, window))
        np.testing.assert_allclose(actual, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize(("length", "kv_heads", "scale"), [(50, 2, 1.0), (411, 4, None)])
def test_segment_attention_equals_dense_attention(length, kv_heads, scale):
    """Full attention inside each segment, one of them longer than a block; of padding nothing is compared."""
    q, k, v, _ = make(length, 4, kv_heads)
    ends = [[0.1, 0.6, 0.8], [0.3, 0.31, 0.35]]
    places = jnp.arange(length)
    segments = jnp.stack([sum((places >= end * length).astype(jnp.int32) for end in row) + 1 for row in ends])
    segments = jnp.where(places >= jnp.array([[length], [length * 0.45]]), 0, segments)
    real = (segments > 0)[:, :, None, None]

    def actual(q, k, v, segments):
        out = segment_attention(q, k, v, segments, scale)
        return jnp.where(real, out, 0)

    def expected(q, k, v, segments):
        mask = segments[:, :, None] == segments[:, None, :]
        return jnp.where(real, dense_attention(q, k, v, mask, scale), 0)

    assert_same(actual, expected, q, k, v, segments)
    assert jnp.isfinite(segment_attention(q, k, v, segments, scale)).all()


def test_a_traced_flag_disables_the_window():
    q, k, v, segments = make(200, 2, 1)
    for is_global, window in ((True, None), (False, 30)):
        actual = jax.jit(lambda flag: causal_attention(q, k, v, segments, AttentionOptions(window=30), flag))(is_global)
        np.testing.assert_allclose(actual, reference(q, k, v, segments, window), atol=3e-5, rtol=0)


@pytest.mark.parametrize("function", [causal_attention, segment_attention])
def test_memory_is_linear_in_length(function):
    def temporary(length: int) -> int:
        shapes = jax.eval_shape(lambda: make(length, 4, 1, 32, batch_size=1))
        loss = lambda q, k, v, segments: function(q, k, v, segments).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    short, long = temporary(4096), temporary(32768)
    assert long < 8.5 * short
    assert long < 32768 * 4 * 32 * 4 * 16  # sixteen arrays of the size of the queries; one array L×L would be 32


@pytest.mark.parametrize(
    ("kv_heads", "settings"), [(1, {"window": None, "cap": None}), (2, {"window": 50, "cap": 3.0})]
)
def test_splash_equals_the_reference(kv_heads, settings):
    settings = settings | {"scale": 0.2}
    assert_same(
        partial(attention_kernels.splash, interpret=True, options=AttentionOptions(**settings)),
        partial(reference, **settings),
        *make(256, 4, kv_heads, 64),
    )


def test_on_a_tpu_splash_is_chosen_where_it_fits():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1, 1, 1), ("pod", "data", "model"), abstract_device=device)

    def count_kernels(length: int, blocks: jax.Array | None = None) -> int:
        options = AttentionOptions(window=256, cap=50.0)
        loss = lambda q, k, v, segments, flag: causal_attention(q, k, v, segments, options, flag, blocks).sum()  # noqa: E731
        shapes = jax.eval_shape(lambda: (*make(length, 2, 1, 128), jnp.array(True)))
        with jax.sharding.use_abstract_mesh(mesh):
            program = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(*shapes)
        return program.mlir_module().count("tpu_custom_call")

    # Forward pass, gradients of the queries and of the keys: each with a window and without.
    assert count_kernels(1024) >= 6
    assert count_kernels(1000) == 0
    assert count_kernels(1024, jnp.zeros((2, 1024), jnp.int32)) == 0


ON_A_MESH = """
import jax
from functools import partial
from alhena.model.attention import kernels as attention_kernels
from alhena.model import sharding
from alhena.model.attention.kernels import AttentionOptions
from alhena.model.attention.full import dense_attention
from tests.model.test_attention import assert_same, causal_attention, image_mask, make, make_images, reference
splash = partial(attention_kernels.splash, interpret=True)
settings = dict(window=50, scale=0.2)
for choose_kernel in (lambda *_: splash, lambda *_: None):
    attention_kernels.choose_kernel = choose_kernel
    with sharding.use_mesh(sharding.Mesh(data=2, model=4)):
        for kv_heads in (1, 2, 4):
            assert_same(partial(causal_attention, options=AttentionOptions(**settings)), partial(reference, **settings), *make(128, 8, kv_heads))
with sharding.use_mesh(sharding.Mesh(data=2, model=4)):
    q, k, v, segments = make(128, 8, 2)
    blocks = make_images(segments, [(0, 2, 20)])
    dense = lambda q, k, v, segments: dense_attention(q, k, v, image_mask(segments, blocks, 50), 0.2)
    assert_same(partial(causal_attention, options=AttentionOptions(**settings), blocks=blocks), dense, q, k, v, segments)
"""


def test_attention_on_a_mesh_equals_the_reference():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", ON_A_MESH], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
