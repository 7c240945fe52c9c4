"""Preprocessing of images for the encoders of open models equals that of the reference: sizes, positions, pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.model import config
from alhena.tokens.images import GEMMA4_BUDGETS, frame_indices, gemma4_grid, preprocess

IMAGES = Path(__file__).parents[1] / "model" / "golden" / "images.npz"
GEMMA4, UNIFIED = config.GemmaVision(16, 1, 2, 8, 16), config.UnifiedVision(16)
GEMMA3 = config.Vision(16, 1, 2, 16, patch=14, pool=2, side=4, plain=True, mean_pool=True)
SMALL = {"small": (60, 90), "large": (700, 1000)}


def picture(height: int, width: int) -> np.ndarray:
    """The picture of the script that made the golden file."""
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((x * (channel + 3) + y * 5 + x * y // 7 * (channel == 1)) % 256).astype(np.uint8)


def test_gemma_4_resizes_to_the_sizes_of_the_reference() -> None:
    with np.load(IMAGES) as golden:
        sizes, budgets, resized = (golden[name].tolist() for name in ("sizes", "budgets", "resized"))
    assert tuple(budgets) == GEMMA4_BUDGETS
    for budget, expected in zip(budgets, resized, strict=True):
        ours = [gemma4_grid(height, width, budget) for height, width in sizes]
        assert [[48 * rows, 48 * columns] for rows, columns in ours] == expected


def test_numbers_of_tokens_of_known_sizes() -> None:
    known = {(480, 640): 266, (48, 48): 256, (37, 1000): 258, (1000, 3): 280}
    for size, tokens in known.items():
        rows, columns = gemma4_grid(*size, 280)
        assert rows * columns == tokens


@pytest.mark.parametrize("name", SMALL)
def test_pixels_equal_those_of_the_reference(name: str) -> None:
    """Gemma 4's of every 37th patch in the order of rows, Gemma 3's of the complete square."""
    pixels = picture(*SMALL[name])
    with np.load(IMAGES) as golden:
        gemma4, gemma3, positions = (golden[key + name] for key in ("gemma4_", "gemma3_", "positions_"))
    patches, ours = preprocess(pixels, GEMMA4, 70)
    order = np.lexsort((ours[:, 1], ours[:, 0]))[::37]
    np.testing.assert_array_equal(ours[order], positions[:, ::-1])
    np.testing.assert_allclose(patches[order].astype(int), gemma4, atol=1)
    patches, ours = preprocess(pixels, GEMMA3, 256)
    assert len(patches) == 16
    for patch, (row, column) in zip(patches, ours, strict=True):
        expected = gemma3[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        np.testing.assert_allclose(patch.reshape(14, 14, 3).astype(int), expected, atol=1)


def test_unified_reads_the_patches_of_gemma_4() -> None:
    for a, b in zip(preprocess(picture(30, 50), GEMMA4, 70), preprocess(picture(30, 50), UNIFIED, 70), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from(GEMMA4_BUDGETS))
def test_any_image_stays_within_its_budget(height: int, width: int, budget: int) -> None:
    rows, columns = gemma4_grid(height, width, budget)
    assert 1 <= rows * columns <= budget


def test_what_an_encoder_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 100 soft tokens an image; Gemma 4 has 70, 140, 280, 560, 1120"):
        preprocess(picture(9, 9), GEMMA4, 100)
    with pytest.raises(ValueError, match="a budget of 3 soft tokens an image; this encoder makes 4 of each"):
        preprocess(picture(9, 9), GEMMA3, 3)
    with pytest.raises(ValueError, match="9 x 1 pixels has 2 x 25 soft tokens; this encoder has positions for 6 "):
        preprocess(picture(1, 9), config.GemmaVision(16, 1, 2, 8, 16, side=18), 70)


def test_the_frames_of_a_video_are_spread_over_it() -> None:
    assert frame_indices(100, 32)[:4] == [0, 3, 6, 9]
    assert frame_indices(32, 32) == list(range(32))
    assert frame_indices(7, 32) == list(range(7))
