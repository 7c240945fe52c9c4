"""The plain ViT equals its reference implementation, a tiny random SigLIP."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from alhena.model.encoders import vision
from alhena.model.families.encoders.siglip import read_siglip
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


def test_encoders_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: an encoder of type 'gemma', not siglip_vision_model"):
        read_siglip(GOLDEN / "gemma", 8, jax.random.key(0))
    stored = (GOLDEN / "siglip" / "config.json").read_text()
    (tmp_path / "config.json").write_text(stored.replace('"layer_norm_eps": 1e-06', '"layer_norm_eps": 0.5'))
    with pytest.raises(ValueError, match=r"layer_norm_eps is 0\.5; ours has 1e-06"):
        read_siglip(tmp_path, 8, jax.random.key(0))
    (tmp_path / "config.json").write_text(stored)
    shutil.copy(GOLDEN / "gemma4_audio" / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"no tensor post_layernorm\.weight with a prefix of"):
        read_siglip(tmp_path, 8, jax.random.key(0))
