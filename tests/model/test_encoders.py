"""Encoders against the public implementations of the same designs: a tiny random SigLIP and a tiny random Gemma 3n audio encoder (USM)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config, usm, vision
from alhena.tokens import sound
from alhena.tokens.images import patchify

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4  # absolute, float32
SIGLIP = config.Vision(width=24, layers=3, heads=3, hidden=40, patch=8, pool=2, side=4, plain=True)
USM = config.Usm(
    width=24, layers=3, heads=3, hidden=96, kernel=5, mels=16, chunk=60, stack=2, channels=(6, 4), block=4, left=5, right=2, cap=3.0
)  # fmt: skip


def turned(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)


def stacked(golden: np.lib.npyio.NpzFile, pattern: str, layers: int) -> Callable[..., np.ndarray]:
    return lambda name: np.stack([golden["weights/" + pattern.format(i) + name] for i in range(layers)])


def siglip_params(golden: np.lib.npyio.NpzFile) -> vision.Vision:
    """The reference's weights under our names: ``[out, in]`` turned, scales as offsets from one, patches as rows of pixels."""
    of = stacked(golden, "encoder.layers.{}.", SIGLIP.layers)
    qkv = [f"self_attn.{x}_proj" for x in "qkv"]
    layers = vision.Layers(
        attention_norm=of("layer_norm1.weight") - 1,
        qkv=turned(np.concatenate([of(f"{x}.weight") for x in qkv], 1)),
        output=turned(of("self_attn.out_proj.weight")),
        mlp_norm=of("layer_norm2.weight") - 1,
        gate=None,
        up=turned(of("mlp.fc1.weight")),
        down=turned(of("mlp.fc2.weight")),
        biases=vision.Biases(
            of("layer_norm1.bias"), np.concatenate([of(f"{x}.bias") for x in qkv], 1), of("self_attn.out_proj.bias"),
            of("layer_norm2.bias"), of("mlp.fc1.bias"), of("mlp.fc2.bias"),
        ),
    )  # fmt: skip
    whole = lambda name: golden[f"weights/{name}"]  # noqa: E731
    patch = whole("embeddings.patch_embedding.weight").transpose(2, 3, 1, 0).reshape(SIGLIP.patch_values, -1)
    places = vision.Square(whole("embeddings.position_embedding.weight"), whole("embeddings.patch_embedding.bias"))
    project = np.zeros((4 * 24, 8), np.float32)
    return vision.Vision(
        patch, places, layers, whole("post_layernorm.weight") - 1, project, whole("post_layernorm.bias")
    )


def usm_params(golden: np.lib.npyio.NpzFile) -> usm.Usm:
    of = stacked(golden, "conformer.{}.", USM.layers)
    mlp = lambda place: (  # noqa: E731
        of(f"ffw_layer_{place}.pre_layer_norm.weight") - 1, turned(of(f"ffw_layer_{place}.ffw_layer_1.weight")),
        turned(of(f"ffw_layer_{place}.ffw_layer_2.weight")), of(f"ffw_layer_{place}.post_layer_norm.weight") - 1,
    )  # fmt: skip
    qkv = np.concatenate([of(f"attention.attn.{x}_proj.weight") for x in "qkv"], 1)
    layers = usm.Layers(
        *mlp("start"),
        attention_norm=of("attention.pre_attn_norm.weight") - 1,
        qkv=turned(qkv),
        query_scale=of("attention.attn.per_dim_scale"),
        distance=turned(of("attention.attn.relative_position_embedding.pos_proj.weight")),
        output=turned(of("attention.post.weight")),
        attention_post_norm=of("attention.post_norm.weight") - 1,
        convolution_norm=of("lconv1d.pre_layer_norm.weight") - 1,
        convolution_in=turned(of("lconv1d.linear_start.weight")),
        depthwise=turned(of("lconv1d.depthwise_conv1d.weight")[:, :, 0]),
        depthwise_norm=of("lconv1d.conv_norm.weight") - 1,
        convolution_out=turned(of("lconv1d.linear_end.weight")),
        **dict(zip(("second_norm", "second_up", "second_down", "second_post_norm"), mlp("end"), strict=True)),
        last_norm=of("norm.weight") - 1,
    )
    whole = lambda name: golden[f"weights/subsample_conv_projection.{name}"]  # noqa: E731
    kernels = [whole(f"conv_{i}.conv.weight").transpose(2, 3, 1, 0) for i in (0, 1)]
    first, second = (k.reshape(-1, k.shape[3]) for k in kernels)
    scales = [whole(f"conv_{i}.norm.weight") - 1 for i in (0, 1)]
    project = np.zeros((24, 8), np.float32)
    return usm.Usm(first, scales[0], second, scales[1], turned(whole("input_proj_linear.weight")), layers, project)


def test_the_plain_vit_is_siglip() -> None:
    """Two images in one row, windows first, padding behind them: each patch as the reference has it."""
    with np.load(GOLDEN / "siglip.npz") as golden:
        params = jax.tree.map(jnp.asarray, siglip_params(golden))
        some = [patchify(image, SIGLIP, 4) for image in golden["pixels"]]
        seen = golden["seen"]
    patches, positions = (np.concatenate([a[i] for a in some])[None] for i in (0, 1))
    images = np.repeat([1, 2, 0], [16, 16, 8])[None]
    room = ((0, 0), (0, 8), (0, 0))
    ours = vision.features(params, np.pad(patches, room), np.pad(positions, room), images, SIGLIP, "float32")[0]
    place = positions[0, :, 0] * SIGLIP.side + positions[0, :, 1]
    np.testing.assert_allclose(ours[:16], seen[0, place[:16]], atol=TOLERANCE)
    np.testing.assert_allclose(ours[16:32], seen[1, place[16:]], atol=TOLERANCE)
    assert sorted(place[:16]) == list(range(16)) and list(place[:16]) != list(range(16))  # the order is truly another


def test_the_usm_conformer_is_that_of_gemma_3n() -> None:
    """A whole sound and a shorter one behind which is padding."""
    with np.load(GOLDEN / "usm.npz") as golden:
        params = jax.tree.map(jnp.asarray, usm_params(golden))
        frames, lengths = golden["frames"].copy(), golden["lengths"]
        ours, valid = usm.hear(params, frames, jnp.asarray(lengths), USM, "float32")
        np.testing.assert_allclose(ours[:, :: USM.stack], golden["heard"], atol=TOLERANCE)
        np.testing.assert_array_equal(valid[:, :: USM.stack].sum(1), [USM.tokens(int(n)) for n in lengths])


def test_log_mel_is_that_of_gemma_3n() -> None:
    with np.load(GOLDEN / "log_mel.npz") as golden:
        theirs, ours = golden["features"], sound.log_mel(golden["sound"], config.Usm(8, 1, 1, 8))
    assert len(ours) == 60 and len(theirs) == 57  # the reference leaves out windows that reach beyond the sound
    np.testing.assert_allclose(ours[:57], theirs, atol=TOLERANCE)


@pytest.mark.parametrize("length", [1, 45, 64])
def test_usm_hears_nothing_of_what_lies_behind_a_sound(length: int) -> None:
    """Valid vectors depend on neither the padding nor the other chunks of the batch."""
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
