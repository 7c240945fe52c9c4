"""Encoders equal their reference implementations: a tiny random SigLIP and a tiny random Gemma 3n audio encoder (USM)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config
from alhena.model.encoders import usm, vision
from alhena.model.families.gemma3n import read_usm
from alhena.model.families.siglip import read_siglip
from alhena.tokens import audio_features
from alhena.tokens.images import patchify

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4  # absolute, float32


def test_the_plain_vit_equals_siglip() -> None:
    """Two images and padding in one sequence, one image in another, in the order of pooling windows."""
    params, c = read_siglip(GOLDEN / "siglip", 8, jax.random.key(0))
    with np.load(GOLDEN / "siglip" / "golden.npz") as golden:
        patched, expected = [patchify(image, c, 4) for image in golden["pixels"]], golden["hidden"]
    patches, positions = np.zeros((2, 40, c.patch_values), np.uint8), np.zeros((2, 40, 2), np.int32)
    images, slots = np.zeros((2, 40), np.int32), [(0, slice(0, 16)), (0, slice(16, 32)), (1, slice(8, 24))]
    for number, (slot, (pixels, position)) in enumerate(zip(slots, patched, strict=True), 1):
        patches[slot], positions[slot], images[slot] = pixels, position, number
    ours = jax.jit(lambda p: vision.features(p, patches, positions, images, c, "float32"))(params)
    order = patched[0][1][:, 0] * c.side + patched[0][1][:, 1]
    assert sorted(order) == list(range(16)) and list(order) != list(range(16))
    for slot, hidden in zip(slots, expected, strict=True):
        np.testing.assert_allclose(ours[slot], hidden[order], atol=TOLERANCE, rtol=0)


def test_the_usm_conformer_equals_gemma_3n() -> None:
    """Audio of several lengths in the chunks of two sequences; frames after the valid ones have no effect."""
    with np.load(GOLDEN / "usm" / "golden.npz") as golden:
        frames, lengths, expected = golden["frames"], golden["lengths"], golden["hidden"]
    X, T, M = frames.shape
    params, c = read_usm(GOLDEN / "usm", 8, jax.random.key(0), chunk=T)
    params = replace(params, project=jnp.eye(c.width))
    frames = np.where(np.arange(T)[:, None] < lengths[:, None, None], frames, 99).reshape(2, 2, T, M)
    ours, valid = jax.jit(lambda p: usm.encode(p, frames, lengths.reshape(2, 2), c, "float32"))(params)
    np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(valid.reshape(X, -1).sum(1), [c.tokens(int(n)) for n in lengths])


def test_encoders_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: an encoder of type 'gemma', not siglip_vision_model"):
        read_siglip(GOLDEN / "gemma", 8, jax.random.key(0))
    with pytest.raises(ValueError, match="needs a multiple of 8"):
        read_usm(GOLDEN / "usm", 8, jax.random.key(0), chunk=100)
    stored = (GOLDEN / "usm" / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        stored.replace('"gradient_clipping": 10000000000.0', '"gradient_clipping": 9.0')
    )
    with pytest.raises(ValueError, match=r"gradient_clipping is 9\.0; ours has 10000000000\.0"):
        read_usm(tmp_path, 8, jax.random.key(0))
    (tmp_path / "config.json").write_text(stored)
    shutil.copy(GOLDEN / "siglip" / "model.safetensors", tmp_path)
    with pytest.raises(
        ValueError, match=r"no tensor subsample_conv_projection\.input_proj_linear\.weight with a prefix of"
    ):
        read_usm(tmp_path, 8, jax.random.key(0))


def test_log_mel_equals_gemma_3n() -> None:
    with np.load(GOLDEN / "log_mel.npz") as golden:
        expected, ours = golden["features"], audio_features.log_mel(golden["sound"], config.Usm(8, 1, 1, 8))
    assert len(ours) == 60 and len(expected) == 57  # the reference omits windows that extend past the end
    np.testing.assert_allclose(ours[:57], expected, atol=TOLERANCE)


@pytest.mark.parametrize("length", [1, 45, 64])
def test_usm_vectors_do_not_depend_on_padding_or_other_chunks(length: int) -> None:
    c = config.Usm(width=16, layers=2, heads=2, hidden=32, mels=8, chunk=64, channels=(4, 4), block=3, left=4, right=1)
    params, rng = usm.init(jax.random.key(0), c, 8), np.random.default_rng(0)
    frames = rng.standard_normal((1, 2, 64, 8)).astype(np.float32)
    lengths = np.array([[length, 64]])
    first, valid = usm.encode(params, frames, lengths, c, "float32")
    assert valid[0].sum() == c.tokens(length) + c.tokens(64)
    changed = frames.copy()
    changed[0, 0, length:] = 9.0
    changed[0, 1] = 0.0
    second, _ = usm.encode(params, changed, lengths, c, "float32")
    count = c.tokens(length)
    np.testing.assert_allclose(first[0, :count], second[0, :count], atol=1e-5)
    assert not np.allclose(first[0, 4 : 4 + c.tokens(64)], second[0, 4 : 4 + c.tokens(64)], atol=1e-2)
