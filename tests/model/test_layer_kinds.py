"""Layers of different kinds: cached = full forward, packed = separate, scanned = layer by layer, gradients with and without remat."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.batch import Batch
from alhena.model import config, model
from alhena.model.attention.paged_cache import kinds
from alhena.model.config import AltUp, Decoder, Experts, PerLayerInputs
from alhena.model.layers import rope_table
from alhena.model.spec import WeightSpec
from alhena.model.transformer import decoder, layer_kinds
from alhena.model.transformer.layer_kinds import Location, locate, segments
from tests.model import cached
from tests.model.test_gemma import text_batch

IMAGE, AUDIO, VIDEO, VOCABULARY = 40, 41, 42, 48
BASE = Decoder(
    width=24, layers=6, heads=4, head_dim=4, hidden=20, window=4, global_every=3, local_rope_base=100.0, kv_heads=2
)
GEMMA_4 = replace(
    BASE,
    global_head_dim=16,
    global_rope_fraction=0.25,
    query_pre_attn_scalar=1.0,
    value_norm=True,
    layer_scalar=True,
    final_logit_softcap=30.0,
)
SHARING = {"layers": 6, "global_every": 2, "kv_sharing_layers": 2, "per_layer_inputs": PerLayerInputs(6, 44)}
DECODERS = {
    "gemma 3": replace(BASE, image_attention="all", rope_scaling_factor=8.0),
    "gemma 4 e2b": replace(GEMMA_4, kv_sharing_hidden=40, **SHARING),
    # 31B and 12B are the same without experts.
    "gemma 4 26b": replace(
        GEMMA_4, global_key_as_value=True, global_kv_heads=1, image_attention="local", experts=Experts(6, 2, 8)
    ),
    "gemma 3n": replace(BASE, value_norm=True, altup=AltUp(3, 5, sparse_layers=2, sparsity=0.6), **SHARING),
    "log scaling": replace(BASE, global_rope_fraction=0.0, log_scaling_start=5),
}
# Layers of one shape with options.
UNIFORM = replace(
    BASE, value_norm=True, layer_scalar=True, image_attention="local", per_layer_inputs=PerLayerInputs(6, 44), layers=3
)
# Compiled quickly: these programs run once.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LENGTHS = np.array([9, 14, 7])
TOTAL = 22


def make(d: Decoder) -> tuple[model.Params, config.Model]:
    """A model all of whose weights are random: norms, scalars and coefficients too."""
    c = config.Model(VOCABULARY, IMAGE, AUDIO, d, None, None, video_token=VIDEO, replace_placeholders=True)
    rng = np.random.default_rng(1)

    def random(s: WeightSpec) -> jax.Array:
        """Around the initial value of norms and scalars."""
        scale = 0.1 if len(s.shape) < 3 else s.shape[-2] ** -0.5
        return jnp.asarray(getattr(s.initializer, "value", 0) + scale * rng.normal(size=s.shape), jnp.float32)

    return jax.tree.map(random, model.weights(c)), c


@dataclass(frozen=True)
class Tiny:
    """A model, and its hidden states of the sequences of :func:`prompts`."""

    params: model.Params
    c: config.Model
    hidden: np.ndarray


@pytest.fixture(scope="module", params=DECODERS)
def tiny(request) -> Tiny:
    params, c = make(DECODERS[request.param])
    return Tiny(params, c, forward(params, c, text_batch(prompts())))


def assert_close(actual: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max(), rtol=0, err_msg=name)


@pytest.fixture(autouse=True, scope="module")
def scanned() -> Iterator[None]:
    """Layers are scanned, which compiles faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "MAX_UNROLLED", 0)
        yield


def prompts() -> np.ndarray:
    """Sequences with images, some longer than the window and side by side with a mark between them, and with a sound."""
    tokens = np.random.default_rng(2).integers(0, IMAGE, (len(LENGTHS), TOTAL))
    tokens[0, 2:8] = IMAGE
    tokens[1, 1:4] = tokens[1, 5:11] = VIDEO
    tokens[1, 12:14] = AUDIO
    tokens[2, 0:6] = IMAGE
    # Beyond the table of the per-layer inputs.
    tokens[:, -3] = VOCABULARY - 1
    return tokens


def forward(params: model.Params, c: config.Model, batch: Batch) -> np.ndarray:
    # A function of its own each time: nothing compiled before is used.
    return np.asarray(compiled(lambda p, b: model.forward(p, c, b))(params, batch))


