"""Open weights: every tensor and every configuration key is read, has the one implemented value, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alhena.model import config, model
from alhena.model.families import export_weights
from alhena.model.families.export_weights import write
from alhena.model.families.open_weights import open_folder, read, read_all

FAMILIES = ("gemma", "gemma2", "gemma3")


def decoder(family: str) -> config.Decoder:
    d = config.Decoder(8, 2, 2, 4, 8, qk_norm=family == "gemma3", post_norm=family != "gemma")
    if family == "gemma":
        return d
    caps = (2.0, 3.0) if family == "gemma2" else (None, 3.0)
    bases = (1e6, 1e4) if family == "gemma3" else (1e4, None)
    return config.Decoder(
        8, 2, 2, 4, 8, window=4, global_every=2, qk_norm=d.qk_norm, attention_softcap=caps[0], final_logit_softcap=caps[1],
        rope_base=bases[0], local_rope_base=bases[1], rope_scaling_factor=8.0 if family == "gemma3" else 1.0, query_pre_attn_scalar=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[model.Params, config.Model]]:
    """Random models of the three families, made without compilation."""
    rng, out = np.random.default_rng(0), {}
    for family in FAMILIES:
        c = config.Model(12, -1, -1, decoder(family), None, None)
        like = jax.eval_shape(lambda c=c: model.init(jax.random.key(0), c))
        out[family] = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), like), c
    return out


@pytest.fixture
def folder(models, tmp_path: Path):
    """A function that writes a family's model with changed configuration and tensors."""

    def make(family: str, settings: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
        write(tmp_path, *models[family])
        stored = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**stored, **(settings or {})}))
        arrays = {**load_file(tmp_path / "model.safetensors"), **(tensors or {})}
        save_file({name: a for name, a in arrays.items() if a is not None}, tmp_path / "model.safetensors")
        return tmp_path

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_written_models_read_back(models, folder, family):
    params, c = read(folder(family))
    assert c.decoder == models[family][1].decoder
    jax.tree.map(np.testing.assert_array_equal, params, models[family][0])


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("gemma", {"rms_norm_eps": 1e-5}, r"rms_norm_eps is 1e-05; ours has 1e-06"),
        ("gemma", {"attention_bias": True}, "attention_bias is True"),
        ("gemma", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("gemma", {"hidden_activation": None, "hidden_act": "gelu"}, "hidden_act is 'gelu'.*gelu_pytorch_tanh"),
        ("gemma", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE of type 'yarn'"),
        ("gemma", {"sliding_window": 4}, "sliding_window is 4; gemma has none"),
        ("gemma", {"layer_types": ["sliding_attention", "full_attention"]}, "gemma has none"),
        ("gemma", {"quantization_config": {"bits": 8}}, "quantization_config is"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma", {"sinks": 4}, "sinks: unexpected field"),
        ("gemma", {"head_dim": 3}, "head_dim is 3; rotary positions need an even number"),
        ("gemma", {"hidden_size": "8"}, "hidden_size: input should be a valid integer, not '8'"),
        ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings is false, but there is no lm_head.weight"),
        ("gemma", {"num_hidden_layers": 10**13}, "layers is 10000000000000"),
        ("gemma", {"num_hidden_layers": 4000}, "the configuration needs"),
        ("gemma2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear'; default can be read"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null; gemma2 needs a number"),
        ("gemma3", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar is null"),
        ("gemma2", {"sliding_window_size": 5}, "sliding_window_size is 5 but sliding_window is 4"),
        ("gemma2", {"rope_local_base_freq": 7.0}, "local layers is 7.0; gemma2 has one base"),
        ("gemma3", {"rope_theta": 5.0}, "rope_theta of rope_parameters is 1000000.0 but rope_theta is 5.0"),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 3}, "no periodic"),
        (
            "gemma3",
            {"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.25}}},
            "partial_rotary_factor 0.25",
        ),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "'linear'; default can"),
    ],
)
def test_a_key_that_changes_the_computation_is_refused_by_name(folder, family, settings, message):
    with pytest.raises(ValueError, match=rf"{message}"):
        read(folder(family, settings))


def test_irrelevant_keys_are_ignored_and_gemma3_has_no_attention_softcap(folder):
    ignored = {
        "eos_token_id": [1, 106],
        "cache_implementation": "hybrid",
        "attention_dropout": 0.0,
        "_name_or_path": "x",
    }
    _, c = read(folder("gemma3", {**ignored, "attn_logit_softcapping": 50.0}))
    assert (c.decoder.attention_softcap, c.decoder.final_logit_softcap) == (None, 3.0)


EMBEDDING = np.ones((12, 8), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lm_head.weight": EMBEDDING}, "lm_head.weight differs from the embedding"),
        ({"lm_head.weight": EMBEDDING[:4]}, "lm_head.weight differs from the embedding"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(8, np.float32)}, r"q_proj\.bias': this model has no"),
        (
            {"model.layers.2.mlp.up_proj.weight": np.zeros((8, 8), np.float32)},
            r"layers\.2\.mlp\.up_proj\.weight': this model has no",
        ),
        ({"vision_tower.patch": np.zeros(8, np.float32)}, r"vision_tower\.patch': this model has no"),
        ({"model.norm.weight": None}, "it has no tensor model.norm.weight"),
        ({"model.norm.weight": np.zeros(9, np.float32)}, r"model.norm.weight is \(9,\), expected \(8,\)"),
        ({"model.norm.weight": np.zeros(8, np.int8)}, "of dtype I8"),
        ({"model.norm.weight": np.zeros(8, np.int32)}, "quantized weights cannot be read"),
        ({"model.norm.weight": np.full(8, np.nan, np.float32)}, "model.norm.weight holds values that are not finite"),
    ],
)
def test_a_tensor_that_is_not_understood_is_refused_by_name(folder, tensors, message):
    with pytest.raises(ValueError, match=rf"{message}"):
        read(folder("gemma", None, tensors))


