"""Encoders as llama.cpp's second file: names as its library derives them from Hugging Face's, and the values of those tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from gguf import MODEL_ARCH, GGUFReader, Keys, get_tensor_name_map
from safetensors.numpy import load_file

from alhena.model import config, model
from alhena.model.encoders.clipped import UNBOUNDED
from alhena.model.families import open_weights
from alhena.model.families.export_weights import parts
from alhena.model.families.gguf.mmproj import held_encoders, write_mmproj

GOLDEN = Path(__file__).parent / "golden" / "open"
LAYERS = 64


def fields(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def expected_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by the names that the library's table has for those of Hugging Face."""
    table = get_tensor_name_map(MODEL_ARCH.MMPROJ, LAYERS)
    suffixes = (".weight", ".bias", ".input_min", ".input_max", ".output_min", ".output_max")
    out = {}
    for name, tensor in tensors.items():
        renamed = table.get_name(name, suffixes)
        assert renamed is not None, name
        out[renamed] = tensor
    return out


def test_gemma3s_encoder_is_written_as_the_librarys_converter_names_it(tmp_path):
    folder = GOLDEN / "gemma3_vision"
    params, c = open_weights.read(folder)
    assert c.vision and held_encoders(c) == ("vision",)
    write_mmproj(tmp_path / "mmproj.gguf", params, c)
    reader = GGUFReader(tmp_path / "mmproj.gguf")
    # Published files have a part more in their names.
    # Published files have a part more in their names; the other change is one of llama.cpp's converter.
    stored = {
        name.replace("vision_tower.", "vision_tower.vision_model.").replace("_weight", ".weight"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.startswith(("vision_tower.", "multi_modal_projector."))
    }
    expected = expected_names(stored)
    # One is added to this norm, as in the decoder.
    expected["mm.soft_emb_norm.weight"] = expected["mm.soft_emb_norm.weight"].astype(np.float32) + 1
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(written[name], tensor.astype(np.float32), err_msg=name)
    found, keys = fields(reader), Keys.ClipVision
    assert found[Keys.General.ARCHITECTURE] == "clip" and found[Keys.General.TYPE] == "mmproj"
    assert found[Keys.Clip.PROJECTOR_TYPE] == "gemma3" and found[Keys.Clip.HAS_VISION_ENCODER] is True
    assert found[keys.IMAGE_SIZE] == c.vision.side * c.vision.patch and found[keys.PATCH_SIZE] == c.vision.patch
    assert found[keys.EMBEDDING_LENGTH] == c.vision.width and found[keys.PROJECTION_DIM] == c.decoder.width
    assert found[keys.BLOCK_COUNT] == c.vision.layers and found[keys.FEED_FORWARD_LENGTH] == c.vision.hidden
    assert found[keys.Attention.HEAD_COUNT] == c.vision.heads and found[keys.Projector.SCALE_FACTOR] == c.vision.pool
    assert found[keys.Attention.LAYERNORM_EPS] == pytest.approx(1e-6)
    assert found[keys.IMAGE_MEAN] == found[keys.IMAGE_STD] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", ["gemma4_small", "gemma4_large"])
def test_gemma4s_encoder_is_written_as_the_librarys_converter_names_it(name, tmp_path):
    """The first has clipped layers, the second standardized soft tokens."""
    params, c = open_weights.read(GOLDEN / name)
    assert isinstance(c.vision, config.GemmaVision) and held_encoders(c) == ("vision",)
    write_mmproj(tmp_path / "mmproj.gguf", params, c)
    stored = {
        # As llama.cpp's converter does.
        key.replace("model.vision_tower.encoder.", "vision_model.model.")
        .replace(".linear.weight", ".weight")
        .replace("embedding_table", "embedding_table.weight"): tensor
        for key, tensor in load_file(GOLDEN / name / "model.safetensors").items()
        if key.startswith(("model.vision_tower.", "model.embed_vision."))
    }
    patches = "model.vision_tower.patch_embedder.input_proj.weight"
    sides = (c.vision.patch, c.vision.patch, 3)
    stored[patches] = stored[patches].reshape(-1, *sides).transpose(0, 3, 1, 2)
    reader = GGUFReader(tmp_path / "mmproj.gguf")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = expected_names(stored)
    assert written.keys() == expected.keys()
    for key, tensor in expected.items():
        # Factors of norms are offsets from one in the model, and rounded there.
        np.testing.assert_allclose(written[key], np.atleast_1d(tensor), rtol=0, atol=1e-6, err_msg=key)
    found = fields(reader)
    assert found[Keys.ClipVision.PROJECTOR_TYPE] == "gemma4v" and found[Keys.ClipVision.BLOCK_COUNT] == c.vision.layers
    # llama.cpp's code has one pool and one base.
    assert held_encoders(replace(c, vision=replace(c.vision, pool=2))) == ()


# With the numbers that llama.cpp fixes.
AUDIO = config.Usm(
    width=16, layers=2, heads=2, hidden=64, kernel=5, mels=128, chunk=3000, stack=1, channels=(128, 4), block=12, left=12,
    variant="gemma4", clipped=True, output=24,
)  # fmt: skip


def test_gemma4s_audio_encoder_is_written_as_the_librarys_converter_names_it(tmp_path):
    """Beside an image encoder that llama.cpp has not, which is left out."""
    decoder = config.Decoder(32, 1, 2, 16, 32, value_norm=True, query_pre_attn_scalar=1.0, layer_scalar=True)
    vision = config.GemmaVision(width=16, layers=1, heads=2, head_dim=8, hidden=24, patch=4, pool=2, side=16)
    c = config.Model(48, 3, 1, decoder, vision, AUDIO, replace_placeholders=True)
    assert held_encoders(c) == ("audio",) and held_encoders(replace(c, audio=replace(AUDIO, left=8))) == ()
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda s: random.standard_normal(s.shape, np.float32), model.weights(c))
    write_mmproj(tmp_path / "mmproj.gguf", params, c)
    stored = {}
    for part in parts(params, c):
        for name, tensor in zip(part.source.names, part.tensors(), strict=True):
            if "audio" in name:
                # As llama.cpp's converter does.
                name = name.replace("model.audio_tower.", "conformer.").replace(".linear.", ".")
                if name.endswith("per_dim_scale"):
                    name, tensor = f"{name}.weight", np.log1p(np.exp(tensor))
                tensor = tensor[:, 0] if "depthwise" in name else tensor
                stored[name] = np.atleast_1d(tensor)
    reader = GGUFReader(tmp_path / "mmproj.gguf")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = expected_names(stored)
    assert written.keys() == expected.keys() and len(expected) == 8 + 2 * (12 + 10 * 5)
    for key, tensor in expected.items():
        np.testing.assert_allclose(written[key], tensor, rtol=1e-6, atol=1e-6, err_msg=key)
    found, keys = fields(reader), Keys.ClipAudio
    assert found[keys.PROJECTOR_TYPE] == "gemma4a" and found[keys.NUM_MEL_BINS] == 128
    assert found[keys.EMBEDDING_LENGTH] == 16 and found[keys.PROJECTION_DIM] == 32 and found[keys.BLOCK_COUNT] == 2
    assert Keys.Clip.HAS_VISION_ENCODER not in found and found[Keys.Clip.HAS_AUDIO_ENCODER] is True


def test_infinite_bounds_are_the_largest_numbers(tmp_path):
    params, c = open_weights.read(GOLDEN / "gemma4_small")
    assert params.vision is not None
    layers = params.vision.layers
    unbounded = replace(layers.query, bounds=np.broadcast_to(UNBOUNDED, layers.query.bounds.shape))
    params = replace(params, vision=replace(params.vision, layers=replace(layers, query=unbounded)))
    write_mmproj(tmp_path / "mmproj.gguf", params, c)
    written = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "mmproj.gguf").tensors}
    assert written["v.blk.0.attn_q.input_min"] == UNBOUNDED[0] and written["v.blk.1.attn_q.output_max"] == UNBOUNDED[3]
