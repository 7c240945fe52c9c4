"""Sound to log-mel frames in chunks, 10 ms a frame.

    float32 [samples] at 16 kHz ─ 25 ms Hann windows ─ power spectrum ─ mel bins ─ log ─► [frames, mels] ─► chunks [c, T, mels]

The logarithm is floored at 1e-5 and scaled by a fixed affine map, (log10 + 2) / 2, so values lie roughly in -1.5..1.5.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from alhena.media import SAMPLE_RATE
from alhena.model import config

HOP = SAMPLE_RATE // 100
WINDOW = SAMPLE_RATE // 40
FFT = 512
FLOOR = 1e-5


@cache
def mel_filters(mels: int) -> np.ndarray:
    """Triangles [FFT/2 + 1, mels], evenly spaced on the HTK mel scale between 60 and 7,600 Hz."""
    low, high = (2595 * float(np.log10(1 + hertz / 700)) for hertz in (60, 7600))
    edges = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)
    hertz = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    up = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(up, down))
    # Low triangles are narrower than the spectrum's bins: give each empty one its nearest bin.
    empty = triangles.sum(0) == 0
    triangles[np.abs(hertz - edges[1:-1]).argmin(0)[empty], np.flatnonzero(empty)] = 1
    return triangles.astype(np.float32)


def log_mel(samples: np.ndarray, mels: int = 128) -> np.ndarray:
    """float32 [frames, mels], one frame for each begun 10 ms."""
    frames = max(1, -(-len(samples) // HOP))
    padded = np.zeros(frames * HOP + WINDOW, np.float32)
    padded[WINDOW // 2 : WINDOW // 2 + len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:frames] * np.hanning(WINDOW).astype(
        np.float32
    )
    power = np.abs(np.fft.rfft(windows, FFT).astype(np.complex64)) ** 2
    return (np.log10(np.maximum(power @ mel_filters(mels), FLOOR)) + 2) / 2


def chunk(mel: np.ndarray, c: config.Audio) -> tuple[np.ndarray, np.ndarray]:
    """Frames to float16 [chunks, T, mels], zero padded, and the valid frames of each chunk int32 [chunks]."""
    chunks = -(-len(mel) // c.chunk)
    out = np.zeros((chunks * c.chunk, c.mels), np.float16)
    out[: len(mel)] = mel
    lengths = np.minimum(len(mel) - np.arange(chunks) * c.chunk, c.chunk)
    return out.reshape(chunks, c.chunk, c.mels), lengths.astype(np.int32)