def test_cached_equals_full(tiny):
    params, c, tokens = tiny.params, tiny.c, prompts()
    longest = LENGTHS.max()
    mask = np.arange(longest)[None] < LENGTHS[:, None]
    batch = text_batch(tokens[:, :longest] * mask)
    batch = replace(batch, segments=batch.segments * mask)
    hidden, cache = compiled(lambda p, b: cached.prefill(p, c, b, TOTAL))(params, batch)
    decode, sequences = compiled(lambda p, *inputs: cached.decode(p, c, *inputs)), np.arange(len(tokens))
    for positions in LENGTHS + np.arange(TOTAL - longest)[:, None]:
        assert_close(hidden, tiny.hidden[sequences, positions - 1])
        token = jnp.asarray(tokens[sequences, positions])
        hidden, cache = decode(params, token, jnp.asarray(positions, jnp.int32), cache)
    assert_close(hidden, tiny.hidden[sequences, positions])


def packed(tokens: np.ndarray, lengths: np.ndarray) -> Batch:
    """The beginnings of all sequences in one."""
    one = text_batch(np.concatenate([row[:n] for row, n in zip(tokens, lengths, strict=True)])[None])
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    return replace(one, segments=segments, positions=positions)


def test_packed_equals_separate(tiny):
    # The first sequence ends with an image, the next begins with one.
    order, lengths = np.array([0, 2, 1]), np.array([8, 12, TOTAL])
    hidden = forward(tiny.params, tiny.c, packed(prompts()[order], lengths))[0]
    for row, part in zip(tiny.hidden[order], np.split(hidden, np.cumsum(lengths)[:-1]), strict=True):
        assert_close(part, row[: len(part)])


def test_queries_grow_with_the_logarithm_of_the_number_of_tokens():
    """Of the last of nine tokens: scores are log(9) / log(5) times as large; of the first five they are the same."""
    d, tokens = replace(BASE, layers=1, window=None), text_batch(prompts()[:, :9])
    params, c = make(d)
    plain, scaled, larger = (
        forward(params, replace(c, decoder=replace(d, **option)), tokens)
        for option in ({}, {"log_scaling_start": 5}, {"query_pre_attn_scalar": 4 * (math.log(5) / math.log(9)) ** 2})
    )
    np.testing.assert_array_equal(scaled[:, :5], plain[:, :5])
    assert_close(scaled[:, 8], larger[:, 8])
    assert np.abs(scaled[:, 5:] - plain[:, 5:]).max() > 1e-3


@pytest.mark.parametrize("name", ["gemma 4 e2b", "gemma 3n"])
def test_gradients_reach_every_weight_and_do_not_depend_on_remat(name):
    params, c = make(DECODERS[name])
    batch = text_batch(prompts()[:2])
    factors = jnp.asarray(np.random.default_rng(3).normal(size=(*batch.tokens.shape, BASE.width)), jnp.float32)

    def gradients(c: config.Model) -> model.Params:
        return compiled(jax.grad(lambda p: (model.forward(p, c, batch) * factors).sum()))(params)

    plain, remat = gradients(c), gradients(replace(c, decoder=replace(c.decoder, remat=True)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(remat), strict=True):
        assert np.abs(a).max() > 0, jax.tree_util.keystr(path)
        assert_close(b, a, jax.tree_util.keystr(path))


def layer_by_layer(patch: pytest.MonkeyPatch, params: model.Params, c: config.Model) -> model.Params:
    """Params of the same decoder with a segment for each layer, which the decoder is made to run."""
    alone, kinds = list[tuple[decoder.Layers, ...]](), list[layer_kinds.Segment]()
    for i in range(c.decoder.layers):
        at = locate(c.decoder, i)
        stack = decoder.as_segments(params.layers)[at.segment][at.position]
        alone.append((jax.tree.map(lambda x, r=at.repeat: x[r : r + 1], stack),))
        kinds.append(layer_kinds.Segment((layer_kinds.layer_kind(c.decoder, i),), 1, i))
    patch.setattr(decoder, "segments", lambda _: tuple(kinds))
    return replace(params, layers=tuple(alone))


@pytest.mark.parametrize("d", [UNIFORM, DECODERS["gemma 4 e2b"]], ids=["uniform", "gemma 4 e2b"])
def test_scanned_equals_layer_by_layer(d, monkeypatch):
    (params, c), batch = make(d), text_batch(prompts())
    scanned = forward(params, c, batch)
    assert_close(forward(layer_by_layer(monkeypatch, params, c), c, batch), scanned)


def test_weights_in_bfloat16():
    """Sliced in another way, they give the same numbers as in float32; so do the experts of a prompt, and gradients."""
    params, c = make(replace(DECODERS["gemma 4 26b"], layers=4, global_every=2))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    batch = text_batch(prompts()[:1, :9])

    def outputs(p: model.Params) -> tuple[jax.Array, jax.Array, jax.Array]:
        gradient = jax.grad(lambda norm: model.forward(replace(p, norm=norm), c, batch).sum())(p.norm)
        return cached.prefill(p, c, batch, 9)[0], model.forward(p, c, batch)[:, -1], gradient

    expected = compiled(outputs)(jax.tree.map(lambda x: x.astype(jnp.float32), half))
    prompt, full, gradient = compiled(outputs)(half)
    assert_close(prompt, expected[0])
    assert_close(full, expected[0])
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected[2], atol=0.01 * np.abs(expected[2]).max())


