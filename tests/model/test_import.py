"""Import and export of open weights, for every family: streamed = read in memory, and import → export gives the same bits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alhena.compress.quantize import quantize_model
from alhena.model import model
from alhena.model.families import import_weights
from alhena.model.families.export_weights import write
from alhena.model.families.open_weights import open_folder, read
from alhena.model.quantized import rounding
from alhena.model.quantized.layout import is_quantized
from alhena.model.spec import named
from alhena.model.storage import tensors
from alhena.model.storage.weights import load_model

GOLDEN = Path(__file__).parent / "golden" / "open"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
# Those that are imported in 4 bits too, which takes longer.
QUANTIZED = ("gemma3_text", "gemma4_moe", "gemma4_small")


def assert_equal(ours: Any, expected: Any) -> None:
    """All arrays are the same, in dtype too."""
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.fixture
def small_blocks(monkeypatch):
    """Every array is worked on in many blocks."""
    monkeypatch.setattr(tensors, "BLOCK", 500)
    monkeypatch.setattr(import_weights, "BLOCK", 500)
    monkeypatch.setattr(rounding, "BLOCK", 1000)


def half(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Writes a golden model with all tensors rounded to bfloat16; returns them."""
    arrays = {name: a.astype(ml_dtypes.bfloat16) for name, a in load_file(GOLDEN / name / "model.safetensors").items()}
    folder.mkdir()
    save_file(arrays, folder / "model.safetensors")
    shutil.copy(GOLDEN / name / "config.json", folder)
    return arrays


def as_stored(params: model.Params, specs: model.Params, dtype: Any) -> model.Params:
    """Matrices in ``dtype``, vectors in float32: what an import writes."""
    return jax.tree.map(lambda s, w: w.astype(dtype if import_weights._is_matrix(s) else np.float32), specs, params)


@pytest.mark.parametrize("name", NAMES)
def test_a_streamed_import_equals_reading(name, tmp_path, small_blocks):
    half(tmp_path / "hf", name)
    opened, (params, c) = open_folder(tmp_path / "hf"), read(tmp_path / "hf")
    specs = model.weights(c)
    kinds = {None: ml_dtypes.bfloat16, "float32": np.float32, "int4": ml_dtypes.bfloat16}
    for weights, dtype in kinds.items() if name in QUANTIZED else [*kinds.items()][:2]:
        imported = import_weights.import_weights(opened, tmp_path / "ours", weights)
        stored, stored_c = load_model(tmp_path / "ours")
        assert stored_c == imported == replace(c, compute_dtype="float32" if weights == "float32" else "bfloat16")
        expected = as_stored(params, specs, dtype)
        if weights == "int4":
            expected = quantize_model(expected, specs)
            assert any(map(is_quantized, jax.tree.leaves(stored, is_leaf=is_quantized)))
        assert_equal(stored, expected)


def test_an_import_in_4_bits_takes_the_settings_of_the_table(tmp_path):
    opened, (params, c) = open_folder(GOLDEN / "gemma4_small"), read(GOLDEN / "gemma4_small")
    types = {"*.first_down.weight": "int8", "layers.*.output": "float"}
    import_weights.import_weights(opened, tmp_path / "ours", "int4", types)
    stored, _ = load_model(tmp_path / "ours")
    assert_equal(stored, quantize_model(params, model.weights(c), types))
    table = import_weights.types_of(opened, "int4", {"vision": "bfloat16"})
    declared = [
        import_weights._declare(s, table[n], False) for n, s in named(model.weights(c)).items() if "vision" in n
    ]
    assert {d.dtype for of_weight in declared for d in of_weight.values()} == {"BF16", "F32"}
    with pytest.raises(ValueError, match="--weights int4"):
        import_weights.import_weights(opened, tmp_path / "other", None, types)


@pytest.mark.parametrize("name", NAMES)
def test_import_and_export_give_the_same_bits(name, tmp_path):
    theirs = half(tmp_path / "hf", name)
    opened = open_folder(tmp_path / "hf")
    import_weights.import_weights(opened, tmp_path / "ours")
    write(tmp_path / "out", *load_model(tmp_path / "ours"))
    exported = load_file(tmp_path / "out" / "model.safetensors")
    # Older files have other prefixes, and Gemma 3n leaves without its audio encoder.
    renamed = {stored.name: canonical for canonical, stored in opened.tensors.items()}
    if name == "gemma3n_audio":
        renamed = {n: c.replace("language_model.", "") for n, c in renamed.items() if "language_model" in n}
    assert exported.keys() == set(renamed.values())
    for stored, canonical in renamed.items():
        a, b = exported[canonical], theirs[stored]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), canonical
        np.testing.assert_array_equal(a.view(np.uint16), b.view(np.uint16), err_msg=canonical)
    c = open_folder(tmp_path / "out").c
    assert c == opened.c if name != "gemma3n_audio" else c.decoder == opened.c.decoder


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_of_a_configuration_are_the_same_model(name, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / "hf")
    expected = open_folder(tmp_path / "hf").c
    shutil.copy(GOLDEN / name / "published.json", tmp_path / "hf" / "config.json")
    assert open_folder(tmp_path / "hf").c == expected


