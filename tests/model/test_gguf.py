"""GGUF files: values equal the gguf library's, models equal those of Hugging Face folders, damaged files are refused in one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from alhena.model.families import open_weights, tensor_map
from alhena.model.families.gguf import names as tables
from alhena.model.families.gguf import reader
from alhena.model.families.gguf.file import BLOCK_VALUES, KINDS, GgufFile, GgufTensor, open_gguf
from alhena.model.families.gguf.output import add_value
from alhena.model.families.import_weights import import_weights, types_of
from alhena.model.families.model_config import read_config
from alhena.model.quantized.layout import Int4, Int8, dequantize, is_quantized, packed_shapes
from alhena.model.quantized.rounding import quantize
from alhena.model.storage.weights import load_model

GOLDEN = Path(__file__).parent / "golden" / "gemma3"
Q = GGMLQuantizationType


def write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Path:
    """A file with the library's writer. A tensor is an array, or bytes and their type."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_value(writer, key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(kind: GGMLQuantizationType, rows: int, columns: int, seed: int) -> np.ndarray:
    """Bytes of a random tensor. The library cannot quantize to every type: bytes are random then, and of two, one is a small float16."""
    rng = np.random.default_rng(seed)
    try:
        return quants.quantize(rng.standard_normal((rows, columns), np.float32), kind)
    except NotImplementedError:
        block, size = GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (rows, columns // block * size), np.uint8)
        data[:, 1::2] &= 0x3F
        return data


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {kind.name: (quantized(kind, 6, 512, kind), kind) for kind in KINDS if kind not in (Q.F32, Q.F16)}
    tensors |= {"F32": np.ones((2, 3, 4), np.float32), "F16": np.full(5, 0.5, np.float16)}
    return write(tmp_path_factory.mktemp("gguf") / "types.gguf", "gemma3", {}, tensors)


@pytest.mark.parametrize("block", [BLOCK_VALUES, 1024])
def test_values_equal_those_of_the_library(every_type, monkeypatch, block):
    monkeypatch.setattr("alhena.model.families.gguf.file.BLOCK_VALUES", block)
    ours = open_gguf(every_type).tensors
    theirs = {tensor.name: tensor for tensor in GGUFReader(every_type).tensors}
    assert set(ours) == {kind.name for kind in KINDS} == set(theirs)
    for name, tensor in ours.items():
        expected = quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert tensor.shape == expected.shape
        np.testing.assert_array_equal(tensor.read().astype(np.float32), expected)


def test_q4_0_and_q8_0_become_quantized_weights_without_loss(every_type, monkeypatch):
    monkeypatch.setattr("alhena.model.families.gguf.file.BLOCK_VALUES", 1024)
    tensors = open_gguf(every_type).tensors
    kinds: dict[str, Any] = {"Q4_0": Int4, "Q8_0": Int8}
    assert {name for name, tensor in tensors.items() if tensor.bits} == set(kinds)
    for name, kind in kinds.items():
        packed, scales = (np.zeros(shape, np.int8) for shape in packed_shapes(kind.bits, 512, 6))
        packed, scales = packed.view(np.uint8 if name == "Q4_0" else np.int8), scales.astype(np.float16)
        tensors[name].write_quantized(packed, scales)
        for transposed, expected in ((False, tensors[name].map().T), (True, tensors[name].map())):
            w = kind(packed, scales, 6, transposed)
            np.testing.assert_array_equal(dequantize(w), expected)


def gemma3_metadata(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's converter writes for a configuration of Gemma 3."""
    names = {
        "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.key_length": "head_dim",
        "attention.value_length": "head_dim", "attention.sliding_window": "sliding_window",
    }  # fmt: skip
    rope = stored["rope_parameters"]["full_attention"]
    out = {f"gemma3.{key}": stored[name] for key, name in names.items()}
    out |= {"gemma3.rope.freq_base": float(rope["rope_theta"]), "general.type": "model"}
    return out | {"gemma3.rope.scaling.type": rope["rope_type"], "gemma3.rope.scaling.factor": float(rope["factor"])}


def gemma3_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face folder as the converter writes them: norms with one added."""
    names = {hf: f"{{}}{name}" for name, hf in tables.LAYER_NAMES.items()}
    out = {}
    stored = {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}
    for name, array in stored.items():
        parts = name.removeprefix("model.").split(".", 2)
        if parts[0] == "layers":
            theirs = names[parts[2]].format(f"blk.{parts[1]}.")
        else:
            theirs = {hf: ours for ours, hf in tables.NAMES.items()}[name.removeprefix("model.")]
        out[theirs] = array + 1 if name.endswith("norm.weight") else array
    return out


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Gemma 3 of the golden files as GGUF. The format leaves out what every Gemma 3 has: a global layer after five local ones."""
    stored = json.loads((GOLDEN / "config.json").read_text())
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tensors = gemma3_tensors(GOLDEN)
    # Norms may be of other types too.
    tensors["output_norm.weight"] = tensors["output_norm.weight"].astype(np.float16)
    return write(path, "gemma3", gemma3_metadata(stored), tensors)


def test_a_model_equals_the_one_in_a_folder(golden):
    params, c = open_weights.read_all(reader.open_file(golden))
    expected, expected_c = open_weights.read(GOLDEN)
    assert c == expected_c
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), params.layers, expected.layers)
    np.testing.assert_array_equal(params.embedding, expected.embedding)
    np.testing.assert_allclose(params.norm, expected.norm, atol=1e-3)


