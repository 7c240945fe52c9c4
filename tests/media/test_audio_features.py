"""Features of audio equal those of the reference implementations, and token counts those of the audio encoders' outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alhena.model import config
from alhena.tokens.audio_features import GEMMA_SAMPLES, HOP, count_frames, count_tokens, features, log_mel

TOLERANCE = 1e-4
USM = config.Usm(8, 1, 1, 8)
GEMMA3N = config.Usm(8, 1, 1, 8, chunk=3008, variant="gemma3n")
GEMMA4 = config.Usm(8, 1, 1, 8, chunk=3000, stack=1, variant="gemma4")
UNIFIED = config.UnifiedAudio()


@pytest.fixture(scope="module")
def golden() -> Iterator[Any]:
    with np.load(Path(__file__).parents[1] / "model" / "golden" / "audio_features.npz") as arrays:
        yield dict(arrays)


@pytest.mark.parametrize("samples", [161, 320, 321, 641, 1000, 4801, 9600])
def test_features_equal_gemma_4(golden: Any, samples: int) -> None:
    frames, (length,) = features(golden["sound"][:samples], GEMMA4)
    assert (frames.shape, frames.dtype, length) == ((1, 3000, 128), np.float32, len(golden[f"gemma4_{samples}"]))
    np.testing.assert_allclose(frames[0, :length], golden[f"gemma4_{samples}"], atol=TOLERANCE)
    assert not frames[0, length:].any()


@pytest.mark.parametrize("samples", [513, 600, 4801, 9600])
def test_features_equal_gemma_3n(golden: Any, samples: int) -> None:
    frames, (length,) = features(golden["sound"][:samples], GEMMA3N)
    assert (frames.shape, frames.dtype, length) == ((1, 3008, 128), np.float32, len(golden[f"gemma3n_{samples}"]))
    np.testing.assert_allclose(frames[0, :length], golden[f"gemma3n_{samples}"], atol=TOLERANCE)
    assert count_tokens(samples, GEMMA3N) == 188


def test_our_usm_reads_the_features_of_gemma_3n_and_windows_beyond_the_end(golden: Any) -> None:
    ours, expected = log_mel(golden["sound"], USM), golden["gemma3n_9600"]
    assert len(ours) == 60 and len(expected) == 57
    np.testing.assert_allclose(ours[:57], expected, atol=TOLERANCE)


def test_frames_of_raw_samples_equal_gemma_4_unified(golden: Any) -> None:
    frames, lengths = features(golden["sound"][:1000], UNIFIED)
    np.testing.assert_array_equal(frames[0, :2], golden["unified_1000"])
    assert (frames.shape, frames.dtype, lengths.tolist()) == ((1, 25, 640), np.float32, [2])
    assert not frames[0, 2:].any()
    frames, lengths = features(np.ones(25 * 640 + 1, np.float32), UNIFIED)
    assert (lengths.tolist(), frames.sum(), count_tokens(25 * 640 + 1, UNIFIED)) == ([25, 1], 25 * 640 + 1, 26)


def test_numbers_of_tokens_equal_the_reference(golden: Any) -> None:
    lengths = golden["lengths"].tolist()
    assert [count_tokens(n, GEMMA4) for n in lengths] == golden["gemma4_tokens"].tolist()
    assert (count_tokens(128_037, GEMMA4), count_tokens(480_000, GEMMA4)) == (200, 750)
    assert [count_tokens(n, GEMMA3N) for n in (512, 513, 480_000)] == [0, 188, 188]
    assert [count_tokens(n, UNIFIED) for n in (0, 640, 641)] == [0, 1, 2]


@pytest.mark.parametrize("c", [GEMMA3N, GEMMA4], ids=["3n", "4"])
def test_the_longest_audio_is_one_chunk_and_longer_audio_is_refused(c: config.Usm) -> None:
    frames, lengths = features(np.zeros(GEMMA_SAMPLES + HOP, np.float32), c)
    assert lengths.tolist() == [count_frames(GEMMA_SAMPLES, c)] == [2997 if c is GEMMA3N else 2999]
    assert frames.shape == (1, c.chunk, 128)
    with pytest.raises(ValueError, match=r"the audio lasts 30\.0 s; this model reads at most 30 s at a time"):
        features(np.zeros(GEMMA_SAMPLES + HOP + 1, np.float32), c)


@pytest.mark.parametrize(
    ("c", "samples", "message"),
    [(GEMMA4, 160, r"10\.0 ms are not one"), (GEMMA3N, 512, r"32\.0 ms are not"), (UNIFIED, 0, r"0\.0 ms are not")],
)
def test_audio_without_a_token_is_refused(c: config.Audio, samples: int, message: str) -> None:
    assert count_tokens(samples, c) == 0
    with pytest.raises(ValueError, match="the audio is too short: " + message):
        features(np.zeros(samples, np.float32), c)


@pytest.mark.parametrize(
    "c", [config.Conformer(8, 1, 1, 8), USM, GEMMA4, UNIFIED], ids=["small", "usm", "4", "unified"]
)
def test_tokens_are_counted_as_the_chunks_have_them(c: config.Audio) -> None:
    for samples in (1, 161, 5000, 33_000):
        if count_tokens(samples, c):
            _, lengths = features(np.zeros(samples, np.float32), c)
            assert sum(c.tokens(int(n)) for n in lengths) == count_tokens(samples, c)
