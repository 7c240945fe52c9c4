"""Equivalences of the model: packed = separate, cached = full, and what a document can and cannot see."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import model
from alhena.tokens.loader import padded_batch

forward = jax.jit(model.forward, static_argnums=1)
prefill = jax.jit(model.prefill, static_argnums=(1, 3))
decode = jax.jit(model.decode, static_argnums=1)
CLOSE = {"atol": 2e-5, "rtol": 0}  # float32


def examples(encoder, documents):
    return [e for d in documents for e in encoder.encode(d, 256)]


def hidden(tiny, batch):
    return np.asarray(forward(*tiny, jax.tree.map(jnp.asarray, batch)))


def pack(some, tokens=256, patches=128, chunks=8):
    """Several examples in one row, as the loader packs them."""
    single = padded_batch(some, tokens, patches, chunks)
    rows = {}
    for name, room in (("tokens", tokens), ("patches", patches), ("frames", chunks)):
        fields = {"tokens": ("tokens", "targets", "weights", "modality", "segments", "positions")}
        fields |= {"patches": ("patches", "patch_positions", "patch_images"), "frames": ("frames", "frame_lengths")}
        lengths = [len(getattr(e, name)) for e in some]
        for f in fields[name]:
            pieces = [getattr(single, f)[i, :n] for i, n in enumerate(lengths)]
            if f == "segments":
                pieces = [p * (i + 1) for i, p in enumerate(pieces)]
            if f == "patch_images":
                pieces = [p + 1000 * (i + 1) for i, p in enumerate(pieces)]
            value = np.concatenate(pieces)
            rows[f] = np.concatenate([value, np.zeros((room - len(value), *value.shape[1:]), value.dtype)])[None]
    return replace(single, **rows), np.cumsum([0, *(len(e.tokens) for e in some)])


def test_packed_equals_separate(tiny, encoder, documents):
    some = examples(encoder, documents)
    row, starts = pack(some)
    together = hidden(tiny, row)[0]
    alone = hidden(tiny, padded_batch(some, 64, 64, 4))
    for i, example in enumerate(some):
        n = len(example.tokens)
        np.testing.assert_allclose(together[starts[i] : starts[i] + n], alone[i, :n], **CLOSE)


@pytest.mark.parametrize("window", [None, 7])
def test_cached_equals_full(tiny, encoder, documents, window):
    params, c = tiny
    c = replace(c, decoder=replace(c.decoder, window=window, global_every=2))
    some = examples(encoder, documents)
    batch = padded_batch(some, 64, 64, 4)
    full = np.asarray(forward(params, c, jax.tree.map(jnp.asarray, batch)))
    lengths = np.array([len(e.tokens) for e in some])
    cut = lengths - 4  # the last four tokens are text and are decoded one by one
    keep = np.arange(64)[None] < cut[:, None]
    prompt = replace(batch, segments=batch.segments * keep, tokens=batch.tokens * keep)
    state, kept = prefill(params, c, jax.tree.map(jnp.asarray, prompt), 80)
    for step in range(4):
        np.testing.assert_allclose(state, full[np.arange(len(some)), cut + step - 1], **CLOSE)
        token = jnp.asarray(batch.tokens[np.arange(len(some)), cut + step])
        state, kept = decode(params, c, token, jnp.asarray(cut + step, jnp.int32), kept)
    np.testing.assert_allclose(state, full[np.arange(len(some)), lengths - 1], **CLOSE)


def test_no_token_sees_what_comes_later(tiny, encoder, documents):
    batch = padded_batch(examples(encoder, documents)[:1], 64, 0, 0)
    changed = replace(batch, tokens=np.where(np.arange(64) >= 8, 5, batch.tokens).astype(np.int32))
    before, after = hidden(tiny, batch), hidden(tiny, changed)
    np.testing.assert_array_equal(before[0, :8], after[0, :8])
    assert np.abs(before[0, 8:12] - after[0, 8:12]).max() > 1e-3


def test_every_medium_changes_the_answer(tiny, encoder, documents):
    batch = padded_batch(examples(encoder, documents)[3:], 64, 64, 4)
    base = hidden(tiny, batch)
    louder = replace(batch, frames=batch.frames + 0.5)
    brighter = replace(batch, patches=255 - batch.patches)
    turned = replace(batch, patch_positions=batch.patch_positions[..., ::-1])
    for other in (louder, brighter, turned):
        assert np.abs(hidden(tiny, other) - base).max() > 1e-3


def test_padding_of_a_sound_is_never_heard(tiny, encoder, documents):
    batch = padded_batch(examples(encoder, documents)[2:3], 64, 0, 4)
    inside = np.arange(batch.frames.shape[2])[None, None] < batch.frame_lengths[..., None]
    noisy = replace(batch, frames=np.where(inside[..., None], batch.frames, 9.0).astype(np.float32))
    np.testing.assert_array_equal(hidden(tiny, batch), hidden(tiny, noisy))
