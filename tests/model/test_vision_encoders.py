"""Image encoders of open weights equal their reference implementations: Gemma 3, Gemma 4 and Gemma 4 Unified, tiny and random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alhena.model import config, model
from alhena.model.encoders import gemma_vision
from alhena.model.families.encoders import gemma4_vision, siglip
from alhena.model.families.tensor_map import Table, read_arrays, tensors
from alhena.model.model import vision_encoder
from alhena.model.spec import named
from alhena.model.storage.tensors import Tensors
from alhena.model.storage.weights import load_model, save_model
from alhena.tokens.images import patchify, preprocess

GOLDEN = Path(__file__).parent / "golden"
WIDTH = 16
# Relative to the largest number of the reference, float32.
TOLERANCE = 1e-4
PROBES = {
    "gemma3_vision": "multi_modal_projector.mm_soft_emb_norm.weight",
    "gemma4_vision": "model.vision_tower.std_bias",
    "gemma4_clipped": "model.vision_tower.encoder.layers.0.mlp.up_proj.input_min",
    "unified_vision": "model.vision_embedder.pos_embedding",
}
GEMMA4 = tuple(PROBES)[1:]


def settings(folder: str) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((GOLDEN / folder / "config.json").read_text())
    return stored


def opened(folder: str) -> tuple[config.VisionEncoder, Table, Tensors]:
    """Configuration, table and tensors of golden files."""
    stored, path = settings(folder), GOLDEN / folder / "config.json"
    prefix = "" if folder == "gemma3_vision" else "model."
    files = Tensors(GOLDEN / folder, (prefix,), PROBES[folder].removeprefix(prefix))
    if folder == "gemma3_vision":
        vision = siglip.read_config(stored["vision_config"], stored["mm_tokens_per_image"], path)
        return vision, siglip.table(vision, WIDTH), files
    c = gemma4_vision.read_config(stored["vision_config"], path)
    return c, gemma4_vision.table(c, WIDTH), files


def tree(c: config.VisionEncoder, arrays: Mapping[str, np.ndarray]) -> Any:
    """Parameters of the encoder from arrays by their names, which are exactly those of its specification."""
    specs = vision_encoder(c).weights(c, WIDTH)
    assert {name: array.shape for name, array in arrays.items()} == {n: s.shape for n, s in named(specs).items()}
    return jax.tree.unflatten(jax.tree.structure(specs), [jnp.asarray(arrays[name]) for name in named(specs)])


def encode(c: config.VisionEncoder, params: Any, images: list[np.ndarray], dtype: str = "float32") -> list[jax.Array]:
    """Soft tokens of two images of exactly the sizes that the encoder reads: both in one sequence, then the second again in another.

    There is padding before, between and after them.
    """
    # Our own encoder's rule leaves sizes that fit as they are.
    cut = [patchify(image, config.Vision(16, 1, 2, 16, patch=c.patch, pool=c.pool), 999) for image in images]
    window, first, second = c.pool**2, len(cut[0][0]), len(cut[1][0])
    length = first + second + 3 * window
    patches = np.full((2, length, c.patch_values), 77, np.uint8)
    positions, numbers = np.zeros((2, length, 2), np.int32), np.zeros((2, length), np.int32)
    slots = [(0, window, 0), (0, first + 2 * window, 1), (1, 0, 1)]
    for number, (row, start, image) in enumerate(slots, 1):
        slot = row, slice(start, start + len(cut[image][0]))
        patches[slot], positions[slot], numbers[slot] = *cut[image], number
    run = jax.jit(lambda p: vision_encoder(c).encode(p, patches, positions, numbers, c, dtype))
    out, sizes = run(params), (first // window, second // window)
    return [out[row, start // window :][: sizes[image]] for row, start, image in slots]


@pytest.mark.parametrize("folder", PROBES)
def test_the_soft_tokens_equal_the_reference(folder: str) -> None:
    c, table, files = opened(folder)
    params = tree(c, read_arrays(table, files.read))
    # Every tensor of the files is in the table.
    files.finish()
    with np.load(GOLDEN / folder / "golden.npz") as golden:
        if folder == "gemma3_vision":
            images, expected = list(golden["pixels"]), list(golden["tokens"])
        else:
            images, expected = ([golden[f"{name}_{i}"] for i in (0, 1)] for name in ("pixels", "tokens"))
    scale = max(np.abs(tokens).max() for tokens in expected)
    for ours, tokens in zip(encode(c, params, images), (*expected, expected[1]), strict=True):
        np.testing.assert_allclose(ours / scale, tokens / scale, atol=TOLERANCE, rtol=0)


def test_the_images_of_gemma_3_are_read_as_they_are_preprocessed() -> None:
    c, _, _ = opened("gemma3_vision")
    with np.load(GOLDEN / "gemma3_vision" / "golden.npz") as golden:
        pixels = golden["pixels"][0]
    ours = preprocess(pixels, c, 4)
    for a, b in zip(ours, patchify(pixels, config.Vision(16, 1, 2, 16, patch=c.patch, pool=c.pool), 999), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("folder", PROBES)
def test_a_table_converts_bfloat16_tensors_both_ways_without_a_change(folder: str) -> None:
    """Matrices keep their dtype; the scales of norms become float32, since one is added to them."""
    _c, table, files = opened(folder)
    stored: dict[str, np.ndarray] = {}

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return stored.setdefault(name, files.read(name, shape).astype(ml_dtypes.bfloat16))

    arrays = read_arrays(table, read)
    kinds = {name: array.dtype.name for name, array in arrays.items()}
    assert kinds["project"] == kinds["positions" if "positions" in kinds else "stem.positions"] == "bfloat16"
    scales = [name for name in kinds if name.endswith(("norm", "norm.scale", "bounds")) and "biases" not in name]
    assert {kinds[name] for name in scales} == {"float32"}
    back = dict(tensors(table, arrays))
    assert back.keys() == stored.keys()
    for name, values in stored.items():
        np.testing.assert_array_equal(back[name].astype(ml_dtypes.bfloat16), values)


def test_weights_may_be_bfloat16() -> None:
    c, table, files = opened("gemma4_clipped")
    arrays = read_arrays(table, files.read)
    small = {n: a.astype(ml_dtypes.bfloat16) if a.ndim > 2 else a for n, a in arrays.items()}
    rounded = {name: array.astype(np.float32) for name, array in small.items()}
    with np.load(GOLDEN / "gemma4_clipped" / "golden.npz") as golden:
        images = [golden["pixels_0"], golden["pixels_1"]]
    for a, b in zip(encode(c, tree(c, small), images), encode(c, tree(c, rounded), images), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_infinite_bounds_are_finite_numbers_here_and_infinite_again_in_files() -> None:
    source = gemma4_vision.table(opened("gemma4_clipped")[0], WIDTH)["layers.up.bounds"]
    assert isinstance(source, tuple)
    ours = source[0].to_ours(*(np.array(x, ml_dtypes.bfloat16) for x in (-np.inf, np.inf, -2.5, np.inf)))
    assert np.isfinite(ours).all() and ours[2] == -2.5
    np.testing.assert_array_equal(np.stack(source[0].to_theirs(ours)), [-np.inf, np.inf, -2.5, np.inf])


@pytest.mark.parametrize("folder", PROBES)
def test_settings_are_the_inverse_of_read_config(folder: str) -> None:
    c, _, _ = opened(folder)
    path = Path("config.json")
    if isinstance(c, config.Vision):
        assert siglip.read_config(siglip.settings(c), 4, path) == c
    else:
        assert gemma4_vision.read_config(gemma4_vision.settings(c), path) == c
    assert config.vision_class(vars(c)) is type(c)


@pytest.mark.parametrize("folder", PROBES)
def test_a_model_with_the_encoder_is_saved_and_loaded(folder: str, tmp_path: Path) -> None:
    c, table, files = opened(folder)
    decoder = config.Decoder(WIDTH, 1, 1, 8, 8)
    whole = config.Model(32, 1, -1, decoder, vision=c, audio=None, replace_placeholders=True)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.weights(whole))
    params = replace(zeros, vision=tree(c, read_arrays(table, files.read)))
    assert whole.vision and c.min_values(WIDTH) <= model.count(params.vision)
    save_model(tmp_path, params, whole, {})
    loaded, stored = load_model(tmp_path)
    assert stored == whole
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


PUBLISHED = {
    "_name_or_path": "", "architectures": None, "attention_bias": False, "attention_dropout": 0.0,
    "chunk_size_feed_forward": 0, "default_output_length": 280, "dtype": "bfloat16", "global_head_dim": 72,
    "head_dim": 72, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02, "intermediate_size": 4304, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0},
    "max_position_embeddings": 131072, "model_type": "gemma4_vision", "num_attention_heads": 16,
    "num_hidden_layers": 27, "num_key_value_heads": 16, "output_attentions": False, "output_hidden_states": False,
    "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10240, "problem_type": None,
    "return_dict": True, "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    "standardize": True, "use_clipped_linears": False,
}  # fmt: skip


def test_the_published_configurations_are_read() -> None:
    path = Path("config.json")
    large = config.GemmaVision(1152, 27, 16, 72, 4304, standardize=True)
    assert gemma4_vision.read_config(PUBLISHED, path) == large
    # Names and numbers of the published parameters, without the embedder: 27 layers and the patch embedder.
    layer = 4 * 1152**2 + 3 * 1152 * 4304 + 4 * 1152 + 2 * 72
    values = sum(s.size for s in jax.tree.leaves(gemma_vision.weights(large, 16))) - 1152 * 16
    assert values == 27 * layer + 768 * 1152 + 2 * 10240 * 1152 + 2 * 1152
    unified = {
        "mm_embed_dim": 3840, "mm_posemb_size": 1120, "model_patch_size": 48, "model_type": "gemma4_unified_vision",
        "num_soft_tokens": 280, "output_proj_dims": 3840, "patch_size": 16, "pooling_kernel_size": 3, "rms_norm_eps": 1e-06,
    }  # fmt: skip
    assert gemma4_vision.read_config(unified, path) == config.UnifiedVision(3840)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention_bias": True}, r"vision_config\.attention_bias is True; ours has False"),
        ({"hidden_activation": "silu"}, r"vision_config\.hidden_activation is 'silu'; ours has 'gelu_pytorch_tanh'"),
        ({"num_key_value_heads": 8}, "vision_config: num_key_value_heads is 8; ours has 16"),
        ({"global_head_dim": 64}, "vision_config: global_head_dim is 64; ours has 72"),
        ({"rope_parameters": {"rope_theta": 100.0, "rope_type": "linear"}}, "rope_type is 'linear'; ours has axial"),
        ({"rope_parameters": {"rope_theta": 100.0, "factor": 2.0}}, r"rope_parameters\.factor: unexpected field"),
        ({"use_register_tokens": True}, r"vision_config\.use_register_tokens: unexpected field"),
        ({"head_dim": 70, "global_head_dim": 70}, "GemmaVision.head_dim is 70; positions in two dimensions need"),
        ({"model_type": "gemma3n_vision"}, "model_type is 'gemma3n_vision'; gemma4_vision or gemma4_unified_vision"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^config\.json: .*{message}"):
        gemma4_vision.read_config({**PUBLISHED, **changed}, Path("config.json"))


def test_gemma_3_refuses_numbers_of_tokens_that_windows_cannot_make() -> None:
    stored = settings("gemma3_vision")["vision_config"]
    with pytest.raises(ValueError, match="mm_tokens_per_image is 9; a square of a divisor of 8"):
        siglip.read_config(stored, 9, Path("config.json"))
    with pytest.raises(ValueError, match=r"vision_config\.hidden_act is 'gelu'; ours has 'gelu_pytorch_tanh'"):
        siglip.read_config({**stored, "hidden_act": "gelu"}, 4, Path("config.json"))
