"""Weights round trip; files of another model are refused by name."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from alhena.model import config, image_tokenizer, model
from alhena.model.weights import load_model, save_model


def test_round_trip_is_exact(tiny, tmp_path):
    save_model(tmp_path, *tiny, {"name": "tiny"})
    params, c = load_model(tmp_path)
    assert c == tiny[1]
    jax.tree.map(np.testing.assert_array_equal, params, tiny[0])


def test_weights_of_another_model_are_named(tiny, tmp_path):
    params, c = tiny
    wider = replace(c, decoder=replace(c.decoder, hidden=64))
    save_model(tmp_path, params, wider, {})
    with pytest.raises(ValueError, match=r"weights.safetensors.*layers.gate is \(3, 32, 48\), expected \(3, 32, 64\)"):
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
    np.testing.assert_array_equal(a.reshape(-1)[1:], b.reshape(-1)[1:])  # only the changed cell may differ
    image_tokenizer.save(tmp_path, params, c)
    again, same = image_tokenizer.load(tmp_path)
    assert same == c
    np.testing.assert_array_equal(image_tokenizer.decode_codes(again, c, a), image_tokenizer.decode_codes(params, c, a))


def test_parameters_are_counted_without_making_them(tiny):
    assert model.count(model.weights(tiny[1])) == model.count(tiny[0])