def small_q4_0(path: Path, others: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """A model whose matrices are all of type Q4_0, but ``others``."""
    stored = {**json.loads((GOLDEN / "config.json").read_text()), "hidden_size": 64, "num_hidden_layers": 1}
    stored |= {"intermediate_size": 96, "head_dim": 32}
    shapes = {
        "token_embd.weight": (48, 64), "output_norm.weight": (64,), "attn_q.weight": (64, 64), "attn_k.weight": (32, 64),
        "attn_v.weight": (32, 64), "attn_output.weight": (64, 64), "attn_q_norm.weight": (32,), "attn_k_norm.weight": (32,),
        "ffn_gate.weight": (96, 64), "ffn_up.weight": (96, 64), "ffn_down.weight": (64, 96), "attn_norm.weight": (64,),
        "post_attention_norm.weight": (64,), "ffn_norm.weight": (64,), "post_ffw_norm.weight": (64,),
    }  # fmt: skip
    tensors = {
        name if name in tables.NAMES else f"blk.0.{name}": np.ones(shape, np.float32)
        if len(shape) == 1
        else (quantized(Q.Q4_0, *shape, seed), Q.Q4_0)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return write(path, "gemma3", gemma3_metadata(stored), {**tensors, **others})


@pytest.mark.parametrize("weights", ["int4", None])
def test_import_keeps_the_values_of_q4_0(weights, tmp_path):
    opened = reader.open_file(small_q4_0(tmp_path / "model.gguf"))
    import_weights(opened, tmp_path / "model", weights)
    (params, c), (expected, _) = load_model(tmp_path / "model"), open_weights.read_all(opened)
    assert c.decoder == opened.c.decoder
    found = jax.tree.leaves(params, is_leaf=is_quantized)
    assert sum(map(is_quantized, found)) == 8
    for ours, values in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(dequantize(ours) if is_quantized(ours) else ours, values)


def test_an_import_in_4_bits_has_the_types_of_the_table_and_leaves_what_has_4_bits_already(tmp_path):
    floats = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    opened = reader.open_file(small_q4_0(tmp_path / "model.gguf", {"token_embd.weight": floats}))
    kept = reader.open_file(small_q4_0(tmp_path / "kept.gguf"))
    assert types_of(kept, "int4", {})["embedding"].type == "int4"
    assert types_of(kept, "int4", {"embedding": "int8"})["embedding"].type == "int8"
    import_weights(opened, tmp_path / "model", "int4")
    params, _ = load_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, params.embedding, quantize(floats, 8, transposed=True))
    assert params.layers.down.bits == 4


def header(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> GgufFile:
    """A header without a file, with tensors of these shapes."""
    made = {name: GgufTensor(Path("model.gguf"), name, shape, "F32", 0) for name, shape in tensors.items()}
    return GgufFile(Path("model.gguf"), metadata, made)


@pytest.mark.parametrize(("layers", "scalar"), [(34, 256), (62, 168)])
def test_the_score_scale_of_the_27b_is_known_by_its_layers(layers, scalar):
    stored = {**json.loads((GOLDEN / "config.json").read_text()), "num_hidden_layers": layers, "hidden_size": 5376}
    metadata = gemma3_metadata({**stored, "num_attention_heads": 32, "head_dim": 256}) | {
        "general.architecture": "gemma3"
    }
    assert reader.hf_config(header(metadata, {"token_embd.weight": (8, 5376)}))["query_pre_attn_scalar"] == scalar


def gemma4_metadata(**changes: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes for a small Gemma 4 with four layers, of which the last two share keys and values."""
    keys = {
        "context_length": 64, "embedding_length": 32, "block_count": 4, "feed_forward_length": np.array([8, 8, 16, 16]),
        "attention.head_count": 2, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 16, "attention.value_length": 16, "attention.key_length_swa": 8,
        "attention.value_length_swa": 8, "rope.dimension_count": 16, "rope.dimension_count_swa": 8,
        "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "attention.sliding_window": 4,
        "attention.shared_kv_layers": 2, "embedding_length_per_layer_input": 4, "final_logit_softcapping": 30.0,
        "attention.sliding_window_pattern": np.array([True, False, True, False]),
    } | changes  # fmt: skip
    return {"general.architecture": "gemma4"} | {f"gemma4.{key}": value for key, value in keys.items()}


@pytest.fixture
def gemma4(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors that the configuration depends on; the RoPE divisors are those of a quarter of the frequencies."""
    divisors = np.array([1, 1, *[1e30] * 6], np.float32)
    monkeypatch.setattr(GgufTensor, "map", lambda tensor: divisors)
    return {"token_embd.weight": (48, 32), "per_layer_token_embd.weight": (40, 16), "rope_freqs.weight": (8,)}


def test_configuration_of_a_small_gemma_4(gemma4):
    found = reader.hf_config(header(gemma4_metadata(), gemma4))
    assert found["layer_types"] == ["sliding_attention", "full_attention"] * 2
    expected = {
        "model_type": "gemma4_text", "vocab_size": 48, "vocab_size_per_layer_input": 40, "head_dim": 8,
        "global_head_dim": 16, "intermediate_size": 8, "use_double_wide_mlp": True, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 4, "final_logit_softcapping": 30.0, "num_key_value_heads": 1,
    }  # fmt: skip
    assert found | expected == found and "attention_k_eq_v" not in found
    rope = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    assert found["rope_parameters"]["full_attention"] == rope


def test_configuration_of_a_gemma_4_with_experts(gemma4):
    changes = {
        "feed_forward_length": 8,
        "attention.head_count_kv": np.array([8, 2, 8, 2]),
        "attention.shared_kv_layers": 0,
    }
    changes |= {"expert_count": 16, "expert_used_count": 4, "expert_feed_forward_length": 6}
    tensors = {**gemma4, **{f"blk.{i}.attn_k.weight": (8, 32) for i in range(4)}}
    tensors |= {f"blk.{i}.attn_v.weight": (8, 32) for i in (0, 2)}
    found = reader.hf_config(header(gemma4_metadata(**changes), tensors))
    expected = {
        "attention_k_eq_v": True, "num_key_value_heads": 8, "num_global_key_value_heads": 2, "enable_moe_block": True,
        "num_experts": 16, "top_k_experts": 4, "moe_intermediate_size": 6, "use_double_wide_mlp": False,
    }  # fmt: skip
    assert found | expected == found


@pytest.mark.parametrize("experts", [False, True])
def test_every_weight_of_a_gemma_4_has_its_tensor(gemma4, experts):
    changes: dict[str, Any] = {}
    shapes = {name: shape for name, shape in gemma4.items() if not (experts and name.startswith("per_layer"))}
    if experts:
        changes = {
            "feed_forward_length": 8,
            "attention.head_count_kv": np.array([2, 1, 2, 1]),
            "attention.shared_kv_layers": 0,
        }
        changes |= {"expert_count": 16, "expert_used_count": 4, "expert_feed_forward_length": 6}
        changes["embedding_length_per_layer_input"] = 0
        shapes |= {"blk.0.attn_k.weight": (16, 32), "blk.0.attn_v.weight": (16, 32), "blk.1.attn_k.weight": (16, 32)}
    described = read_config(reader.hf_config(header(gemma4_metadata(**changes), shapes)), Path("model.gguf"))
    d = described.c.decoder
    assert (d.head_dim, d.global_head_dim, d.global_rope_fraction, d.window) == (8, 16, 0.25, 4)
    assert (d.kv_sharing_layers, d.global_key_as_value, d.experts is not None) == (
        (0, True, True) if experts else (2, False, False)
    )
    names = {hf: ours for ours, hf in {**tables.NAMES, **tables.NAMES_4}.items()}
    for ours, hf in {**tables.LAYER_NAMES, **tables.LAYER_NAMES_4}.items():
        names |= {f"layers.{i}.{hf}": f"blk.{i}.{ours}" for i in range(4)}
    sources = open_weights.tensor_table(described)
    found = {names[n.removeprefix("model.")]: s.shape for s in tensor_map.sources(sources) for n in s.names}
    opened = open_weights.account(Path("model.gguf"), described, reader.hf_tensors(header(gemma4_metadata(), found)))
    assert opened.c == described.c and opened.dtype == "float32"


def test_tensor_names_of_gemma_4():
    names, layers = tables.NAMES | tables.NAMES_4, tables.LAYER_NAMES | tables.LAYER_NAMES_4
    names |= {f"blk.7.{ours}": f"layers.7.{theirs}" for ours, theirs in layers.items()}
    found = reader.hf_tensors(header({"general.architecture": "gemma4"}, dict.fromkeys(names, (1,))))
    assert {hf: tensor.name for hf, tensor in found.items()} == {f"model.{hf}": ours for ours, hf in names.items()}
    # Gemma 4's norms are stored as they are.
    assert not any(tensor.shift for tensor in found.values())


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"general.architecture": "llama"}, {}, "a model of architecture 'llama'"),
        ({}, {}, "it has no general.architecture"),
        ({"general.architecture": "gemma3", "general.type": "adapter"}, {}, "general.type is 'adapter'"),
        ({"gemma3.attention.unheard_of": 1}, {}, "unknown key 'gemma3.attention.unheard_of'"),
        ({"gemma3.attention.value_length": 9}, {}, "gemma3.attention.value_length is 9; only 8"),
        ({"gemma3.block_count": "7"}, {}, "gemma3.block_count is '7', which is not of the type expected"),
        ({"gemma3.block_count": True}, {}, "gemma3.block_count is True, which is not of the type expected"),
        ({}, {"blk.0.attn_q.bias": (8,)}, "unknown tensor 'blk.0.attn_q.bias'"),
        ({}, {"v.patch_embd.weight": (8,)}, "unknown tensor 'v.patch_embd.weight'"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(metadata, tensors, message):
    whole = {"general.architecture": "gemma3", **gemma3_metadata(json.loads((GOLDEN / "config.json").read_text()))}
    file = header(
        whole | metadata if metadata else {} if "no general" in message else whole,
        {"token_embd.weight": (48, 16), **tensors},
    )
    with pytest.raises(ValueError, match=r"^model\.gguf: ") as error:
        reader.hf_config(file)
        reader.hf_tensors(file)
    assert message in str(error.value) and "\n" not in str(error.value)


def beginning(tensors: int = 0, keys: int = 0, rest: bytes = b"", magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(dimensions: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text("x") + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a complete GGUF file"),
        (beginning(magic=b"GGML"), "not a GGUF file"),
        (beginning(version=1), "GGUF of version 1"),
        (beginning(version=3 << 24), "GGUF of version 50331648"),
        (beginning(tensors=2**60), "tensors: 1,152,921,504,606,846,976; at most"),
        (beginning(keys=2**60), "keys: 1,152,921,504,606,846,976; at most"),
        (beginning(keys=1, rest=struct.pack("<Q", 2**62)), "bytes of a text"),
        (beginning(keys=1, rest=struct.pack("<Q", 9) + b"k"), "it ends at byte"),
        (beginning(keys=1, rest=struct.pack("<Q", 1) + b"\xff"), "not UTF-8"),
        (beginning(keys=1, rest=text("k") + struct.pack("<I", 99)), "'k' is of unknown type 99"),
        (beginning(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 2**50)), "values of 'k'"),
        (beginning(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 0, 2**22)), "it ends at byte"),
        (beginning(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1)), "an array of unknown type 9"),
        (beginning(keys=2, rest=2 * (text("k") + struct.pack("<II", 4, 1))), "'k' occurs twice"),
        (beginning(keys=1, rest=text("general.alignment") + struct.pack("<II", 4, 0)), "general.alignment is 0"),
        (beginning(keys=1, rest=text("split.count") + struct.pack("<IH", 2, 3)), "one of 3 parts"),
        (beginning(tensors=1, rest=tensor(())), "0 dimensions"),
        (beginning(tensors=1, rest=tensor((2**63, 2**63))), "'x' ends beyond byte"),
        (beginning(tensors=1, rest=tensor((8,), offset=2**63)), "'x' ends beyond byte"),
        (beginning(tensors=1, rest=tensor((0, 8))), "has the shape (8, 0)"),
        (beginning(tensors=1, rest=tensor((8,), kind=2)), "'x' of type Q4_0 has the shape (8,)"),
        (beginning(tensors=1, rest=tensor((256,), kind=16)), "'x' is of type IQ2_XXS"),
        (beginning(tensors=1, rest=tensor((256,), kind=9999)), "'x' is of type 9999"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        open_gguf(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_file_is_read_or_refused_in_one_line(golden, tmp_path, data):
    content = golden.read_bytes()
    start = open_gguf(golden).tensors["token_embd.weight"].offset
    length = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    changed = bytearray(content[:length])
    for position in data.draw(st.lists(st.integers(0, start - 1), max_size=3)):
        if position < length:
            changed[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(changed)
    with pytest.raises(ValueError) if length < len(content) else suppress(ValueError) as error:
        file = open_gguf(path)
        reader.hf_config(file)
        reader.hf_tensors(file)
    assert error is None or (str(path) in str(error.value) and "\n" not in str(error.value))


def test_values_that_are_not_finite_are_refused(tmp_path):
    tensors = {"norm": np.array([1, np.nan], np.float32), "scale": (np.full((1, 18), 0xFF, np.uint8), Q.Q4_0)}
    file = open_gguf(write(tmp_path / "nan.gguf", "gemma3", {}, tensors))
    reads = [tensor.read for tensor in file.tensors.values()]
    scale = file.tensors["scale"]
    for read in (
        *reads,
        lambda: scale.write_quantized(np.zeros((1, 1, 4, 16, 4), np.uint8), np.zeros((1, 1, 16), np.float16)),
    ):
        with pytest.raises(ValueError, match=r"nan\.gguf: .* holds values that are not finite"):
            read()
