"""Equivalences of the model: packed = separate, cached = full forward; causality; every modality has an effect."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import model
from alhena.tokens.examples.padding import padded_batch
from tests.model import cached

forward = jax.jit(model.forward, static_argnums=1)
prefill = jax.jit(cached.prefill, static_argnums=(1, 3))
decode = jax.jit(cached.decode, static_argnums=1)
# For float32.
CLOSE = {"atol": 2e-5, "rtol": 0}


def examples(encoder, documents):
    return [e for d in documents for e in encoder.encode(d, 256)]


def hidden(tiny, batch):
    return np.asarray(forward(*tiny, jax.tree.map(jnp.asarray, batch)))


def pack(documents, tokens=256, patches=128, chunks=8):
    """Several examples in one sequence, as the loader packs them."""
    separate = padded_batch(documents, tokens, patches, chunks)
    packed = {}
    for name, size in (("tokens", tokens), ("patches", patches), ("frames", chunks)):
        fields = {"tokens": ("tokens", "targets", "weights", "modality", "segments", "positions")}
        fields |= {"patches": ("patches", "patch_positions", "patch_images"), "frames": ("frames", "frame_lengths")}
        lengths = [len(getattr(e, name)) for e in documents]
        for f in fields[name]:
            values = [getattr(separate, f)[i, :n] for i, n in enumerate(lengths)]
            if f == "segments":
                values = [value * (i + 1) for i, value in enumerate(values)]
            if f == "patch_images":
                values = [value + 1000 * (i + 1) for i, value in enumerate(values)]
            value = np.concatenate(values)
            packed[f] = np.concatenate([value, np.zeros((size - len(value), *value.shape[1:]), value.dtype)])[None]
    return replace(separate, **packed), np.cumsum([0, *(len(e.tokens) for e in documents)])


def test_packed_equals_separate(tiny, encoder, documents):
    encoded = examples(encoder, documents)
    batch, starts = pack(encoded)
    packed = hidden(tiny, batch)[0]
    separate = hidden(tiny, padded_batch(encoded, 64, 64, 4))
    for i, example in enumerate(encoded):
        n = len(example.tokens)
        np.testing.assert_allclose(packed[starts[i] : starts[i] + n], separate[i, :n], **CLOSE)


@pytest.mark.parametrize("window", [None, 7])
def test_cached_equals_full(tiny, encoder, documents, window):
    params, c = tiny
    c = replace(c, decoder=replace(c.decoder, window=window, global_every=2))
    encoded = examples(encoder, documents)
    batch = padded_batch(encoded, 64, 64, 4)
    full = np.asarray(forward(params, c, jax.tree.map(jnp.asarray, batch)))
    sequences, lengths = np.arange(len(encoded)), np.array([len(e.tokens) for e in encoded])
    # The last four tokens are text and are decoded one by one.
    prompt_lengths = lengths - 4
    mask = np.arange(64)[None] < prompt_lengths[:, None]
    prompt = replace(batch, segments=batch.segments * mask, tokens=batch.tokens * mask)
    state, cache = prefill(params, c, jax.tree.map(jnp.asarray, prompt), 80)
    for step in range(4):
        np.testing.assert_allclose(state, full[sequences, prompt_lengths + step - 1], **CLOSE)
        token = jnp.asarray(batch.tokens[sequences, prompt_lengths + step])
        state, cache = decode(params, c, token, jnp.asarray(prompt_lengths + step, jnp.int32), cache)
    np.testing.assert_allclose(state, full[sequences, lengths - 1], **CLOSE)


def test_attention_is_causal(tiny, encoder, documents):
    batch = padded_batch(examples(encoder, documents)[:1], 64, 0, 0)
    changed = replace(batch, tokens=np.where(np.arange(64) >= 8, 5, batch.tokens).astype(np.int32))
    before, after = hidden(tiny, batch), hidden(tiny, changed)
    np.testing.assert_array_equal(before[0, :8], after[0, :8])
    assert np.abs(before[0, 8:12] - after[0, 8:12]).max() > 1e-3


def test_every_modality_changes_the_hidden_states(tiny, encoder, documents):
    batch = padded_batch(examples(encoder, documents)[3:], 64, 64, 4)
    base = hidden(tiny, batch)
    louder = replace(batch, frames=batch.frames + 0.5)
    brighter = replace(batch, patches=255 - batch.patches)
    transposed = replace(batch, patch_positions=batch.patch_positions[..., ::-1])
    for other in (louder, brighter, transposed):
        assert np.abs(hidden(tiny, other) - base).max() > 1e-3


def test_padding_of_audio_has_no_effect(tiny, encoder, documents):
    batch = padded_batch(examples(encoder, documents)[2:3], 64, 0, 4)
    mask = np.arange(batch.frames.shape[2])[None, None] < batch.frame_lengths[..., None]
    noisy = replace(batch, frames=np.where(mask[..., None], batch.frames, 9.0).astype(np.float32))
    np.testing.assert_array_equal(hidden(tiny, batch), hidden(tiny, noisy))