@pytest.mark.parametrize("tied", [True, False])
def test_a_copy_of_the_embedding_is_a_tied_head(models, folder, tied):
    head = np.asarray(models["gemma"][0].embedding)
    read(folder("gemma", {"tie_word_embeddings": tied}, {"lm_head.weight": head}))


def test_bfloat16_is_read_exactly(models, folder):
    norm = np.arange(8).astype(ml_dtypes.bfloat16) / 7
    params, _ = read(folder("gemma", None, {"model.norm.weight": norm}))
    np.testing.assert_array_equal(params.norm, norm.astype(np.float32))


def test_an_encoder_can_be_left_out_by_name(models, folder):
    path = folder("gemma3", {"final_logit_softcapping": 3.0})
    arrays = {f"language_{name.replace('model.', 'model.model.', 1)}": a for name, a in
              load_file(path / "model.safetensors").items()}  # fmt: skip
    arrays["vision_tower.vision_model.patch"] = arrays["multi_modal_projector.weight"] = np.zeros(3, np.float32)
    save_file(arrays, path / "model.safetensors")
    text = json.loads((path / "config.json").read_text())
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "mm_tokens_per_image": 256}
    (path / "config.json").write_text(json.dumps(outer))
    with pytest.raises(ValueError, match=r"multi_modal_projector\.weight': this model has no such weight"):
        read(path)
    opened = open_folder(path, ("image",))
    tensors = [f"1 tensors of {name}: --without image" for name in ("multi_modal_projector", "vision_tower")]
    assert sorted(opened.left_out) == tensors
    params, c = read_all(opened)
    # The reference ignores it inside an image model.
    assert c.decoder.final_logit_softcap is None
    np.testing.assert_array_equal(params.embedding, models["gemma3"][0].embedding)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_type": "paligemma"},
            "a model of type 'paligemma'; models of type gemma3, gemma3n, gemma4, gemma4_unified",
        ),
        ({"model_type": "gemma4"}, "a model of type 'gemma4' around 'gemma3_text'; gemma4_text is needed inside"),
        ({"text_config": 3}, r"text_config: input should be"),
        ({"image_token_index": -2}, r"image_token is -2"),
        ({"sinks": 4}, "sinks: unexpected field"),
    ],
)
def test_another_model_around_a_decoder_is_refused_by_name(folder, settings, message):
    path = folder("gemma3")
    text = json.loads((path / "config.json").read_text())
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "intermediate_size": 8, "image_size": 64, "patch_size": 4}  # fmt: skip
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": siglip}
    (path / "config.json").write_text(json.dumps({**outer, **settings}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("family", "changes", "field"),
    [
        ("gemma", {"window": 4}, "window"),
        ("gemma", {"final_logit_softcap": 3.0}, "final_logit_softcap"),
        ("gemma3", {"attention_softcap": 3.0}, "attention_softcap"),
        ("gemma2", {"rope_scaling_factor": 2.0}, "rope_scaling_factor"),
        ("gemma2", {"local_rope_base": 7.0}, "local_rope_base"),
        ("gemma3", {"log_scaling_start": 64}, "log_scaling_start"),
    ],
)
def test_a_decoder_that_its_family_cannot_express_is_not_exported(models, tmp_path, family, changes, field):
    params, c = models[family]
    d = config.Decoder(**{**vars(c.decoder), **changes, "global_every": 2})
    with pytest.raises(ValueError, match=rf"this decoder has {field}"):
        write(tmp_path, params, config.Model(12, -1, -1, d, None, None))


def test_a_large_model_is_written_in_shards(models, tmp_path, monkeypatch):
    monkeypatch.setattr(export_weights, "MAX_SHARD_BYTES", 1000)
    write(tmp_path, *models["gemma"])
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    params, _ = read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, models["gemma"][0])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="a file of another model; write to an empty folder"):
        write(tmp_path, *models["gemma"])


def test_links_of_the_hub_cache_are_read_and_others_are_not(folder, tmp_path):
    path = folder("gemma")
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (path / name).rename(blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    read(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"config\.json: a link to a file outside the folder"):
        read(snapshot)


def test_a_git_lfs_pointer_is_named(folder):
    path = folder("gemma")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (path / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match=r"model\.safetensors: a Git LFS pointer, not the file itself; fetch the file"):
        read(path)
