"""Sound to log-mel frames in chunks, 10 ms a frame.

    float32 [samples] at 16 kHz ─ 25 ms Hann windows ─ power spectrum ─ mel bins ─ log ─► [frames, mels] ─► chunks [c, T, mels]

Encoders of the kind of USM get what its open descendant, Gemma 3n, was trained on (a test compares the numbers): 32 ms windows with
HTK's pre-emphasis, magnitudes, natural logarithm. The small one gets shorter windows and power, scaled by a fixed affine map,
(log10 + 2) / 2, so that values lie roughly in -1.5..1.5 without a norm. Both are floored at 1e-5.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from alhena.media import SAMPLE_RATE
from alhena.model import config

HOP = SAMPLE_RATE // 100
WINDOW, FFT, LOWEST = SAMPLE_RATE // 40, 512, 60
USM_WINDOW, USM_FFT, USM_LOWEST = 512, 1024, 125
PRE_EMPHASIS = 0.97
HIGHEST = 7600
FLOOR = 1e-5
# Frames that are transformed at once (a minute): spectra take fifty times the memory of the samples.
BLOCK = 6000


@cache
def mel_filters(mels: int, fft: int, lowest: int, fill: bool) -> np.ndarray:
    """Triangles [fft/2 + 1, mels], evenly spaced on the HTK mel scale between ``lowest`` and 7,600 Hz.

    Low triangles are narrower than the bins of a short spectrum: with ``fill`` each empty one gets its nearest bin.
    """
    low, high = (2595 * float(np.log10(1 + hertz / 700)) for hertz in (lowest, HIGHEST))
    edges = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)
    hertz = np.linspace(0, SAMPLE_RATE / 2, fft // 2 + 1)[:, None]
    up = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(up, down))
    empty = (triangles.sum(0) == 0) & fill
    triangles[np.abs(hertz - edges[1:-1]).argmin(0)[empty], np.flatnonzero(empty)] = 1
    return triangles.astype(np.float32)


def _windows(samples: np.ndarray, size: int, before: int) -> np.ndarray:
    """[frames, size], one for each begun 10 ms, the first ``before`` samples early; zeros around the sound."""
    frames = max(1, -(-len(samples) // HOP))
    padded = np.zeros(frames * HOP + size, np.float32)
    padded[before : before + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::HOP][:frames]


def log_mel(samples: np.ndarray, c: config.Conformer) -> np.ndarray:
    """float32 [frames, mels] as the encoder of these settings wants them, one frame for each begun 10 ms."""
    usm = isinstance(c, config.Usm)
    windows = _windows(samples, USM_WINDOW + 1, 0) if usm else _windows(samples, WINDOW, WINDOW // 2)
    spectra = _usm_mel if usm else _mel
    return np.concatenate([spectra(windows[i : i + BLOCK], c.mels) for i in range(0, len(windows), BLOCK)])


def _usm_mel(windows: np.ndarray, mels: int) -> np.ndarray:
    """Windows [frames, 513] to log-mel [frames, mels], magnitudes."""
    first, rest = windows[:, :1] * (1 - PRE_EMPHASIS), windows[:, 1:-1] - PRE_EMPHASIS * windows[:, :-2]
    hann = np.hanning(USM_WINDOW + 1)[:-1].astype(np.float32)  # periodic
    size = np.abs(np.fft.rfft(np.concatenate([first, rest], 1) * hann, USM_FFT))
    mel = size @ mel_filters(mels, USM_FFT, USM_LOWEST, fill=False)
    return np.log(np.maximum(mel, FLOOR)).astype(np.float32)


def _mel(windows: np.ndarray, mels: int) -> np.ndarray:
    """Windows [frames, 400] to log-mel [frames, mels], power, scaled."""
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW).astype(np.float32), FFT).astype(np.complex64)) ** 2
    return (np.log10(np.maximum(power @ mel_filters(mels, FFT, LOWEST, fill=True), FLOOR)) + 2) / 2


def chunk(mel: np.ndarray, c: config.Conformer) -> tuple[np.ndarray, np.ndarray]:
    """Frames to float16 [chunks, T, mels], zero padded, and the valid frames of each chunk int32 [chunks]."""
    chunks = -(-len(mel) // c.chunk)
    out = np.zeros((chunks * c.chunk, c.mels), np.float16)
    out[: len(mel)] = mel
    lengths = np.minimum(len(mel) - np.arange(chunks) * c.chunk, c.chunk)
    return out.reshape(chunks, c.chunk, c.mels), lengths.astype(np.int32)