@pytest.mark.parametrize("attention", config.IMAGE_ATTENTION)
@pytest.mark.parametrize("window", [3, None])
def test_image_tokens_attend_to_later_tokens_of_their_image(attention, window):
    """What a token of one layer depends on, of two documents: the table of open weights' masks."""
    tokens = np.array([[9, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 9, VIDEO, VIDEO, 9, IMAGE, IMAGE, IMAGE, 9]])
    segments = np.array([[1] * 11 + [2] * 3])
    images = np.array([0, 1, 1, 1, 1, 1, 0, 2, 2, 0, 3, 4, 4, 0])
    params, c = make(replace(BASE, layers=1, window=window, global_every=2, image_attention=attention))
    size = tokens.shape[1]
    packing = model.packing(c, replace(text_batch(tokens), segments=segments.astype(np.int32)))
    packing = jax.tree.map(lambda a: jnp.tile(a, (size + 1, 1)), packing)
    # Sequence j + 1 differs from the first at token j.
    x = np.tile(np.random.default_rng(4).normal(size=(size, BASE.width)), (size + 1, 1, 1)).astype(np.float32)
    x[np.arange(size) + 1, np.arange(size)] += 1
    out = np.asarray(decoder.run(params.layers, decoder.Inputs(x, None), packing, c.decoder, "float32"))
    depends = (np.abs(out[1:] - out[0]).max(-1) > 1e-6).T
    distance = np.arange(size)[:, None] - np.arange(size)
    both = (images[:, None] == images) & (images > 0) & (attention == "all" or (attention == "local" and window == 3))
    expected = ((distance >= 0) | both) & (distance < (window or size)) & (segments[0][:, None] == segments[0])
    np.testing.assert_array_equal(depends, expected)


def test_segments_of_published_models():
    e2b = Decoder(
        1536,
        35,
        8,
        256,
        6144,
        window=512,
        global_every=5,
        kv_sharing_layers=20,
        global_head_dim=512,
        kv_sharing_hidden=12288,
    )
    assert [(len(s.kinds), s.repeats) for s in segments(e2b)] == [(5, 3), (5, 4)]
    assert locate(e2b, 14) == Location(0, 4, 2)
    assert locate(e2b, 33) == Location(1, 3, 3)
    # Layers before the shared ones alone write to the cache: 3 global, 12 local.
    assert [(kind.writers, kind.kv_heads, kind.head_dim) for kind in kinds(e2b)] == [(3, 1, 512), (12, 1, 256)]
    gemma_3n = replace(
        e2b,
        layers=30,
        kv_sharing_layers=10,
        global_head_dim=None,
        kv_sharing_hidden=None,
        per_layer_inputs=PerLayerInputs(256, 262_144),
        altup=AltUp(4, 64, sparse_layers=10),
    )
    assert [(len(s.kinds), s.repeats) for s in segments(gemma_3n)] == [(5, 2), (5, 2), (5, 2)]
    gemma_3 = Decoder(1152, 26, 4, 256, 6912, window=512, global_every=6)
    assert [(len(s.kinds), s.repeats) for s in segments(gemma_3)] == [(1, 26)]
    with_tail = replace(gemma_3, global_head_dim=512)
    assert [(len(s.kinds), s.repeats) for s in segments(with_tail)] == [(6, 4), (1, 2)]
    assert locate(with_tail, 25) == Location(1, 0, 1)
    with pytest.raises(ValueError, match="there is no layer 26: the decoder has 26, numbered from 0"):
        locate(with_tail, 26)


def test_only_a_fraction_of_the_frequencies_turns():
    """Gemma 4's global layers: the frequencies of a full head, of which the last ones are 0."""
    table = np.asarray(rope_table(jnp.array([[7.0]]), 16, 100.0, 0.25))[0, 0]
    angles = [7 * 100.0 ** (-2 * i / 16) if i < 2 else 0 for i in range(8)]
    np.testing.assert_allclose(table, [*map(math.cos, angles), *map(math.sin, angles)], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_head_dim": 7}, "Decoder.global_head_dim is 7; rotary positions need an even number"),
        ({"global_kv_heads": 3}, "Decoder.global_kv_heads is 3; it must divide heads, 4"),
        (
            {"kv_sharing_layers": 4},
            "Decoder.kv_sharing_layers is 4; layer 2 has no layer of its kind among the first 2",
        ),
        ({"altup": AltUp(2, 4)}, "Decoder.altup: it needs post_norm and per_layer_inputs"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(BASE, **settings)
