"""Weights round trip; files of another model are refused by name."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from alhena.compress.quantize import quantize_model
from alhena.files import read_json, write_json
from alhena.model import config, image_tokenizer, model
from alhena.model.storage import weights
from alhena.model.storage.tensor_writer import Declared, write_arrays, write_tensors
from alhena.model.storage.tensors import open_file
from alhena.model.storage.weights import load_model, save_model
from alhena.tokens.encode import Encoder


def test_save_and_load_round_trip_exactly(tiny, tmp_path):
    save_model(tmp_path, *tiny, {"name": "tiny"})
    params, c = load_model(tmp_path)
    assert c == tiny[1]
    jax.tree.map(np.testing.assert_array_equal, params, tiny[0])


def test_weights_of_another_model_are_named(tiny, tmp_path):
    params, c = tiny
    wider = replace(c, decoder=replace(c.decoder, hidden=96))
    save_model(tmp_path, params, wider, {})
    with pytest.raises(ValueError, match=r"weights.safetensors.*layers.gate is \(3, 32, 64\), expected \(3, 32, 96\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\x80\x04not safetensors", b"\xff" * 100])
def test_a_damaged_file_is_named(tiny, tmp_path, damage):
    save_model(tmp_path, *tiny, {})
    (tmp_path / "weights.safetensors").write_bytes(damage)
    with pytest.raises(ValueError, match=r"weights.safetensors: these are not the weights"):
        load_model(tmp_path)


def test_image_codes_are_a_bijection_and_local(tmp_path):
    c = config.ImageTokenizer((8, 5), (3,), 16)
    codes = np.arange(c.num_codes)
    np.testing.assert_array_equal(image_tokenizer.to_codes(image_tokenizer.to_level_values(codes, c), c), codes)
    params = image_tokenizer.init(jax.random.key(0), c)
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    other = image.copy()
    other[:8, :8] = 255 - other[:8, :8]
    a, b = image_tokenizer.encode_images(params, c, [image, other])
    assert a.shape == (2, 3)
    # Only the code of the changed cell may differ.
    np.testing.assert_array_equal(a.reshape(-1)[1:], b.reshape(-1)[1:])
    image_tokenizer.save(tmp_path, params, c)
    loaded, loaded_c = image_tokenizer.load(tmp_path)
    assert loaded_c == c
    np.testing.assert_array_equal(
        image_tokenizer.decode_codes(loaded, c, a), image_tokenizer.decode_codes(params, c, a)
    )


def test_specifications_have_the_parameter_count_of_the_arrays(tiny):
    assert model.count(model.weights(tiny[1])) == model.count(tiny[0])


def test_non_contiguous_arrays_are_written_in_their_logical_order(tmp_path):
    """A transposed view is written as its values, not as its memory. bfloat16 keeps its dtype."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_arrays(tmp_path / "x.safetensors", {"t": array.T, "b": array.astype(ml_dtypes.bfloat16)})
    stored = open_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(stored["t"].read(), array.T)
    assert (stored["b"].dtype, stored["b"].read().dtype) == ("BF16", ml_dtypes.bfloat16)


def test_large_arrays_are_memory_mapped_where_they_are(tiny, tmp_path, monkeypatch):
    """JAX uses the pages of the file itself: the array has the address of a mapping, and changes with the file."""
    monkeypatch.setattr(weights, "MIN_MAPPED_BYTES", 64)
    save_model(tmp_path, *tiny, {})
    params, _ = load_model(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, tiny[0])
    stored = open_file(tmp_path / "weights.safetensors")
    assert all(s.offset % 64 == 0 for s in stored.values() if s.nbytes % 64 == 0)
    with open(tmp_path / "weights.safetensors", "r+b") as file:
        file.seek(stored["layers.gate"].offset)
        file.write(np.float32(7).tobytes())
    assert np.asarray(params.layers.gate).flat[0] == 7
    doubled = jax.jit(lambda p: p * 2, donate_argnums=0)(params.layers.gate)
    assert doubled[0, 0, 0] == 14
    assert stored["layers.gate"].read().flat[0] == 7


def test_small_arrays_are_read_to_where_jax_takes_them(tiny, tmp_path):
    """Without a second copy: the array of the device is that which was read."""
    save_model(tmp_path, *tiny, {})
    read = {name: s.read() for name, s in open_file(tmp_path / "weights.safetensors").items()}
    taken = {name: jax.device_put(array) for name, array in read.items()}
    assert all(taken[name].unsafe_buffer_pointer() == array.ctypes.data for name, array in read.items())
    np.testing.assert_array_equal(read["layers.gate"], tiny[0].layers.gate)


@given(shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 70)), min_size=1, max_size=6), dtypes=st.data())
@settings(deadline=None, max_examples=30)
def test_any_arrays_are_written_as_another_library_reads_them(shapes, dtypes):
    kinds = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.uint8, np.int32])
    arrays = {f"a.{i}": np.arange(math.prod(s)).reshape(s).astype(dtypes.draw(kinds)) for i, s in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        write_arrays(path, arrays)
        stored, ours = load_file(path), open_file(path)
        assert stored.keys() == arrays.keys() == ours.keys()
        for name, array in arrays.items():
            assert stored[name].dtype == ours[name].read().dtype == array.dtype
            np.testing.assert_array_equal(stored[name], array)
            np.testing.assert_array_equal(ours[name].read(), array)


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path):
    declared = {"a": Declared("F32", (2**20, 2**20, 2**10))}
    with pytest.raises(OSError), write_tensors(tmp_path / "x.safetensors", declared):
        pass
    assert not list(tmp_path.iterdir())


