"""Audio to log-mel frames in chunks, 10 ms a frame.

    float32 [samples] at 16 kHz ─ 25 ms Hann windows ─ power spectrum ─ mel bins ─ log ─► [frames, M] ─► chunks [C, T, M]

A ``Usm`` encoder reads the features that its open descendant, Gemma 3n, was trained on (a test compares the numbers): 32 ms windows
with HTK's pre-emphasis, magnitudes, natural logarithm. The small conformer reads shorter windows and power, scaled by a fixed affine
map, (log10 + 2) / 2, so that values lie roughly in -1.5..1.5 without a normalization layer. Both are floored at 1e-5.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from alhena.media import SAMPLE_RATE
from alhena.model import config
from alhena.shapes import Float, Int

HOP = SAMPLE_RATE // 100
WINDOW, FFT, MIN_HERTZ = SAMPLE_RATE // 40, 512, 60
USM_WINDOW, USM_FFT, USM_MIN_HERTZ = 512, 1024, 125
PRE_EMPHASIS = 0.97
MAX_HERTZ = 7600
FLOOR = 1e-5
# Frames that are transformed at once (a minute): spectra take fifty times the memory of the samples.
FRAMES_PER_BLOCK = 6000


@cache
def mel_filters(mels: int, fft: int, min_hertz: int, fill: bool) -> Float[np.ndarray, "bins M"]:
    """Triangular filters [fft/2 + 1, mels], evenly spaced on the HTK mel scale between ``min_hertz`` and 7,600 Hz.

    Low filters are narrower than the bins of a short spectrum: with ``fill`` each empty one gets its nearest bin.
    """
    low, high = (2595 * float(np.log10(1 + hertz / 700)) for hertz in (min_hertz, MAX_HERTZ))
    edges = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)
    hertz = np.linspace(0, SAMPLE_RATE / 2, fft // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    empty = (filters.sum(0) == 0) & fill
    filters[np.abs(hertz - edges[1:-1]).argmin(0)[empty], np.flatnonzero(empty)] = 1
    return filters.astype(np.float32)


def _windows(samples: Float[np.ndarray, " samples"], size: int, offset: int) -> Float[np.ndarray, "frames size"]:
    """[frames, size], one for each begun 10 ms, each starting ``offset`` samples early; zeros around the audio."""
    frames = max(1, -(-len(samples) // HOP))
    padded = np.zeros(frames * HOP + size, np.float32)
    padded[offset : offset + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::HOP][:frames]


def log_mel(samples: Float[np.ndarray, " samples"], c: config.Conformer) -> Float[np.ndarray, "frames M"]:
    """float32 [frames, M] in the form that the encoder of this configuration reads, one frame for each begun 10 ms."""
    usm = isinstance(c, config.Usm)
    windows = _windows(samples, USM_WINDOW + 1, 0) if usm else _windows(samples, WINDOW, WINDOW // 2)
    features = _usm_features if usm else _features
    blocks = range(0, len(windows), FRAMES_PER_BLOCK)
    return np.concatenate([features(windows[i : i + FRAMES_PER_BLOCK], c.mels) for i in blocks])


def _usm_features(windows: Float[np.ndarray, "frames 513"], mels: int) -> Float[np.ndarray, "frames M"]:
    """Log-mel of magnitudes."""
    first, rest = windows[:, :1] * (1 - PRE_EMPHASIS), windows[:, 1:-1] - PRE_EMPHASIS * windows[:, :-2]
    # A periodic Hann window.
    hann = np.hanning(USM_WINDOW + 1)[:-1].astype(np.float32)
    magnitude = np.abs(np.fft.rfft(np.concatenate([first, rest], 1) * hann, USM_FFT))
    mel = magnitude @ mel_filters(mels, USM_FFT, USM_MIN_HERTZ, fill=False)
    return np.log(np.maximum(mel, FLOOR)).astype(np.float32)


def _features(windows: Float[np.ndarray, "frames 400"], mels: int) -> Float[np.ndarray, "frames M"]:
    """Log-mel of power, scaled."""
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW).astype(np.float32), FFT).astype(np.complex64)) ** 2
    return (np.log10(np.maximum(power @ mel_filters(mels, FFT, MIN_HERTZ, fill=True), FLOOR)) + 2) / 2


def chunk(
    mel: Float[np.ndarray, "frames M"], c: config.Conformer
) -> tuple[Float[np.ndarray, "C T M"], Int[np.ndarray, " C"]]:
    """Frames to float16 [C, T, M], zero padded, and the valid frames of each chunk int32 [C]."""
    chunks = -(-len(mel) // c.chunk)
    out = np.zeros((chunks * c.chunk, c.mels), np.float16)
    out[: len(mel)] = mel
    lengths = np.minimum(len(mel) - np.arange(chunks) * c.chunk, c.chunk)
    return out.reshape(chunks, c.chunk, c.mels), lengths.astype(np.int32)