def test_embeddings_of_bfloat16_files_are_scaled_as_by_their_reference(tmp_path):
    half(tmp_path / "hf", "gemma4_moe")
    # √24 is 4.899.
    assert open_folder(tmp_path / "hf").c.decoder.embedding_scale == 4.90625
    assert open_folder(GOLDEN / "gemma4_moe").c.decoder.embedding_scale is None


def change(folder: Path, name: str, settings: dict[str, Any], arrays: dict[str, Any]) -> Path:
    """A golden folder with changed keys of ``text_config`` (or of the whole) and tensors."""
    shutil.copytree(GOLDEN / name, folder)
    stored = json.loads((folder / "config.json").read_text())
    stored.get("text_config", stored).update(settings)
    (folder / "config.json").write_text(json.dumps(stored))
    kept = {**load_file(folder / "model.safetensors"), **arrays}
    save_file({n: a for n, a in kept.items() if a is not None}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gemma4_small", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ("gemma4_small", {"attention_bias": True}, "text_config.attention_bias is True"),
        ("gemma4_small", {"rms_norm_eps": 1e-5}, "text_config.rms_norm_eps is 1e-05"),
        ("gemma4_small", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("gemma4_small", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("gemma4_small", {"per_layer_config": {"2": {"head_dim": 12}}}, "gives layer 2 a head_dim of 12"),
        ("gemma4_small", {"per_layer_config": {"99": {"head_dim": 12}}}, r"per_layer_config\.(2|99)"),
        ("gemma4_small", {"num_kv_shared_layers": 8}, "kv_sharing_layers is 8"),
        ("gemma4_small", {"layer_types": ["full_attention"] * 3}, "layer_types has 3 layers"),
        ("gemma4_small", {"sinks": 1}, "text_config.sinks: unexpected field"),
        ("gemma4_small", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "RoPE of type 'yarn'"),
        ("gemma4_small", {"rope_parameters": {"other": {}}}, r"rope_parameters\.other"),
        ("gemma4_moe", {"num_experts": None}, "num_experts is null"),
        ("gemma4_moe", {"top_k_experts": 99}, "Experts.chosen is 99"),
        ("gemma3n_text", {"altup_active_idx": 1}, "altup_active_idx is 1"),
        ("gemma3n_text", {"intermediate_size": [32, 48]}, "intermediate_size is"),
        ("gemma3n_text", {"activation_sparsity_pattern": [0.0, 0.5]}, "activation_sparsity_pattern"),
    ],
)
def test_a_key_that_changes_the_computation_is_refused_by_name(tmp_path, name, settings, message):
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        open_folder(change(tmp_path / "hf", name, settings, {}))


SHARED = "model.language_model.layers.5.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({SHARED: np.ones((3, 3), np.float32)}, r"k_proj\.weight is \(3, 3\), expected"),
        ({"model.language_model.layers.0.layer_scalar": None}, r"it has no tensor .*layers\.0\.layer_scalar"),
        (
            {"model.language_model.layers.0.mlp.up_proj.bias": np.ones(3, np.float32)},
            r"up_proj\.bias': this model has no",
        ),
        ({"model.vision_tower.more": np.ones(3, np.float32)}, r"vision_tower\.more': this model has no"),
        ({"lm_head.weight": np.ones((320, 24), np.float32)}, "differs from the embedding"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=rf"{message}"):
        open_folder(change(tmp_path / "hf", "gemma4_small", {}, arrays))


def test_tensors_that_nothing_reads_are_listed(tmp_path):
    opened = open_folder(change(tmp_path / "hf", "gemma4_small", {}, {}))
    assert opened.left_out == ["6 tensors of keys and values of layers that share those of others"]
    assert not any(name.endswith("layers.5.self_attn.k_proj.weight") for name in opened.tensors)


def test_values_that_are_not_finite_stop_an_import(tmp_path):
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    bad = np.full((40, 24), np.nan, np.float32)
    opened = open_folder(change(tmp_path / "hf", "gemma4_small", {}, {name: bad}))
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name} holds values that are not finite"):
        import_weights.import_weights(opened, tmp_path / "ours")
    assert not (tmp_path / "ours" / "weights.safetensors").exists()