REMOVED = object()


def change(folder, file, **values):
    """Sets fields of a stored configuration; ``REMOVED`` deletes a field."""
    stored = read_json(folder / file)
    fields = stored["config"]["decoder"] if file == "model.json" else stored
    fields.update(values)
    for name in [name for name, value in fields.items() if value is REMOVED]:
        del fields[name]
    write_json(folder / file, stored)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 10**13}, r"config\.decoder: Decoder\.layers is 10000000000000; 1 to 4,096"),
        ({"layers": 4000}, r"weights\.safetensors: these are not the weights of this model: .* needs .* or more"),
        ({"width": -8}, r"Decoder\.width is -8"),
        ({"hidden": 48.5}, r"config\.decoder\.hidden: input should be a valid integer, not 48\.5"),
        ({"qk_norm": 1}, r"config\.decoder\.qk_norm: input should be a valid boolean, not 1"),
        ({"heads": [4]}, r"config\.decoder\.heads: input should be a valid integer, not \[4\]"),
        ({"rope_base": float("nan")}, r"Decoder\.rope_base is nan"),
        ({"head_dim": 7}, r"Decoder\.head_dim is 7; rotary positions need an even number"),
        ({"kv_heads": 3}, r"Decoder\.kv_heads is 3; it must divide heads, 4"),
        ({"rope_base": REMOVED}, r"config\.decoder\.rope_base: missing"),
        ({"sinks": 1}, r"config\.decoder\.sinks: unexpected field"),
    ],
)
def test_a_wrong_field_of_a_configuration_is_named(tiny, tmp_path, values, message):
    save_model(tmp_path, *tiny, {})
    change(tmp_path, "model.json", **values)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_text": 10**13}, r"vocabulary\.json: Vocabulary\.num_text is"),
        ({"num_codes": -1}, r"Vocabulary\.num_codes is -1"),
        ({"vision": None}, r"vision: input should be an object"),
        ({"audio": {"width": 16}}, r"audio\.layers: missing"),
        ({"budget": {"image_tokens": 64}}, r"budget\.frame_tokens: missing"),
        ({"budget": {"image_tokens": 10**9}}, r"budget: Budget\.image_tokens is 1000000000"),
        ({"color": 1}, r"color: unexpected field"),
    ],
)
def test_a_wrong_field_of_a_vocabulary_is_named(encoder, tmp_path, values, message):
    encoder.save(tmp_path)
    change(tmp_path, "vocabulary.json", **values)
    with pytest.raises(ValueError, match=message):
        Encoder.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x00", b"no model", b"\xff" * 1000])
def test_a_damaged_text_tokenizer_is_named(encoder, tmp_path, data):
    encoder.save(tmp_path)
    (tmp_path / "text.model").write_bytes(data)
    with pytest.raises(ValueError, match=r"text\.model"):
        Encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("layers.gate.scales", None, r"it has no array layers\.gate\.scales"),
        (
            "layers.gate.scales",
            np.zeros((3, 3, 64), np.float16),
            r"layers\.gate\.scales is \(3, 3, 64\), expected \(3, 4, 1, 16\)",
        ),
        (
            "layers.gate.packed",
            np.zeros((3, 4, 1, 4, 16, 4), np.float32),
            r"layers\.gate is not a quantized weight: F32",
        ),
        (
            "layers.gate.packed",
            np.zeros(3, np.uint8),
            r"layers\.gate\.packed is \(3,\), expected \(3, 4, 1, 4, 16, 4\)",
        ),
        (
            "layers.gate.packed",
            np.zeros((3, 16, 64), np.uint8),
            r"layers\.gate has the 4-bit layout of an older version",
        ),
        ("norm", np.full(32, np.inf, np.float32), r"norm holds values that are not finite"),
        ("norm", np.zeros(32, np.int32), r"norm is of dtype I32, expected float32"),
        ("more", np.zeros(3, np.float32), r"1 unknown arrays, such as 'more'"),
    ],
)
def test_a_wrong_array_is_named(tiny, tmp_path, name, array, message):
    save_model(tmp_path, quantize_model(tiny[0], model.weights(tiny[1])), tiny[1], {})
    arrays = {**load_file(tmp_path / "weights.safetensors"), name: array}
    write_arrays(tmp_path / "weights.safetensors", {name: a for name, a in arrays.items() if a is not None})
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_files_of_two_models_are_refused(tiny, encoder):
    encoder.check(tiny[1])
    with pytest.raises(ValueError, match=r"vision\.patch is 8 in vocabulary\.json, 4 in model\.json"):
        encoder.check(replace(tiny[1], vision=replace(tiny[1].vision, patch=4)))
