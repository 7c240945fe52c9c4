"""Codes are a bijection, local and repeatable; gradients pass; training is learned, resumed and written whole."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.files import write_json
from alhena.model import config
from alhena.model import image_tokenizer as tokenizer
from alhena.train import image_tokenizer as training
from alhena.train.image_tokenizer import TrainImageTokenizer, plot_reconstructions, train

C = config.ImageTokenizer((5, 4), (3,), 16)
LARGE = config.ImageTokenizer((5, 4), (4, 3), 24, encoder_blocks=2, decoder_blocks=3)  # the family's kind


@pytest.fixture(scope="module")
def params() -> tokenizer.Params:
    return tokenizer.init(jax.random.key(1), C)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def squares(count: int) -> list[np.ndarray]:
    """Coloured squares on white."""
    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        image = np.full((32, 32, 3), 255, np.uint8)
        image[8:24, 8:24] = rng.integers(0, 2, 3) * 200
        images.append(image)
    return images


@pytest.mark.parametrize(("structure", "color"), [((8, 8), (3, 3, 3)), ((8, 5), (5, 5)), ((2,), (9,))])
def test_codes_are_a_bijection(structure, color):
    c = config.ImageTokenizer(structure, color, 8)
    assert math.prod(c.factors) == c.num_codes
    values = tokenizer.to_level_values(jnp.arange(c.num_codes), c)
    assert len(np.unique(values, axis=0)) == c.num_codes
    assert (np.asarray(values).min(0) == 0).all()
    assert (np.asarray(values).max(0) == np.array(c.levels) - 1).all()
    np.testing.assert_array_equal(tokenizer.to_codes(values, c), np.arange(c.num_codes))


def test_levels_are_whole_bounded_and_let_the_gradient_through():
    z = jnp.linspace(-6, 6, 300).reshape(100, 3)
    q = np.asarray(tokenizer.quantize(z, C))
    np.testing.assert_allclose(q, np.round(q), atol=1e-5)
    assert q.min() >= -1e-5
    assert (q.max(0) <= np.array(C.levels) - 1 + 1e-5).all()
    slope = jax.grad(lambda z: tokenizer.quantize(z, C).sum())(z)
    smooth = jax.grad(lambda z: (jax.nn.sigmoid(2 * z) * (jnp.array(C.levels) - 1.0)).sum())(z)
    np.testing.assert_allclose(slope, smooth, rtol=1e-5)


@pytest.mark.parametrize("c", [C, LARGE])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 48), (40, 24)])
def test_any_multiple_of_eight_goes_in_and_comes_out(c, height, width):
    params = tokenizer.init(jax.random.key(1), c)
    (codes,) = tokenizer.encode_images(params, c, [noise(0, height, width)])
    assert codes.shape == (height // 8, width // 8)
    assert codes.min() >= 0
    assert codes.max() < c.num_codes
    assert tokenizer.decode_codes(params, c, codes).shape == (height, width, 3)


def test_the_large_one_looks_as_far_as_its_blocks_and_no_farther():
    params = tokenizer.init(jax.random.key(1), LARGE)
    levels = jax.jit(lambda x: jax.nn.sigmoid(tokenizer.encode_levels(params, LARGE, x)))
    image = jnp.asarray(noise(0, 8, 96), jnp.float32)[None] / 127.5 - 1
    slope = jax.grad(lambda x: levels(x)[0, 0, 0].sum())(image)
    reached = np.asarray(jnp.abs(slope[0]).reshape(8, 12, 8, 3).max((0, 2, 3)) > 0)
    np.testing.assert_array_equal(reached, np.arange(12) <= LARGE.encoder_blocks)


def test_a_crop_at_whole_cells_has_the_codes_of_the_whole_away_from_its_edges():
    """Of the small one all codes, of the large one all that see nothing but the crop."""
    whole, far = noise(2, 64, 72), LARGE.encoder_blocks
    for c, edge in ((C, 0), (LARGE, far)):
        params = tokenizer.init(jax.random.key(1), c)
        codes, crop = tokenizer.encode_images(params, c, [whole, whole[8:64, 8:72]])
        inner = np.s_[edge : 7 - edge, edge : 8 - edge]
        np.testing.assert_array_equal(crop[inner], codes[1:, 1:][inner])


def test_the_large_one_is_written_and_read(tmp_path):
    params = tokenizer.init(jax.random.key(1), LARGE)
    tokenizer.save(tmp_path, params, LARGE)
    again, c = tokenizer.load(tmp_path)
    assert c == LARGE
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_equal_cells_have_one_code_wherever_they_stand(params):
    cell = noise(3, 8, 8)
    for codes in tokenizer.encode_images(params, C, [np.tile(cell, (2, 3, 1)), np.tile(cell, (4, 4, 1))]):
        assert len(np.unique(codes)) == 1


def test_images_of_mixed_sizes_keep_their_order(params):
    images = [noise(i, 16, 8 * (1 + i % 3)) for i in range(7)]
    together = tokenizer.encode_images(params, C, images, batch=2)
    for image, codes in zip(images, together, strict=True):
        np.testing.assert_array_equal(codes, tokenizer.encode_images(params, C, [image])[0])


def test_files_of_another_tokeniser_are_refused(params, tmp_path):
    tokenizer.save(tmp_path, params, C)
    write_json(tmp_path / "image_tokenizer.json", asdict(replace(C, width=24)))
    with pytest.raises(ValueError, match=r"image_tokenizer.safetensors.*cells is \(192, 16\), expected \(192, 24\)"):
        tokenizer.load(tmp_path)
    write_json(tmp_path / "image_tokenizer.json", {"width": 16})
    with pytest.raises(ValueError, match="not an image tokenizer's settings"):
        tokenizer.load(tmp_path)
    (tmp_path / "image_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"image_tokenizer.json: no such file"):
        tokenizer.load(tmp_path)


SETTINGS = TrainImageTokenizer(steps=90, batch_size=16, save_every=30)


def test_it_learns_to_redraw_and_shows_it(tmp_path):
    images = squares(40)
    short = train(images, C, replace(SETTINGS, steps=2), tmp_path / "short")
    learned = train(images, C, SETTINGS, tmp_path / "long")
    assert learned["psnr_db"] > short["psnr_db"] + 5
    assert 0 < learned["l1"] < short["l1"] / 1.5
    assert 1 < learned["perplexity"] <= learned["codes_used"] <= C.num_codes
    params, c = tokenizer.load(tmp_path / "long")
    plot_reconstructions(params, c, images[:3], tmp_path / "shown.png")
    assert (tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG")


def test_structure_and_colour_are_told_apart(tmp_path):
    """A square has one structure whatever its color; with another's color it is the other one."""
    squares = [np.full((32, 32, 3), 255, np.uint8) for _ in range(3)]
    for channel, square in enumerate(squares):
        square[8:24, 8:24] = 200 * np.eye(3, dtype=np.uint8)[channel]
    train(squares, config.ImageTokenizer((8, 8), (3, 3, 3), 64), replace(SETTINGS, steps=300), tmp_path)
    params, c = tokenizer.load(tmp_path)
    codes = tokenizer.encode_images(params, c, squares)
    structures = [grid % c.factors[0] for grid in codes]
    np.testing.assert_array_equal(structures[0], structures[1])
    np.testing.assert_array_equal(structures[0], structures[2])
    for grid, square in zip(codes, squares, strict=True):
        drawn = tokenizer.decode_codes(params, c, grid)
        assert np.abs(drawn.astype(int) - square).mean() < 5


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch):
    whole, images, step = tmp_path / "whole", squares(20), training._step
    train(images, C, SETTINGS, whole)
    seen = []

    def terminated(state, *rest):
        seen.append(0)
        if len(seen) == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, *rest)

    monkeypatch.setattr(training, "_step", terminated)
    with pytest.raises(SystemExit):
        train(images, C, SETTINGS, tmp_path / "cut")
    train(images, C, SETTINGS, tmp_path / "cut")
    assert len(seen) == SETTINGS.steps  # it went on at step 50
    name = "image_tokenizer.safetensors"
    assert (whole / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_pictures_too_small_to_crop_are_named(tmp_path):
    with pytest.raises(ValueError, match="no picture of at least 32x32"):
        train([noise(0, 24, 64)], C, SETTINGS, tmp_path)


def test_a_second_call_compiles_nothing() -> None:
    params = tokenizer.init(jax.random.key(0), C)
    calls = tokenizer._encode, tokenizer._decode
    sizes = []
    for seed in (0, 1):
        (codes,) = tokenizer.encode_images(params, C, [noise(seed, 24, 40)], batch=1)
        tokenizer.decode_codes(params, C, codes)
        sizes.append([call._cache_size() for call in calls])  # type: ignore[attr-defined]
    assert sizes[0] == sizes[1]
