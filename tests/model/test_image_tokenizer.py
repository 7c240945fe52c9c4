"""Codes are a bijection, local and deterministic; gradients are straight-through; training learns, resumes and saves."""

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
from alhena.train.components import image_tokenizer as training
from alhena.train.components.image_tokenizer import TrainImageTokenizer, plot_reconstructions, train

C = config.ImageTokenizer((5, 4), (3,), 16)
# With encoder blocks, as in the recipes of the Gemini family.
LARGE = config.ImageTokenizer((5, 4), (4, 3), 24, encoder_blocks=2, decoder_blocks=3)


@pytest.fixture(scope="module")
def params() -> tokenizer.Params:
    return tokenizer.init(jax.random.key(1), C)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def squares(count: int) -> list[np.ndarray]:
    """Colored squares on white."""
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


def test_levels_are_bounded_integers_with_a_straight_through_gradient():
    z = jnp.linspace(-6, 6, 300).reshape(100, 3)
    q = np.asarray(tokenizer.quantize(z, C))
    np.testing.assert_allclose(q, np.round(q), atol=1e-5)
    assert q.min() >= -1e-5
    assert (q.max(0) <= np.array(C.levels) - 1 + 1e-5).all()
    gradient = jax.grad(lambda z: tokenizer.quantize(z, C).sum())(z)
    smooth = jax.grad(lambda z: (jax.nn.sigmoid(2 * z) * (jnp.array(C.levels) - 1.0)).sum())(z)
    np.testing.assert_allclose(gradient, smooth, rtol=1e-5)


@pytest.mark.parametrize("c", [C, LARGE])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 48), (40, 24)])
def test_images_of_any_multiple_of_eight_round_trip(c, height, width):
    params = tokenizer.init(jax.random.key(1), c)
    (codes,) = tokenizer.encode_images(params, c, [noise(0, height, width)])
    assert codes.shape == (height // 8, width // 8)
    assert codes.min() >= 0
    assert codes.max() < c.num_codes
    assert tokenizer.decode_codes(params, c, codes).shape == (height, width, 3)


def test_the_receptive_field_is_one_cell_per_encoder_block():
    params = tokenizer.init(jax.random.key(1), LARGE)
    levels = jax.jit(lambda x: jax.nn.sigmoid(tokenizer.encode_levels(params, LARGE, x)))
    image = jnp.asarray(noise(0, 8, 96), jnp.float32)[None] / 127.5 - 1
    gradient = jax.grad(lambda x: levels(x)[0, 0, 0].sum())(image)
    reached = np.asarray(jnp.abs(gradient[0]).reshape(8, 12, 8, 3).max((0, 2, 3)) > 0)
    np.testing.assert_array_equal(reached, np.arange(12) <= LARGE.encoder_blocks)


def test_a_crop_at_cell_boundaries_has_the_codes_of_the_image_away_from_its_edges():
    """All codes of the small encoder, and those of the large one whose receptive field is inside the crop."""
    image = noise(2, 64, 72)
    for c, edge in ((C, 0), (LARGE, LARGE.encoder_blocks)):
        params = tokenizer.init(jax.random.key(1), c)
        codes, crop = tokenizer.encode_images(params, c, [image, image[8:64, 8:72]])
        inner = np.s_[edge : 7 - edge, edge : 8 - edge]
        np.testing.assert_array_equal(crop[inner], codes[1:, 1:][inner])


def test_encoder_blocks_are_saved_and_loaded(tmp_path):
    params = tokenizer.init(jax.random.key(1), LARGE)
    tokenizer.save(tmp_path, params, LARGE)
    loaded, c = tokenizer.load(tmp_path)
    assert c == LARGE
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_equal_cells_have_one_code_at_every_position(params):
    cell = noise(3, 8, 8)
    for codes in tokenizer.encode_images(params, C, [np.tile(cell, (2, 3, 1)), np.tile(cell, (4, 4, 1))]):
        assert len(np.unique(codes)) == 1


def test_images_of_mixed_sizes_keep_their_order(params):
    images = [noise(i, 16, 8 * (1 + i % 3)) for i in range(7)]
    batched = tokenizer.encode_images(params, C, images, batch=2)
    for image, codes in zip(images, batched, strict=True):
        np.testing.assert_array_equal(codes, tokenizer.encode_images(params, C, [image])[0])


def test_files_of_another_tokenizer_are_refused(params, tmp_path):
    tokenizer.save(tmp_path, params, C)
    write_json(tmp_path / "image_tokenizer.json", asdict(replace(C, width=24)))
    with pytest.raises(ValueError, match=r"image_tokenizer.safetensors.*cells is \(192, 16\), expected \(192, 24\)"):
        tokenizer.load(tmp_path)
    write_json(tmp_path / "image_tokenizer.json", {"width": 16})
    with pytest.raises(ValueError, match=r"image_tokenizer\.json: structure: missing"):
        tokenizer.load(tmp_path)
    (tmp_path / "image_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"image_tokenizer.json: no such file"):
        tokenizer.load(tmp_path)


SETTINGS = TrainImageTokenizer(steps=90, batch_size=16, save_every=30)


def test_training_learns_to_reconstruct_and_plots_it(tmp_path):
    images = squares(40)
    short = train(images, C, replace(SETTINGS, steps=2), tmp_path / "short")
    learned = train(images, C, SETTINGS, tmp_path / "long")
    assert learned["psnr_db"] > short["psnr_db"] + 5
    assert 0 < learned["l1"] < short["l1"] / 1.5
    assert 1 < learned["perplexity"] <= learned["codes_used"] <= C.num_codes
    params, c = tokenizer.load(tmp_path / "long")
    plot_reconstructions(params, c, images[:3], tmp_path / "reconstructions.png")
    assert (tmp_path / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


def test_structure_and_color_are_separate_factors(tmp_path):
    """Squares of all colors have the same structure codes, and are reconstructed in their color."""
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
        decoded = tokenizer.decode_codes(params, c, grid)
        assert np.abs(decoded.astype(int) - square).mean() < 5


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch):
    uninterrupted, images, step = tmp_path / "uninterrupted", squares(20), training._step
    train(images, C, SETTINGS, uninterrupted)
    calls = []

    def terminated(state, *rest):
        calls.append(0)
        if len(calls) == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, *rest)

    monkeypatch.setattr(training, "_step", terminated)
    with pytest.raises(SystemExit):
        train(images, C, SETTINGS, tmp_path / "resumed")
    train(images, C, SETTINGS, tmp_path / "resumed")
    # Resumed at step 50: no step ran twice.
    assert len(calls) == SETTINGS.steps
    name = "image_tokenizer.safetensors"
    assert (uninterrupted / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_without_an_image_to_crop_the_weights_stay_random(tmp_path):
    """As in a corpus of text: the model folder has a tokenizer of the right shapes."""
    assert train([noise(0, 24, 64)], C, SETTINGS, tmp_path) == {"images": 0}
    params, c = tokenizer.load(tmp_path)
    assert c == C
    jax.tree.map(np.testing.assert_array_equal, params, tokenizer.init(jax.random.key(SETTINGS.seed), C))


def test_a_second_call_compiles_nothing() -> None:
    params = tokenizer.init(jax.random.key(0), C)
    calls = tokenizer._encode, tokenizer._decode
    sizes = []
    for seed in (0, 1):
        (codes,) = tokenizer.encode_images(params, C, [noise(seed, 24, 40)], batch=1)
        tokenizer.decode_codes(params, C, codes)
        sizes.append([call._cache_size() for call in calls])  # type: ignore[attr-defined]
    assert sizes[0] == sizes[1]
