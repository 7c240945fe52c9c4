"""A small model of all modalities whose inputs are whole groups, and a batch for it."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from alhena.batch import Batch
from alhena.model import config, model
from alhena.model.quantized.layout import dequantize, is_quantized
from alhena.model.spec import WeightSpec

TOKENS, PATCHES, FRAMES = 24, 16, 32


@cache
def small_model() -> tuple[model.Params, config.Model, Batch]:
    """Params, configuration and a batch of one sequence with an image, an audio chunk and text."""
    c = config.Model(
        96,
        1,
        2,
        config.Decoder(width=32, layers=2, heads=2, head_dim=16, hidden=64),
        config.Vision(width=32, layers=1, heads=2, hidden=64),
        config.Conformer(width=32, layers=1, heads=2, hidden=64),
    )
    assert c.vision and c.audio
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 96, (1, TOKENS)).astype(np.int32)
    soft = PATCHES // c.vision.pool**2
    ids[0, :soft], ids[0, soft : soft + 2] = c.image_token, c.audio_token
    side = int(PATCHES**0.5)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(1, PATCHES, 2)
    batch = Batch(
        tokens=ids,
        targets=np.roll(ids, -1, 1),
        weights=np.ones((1, TOKENS), np.float32),
        segments=np.ones((1, TOKENS), np.int32),
        positions=np.arange(TOKENS, dtype=np.int32)[None],
        modality=np.zeros((1, TOKENS), np.int32),
        patches=rng.integers(0, 256, (1, PATCHES, c.vision.patch_values)).astype(np.uint8),
        patch_positions=grid.astype(np.int32),
        patch_images=np.ones((1, PATCHES), np.int32),
        frames=rng.normal(size=(1, 1, c.audio.chunk, c.audio.mels)).astype(np.float32),
        frame_lengths=np.array([[FRAMES]], np.int32),
    )

    def random(s: WeightSpec) -> jax.Array:
        size = s.shape[-2] ** -0.5 if s.contracted == -2 else 0.1
        return jnp.asarray(size * rng.normal(size=s.shape), jnp.float32)

    return jax.tree.map(random, model.weights(c)), c, batch


def dequantized(params: model.Params) -> model.Params:
    """The params with float32 weights in place of quantized ones."""
    return jax.tree.map(lambda w: dequantize(w) if is_quantized(w) else w, params, is_leaf=is_quantized)
