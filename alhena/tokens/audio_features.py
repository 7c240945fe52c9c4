"""Audio to the frames that an audio encoder reads, in chunks; one function for every encoder, by the class of its configuration.

    float32 [samples] at 16 kHz ─ windows, 10 ms apart ─ spectrum ─ mel bins ─ log ─► [frames, M] ─► chunks [C, T, M]

                    windows                        spectrum                    log                       frames of n samples
    Conformer       25 ms Hann, centered           power, 60–7600 Hz           scaled, (log10 + 2) / 2   ⌈n / 160⌉
    Usm             32 ms Hann, pre-emphasis       magnitude, 125–7600 Hz      ln max(m, 1e-5)           ⌈n / 160⌉
      gemma3n       the same                       the same                    the same                  windows inside the audio*
      gemma4        20 ms Hann, 10 ms early        magnitude, 0–8000 Hz        ln (m + 1e-3)             ⌈n / 160⌉ - 1
    UnifiedAudio    no spectrum: raw samples, 640 in a frame                                             ⌈n / 640⌉

* padded to a multiple of 128 samples. Tests compare the features of the open encoders with those of their reference. The affine map of
the small conformer gives values of roughly -1.5..1.5 without a normalization layer.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from alhena.media import SAMPLE_RATE
from alhena.model import config
from alhena.shapes import Float, Int

HOP = SAMPLE_RATE // 100
WINDOW, FFT, HERTZ = SAMPLE_RATE // 40, 512, (60, 7600)
USM_WINDOW, USM_FFT, USM_HERTZ = 512, 1024, (125, 7600)
GEMMA4_WINDOW, GEMMA4_FFT, GEMMA4_HERTZ = 320, 512, (0, 8000)
PRE_EMPHASIS = 0.97
FLOOR, GEMMA4_FLOOR = 1e-5, 1e-3
# The reference pads audio to a multiple of it, and reads windows that are inside.
GEMMA3N_MULTIPLE = 128
# The longest audio that the open encoders read.
GEMMA_SAMPLES = 30 * SAMPLE_RATE
# Frames that are transformed at once (a minute): spectra take fifty times the memory of the samples.
FRAMES_PER_BLOCK = 6000


@cache
def mel_filters(mels: int, fft: int, hertz_range: tuple[int, int], fill: bool = False) -> Float[np.ndarray, "bins M"]:
    """Triangular filters [fft/2 + 1, mels], evenly spaced on the HTK mel scale inside ``hertz_range``.

    Low filters are narrower than the bins of a short spectrum: with ``fill`` each empty one gets its nearest bin.
    """
    low, high = (2595 * float(np.log10(1 + hertz / 700)) for hertz in hertz_range)
    edges = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)
    hertz = np.linspace(0, SAMPLE_RATE / 2, fft // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    empty = (filters.sum(0) == 0) & fill
    filters[np.abs(hertz - edges[1:-1]).argmin(0)[empty], np.flatnonzero(empty)] = 1
    return filters.astype(np.float32)


def _variant(c: config.Audio) -> str:
    """What computes the frames: the name of an open encoder, "usm", or the class."""
    return c.variant if isinstance(c, config.Usm) else type(c).__name__


def count_frames(samples: int, c: config.Audio) -> int:
    """Number of frames of an audio of ``samples`` samples."""
    if isinstance(c, config.UnifiedAudio):
        return -(-samples // c.samples_per_token)
    if _variant(c) == "gemma4":
        return max(0, -(-samples // HOP) - 1)
    if _variant(c) == "gemma3n":
        padded = -(-samples // GEMMA3N_MULTIPLE) * GEMMA3N_MULTIPLE
        return max(0, (padded - USM_WINDOW - 1) // HOP + 1)
    return max(1, -(-samples // HOP))


def count_tokens(samples: int, c: config.Audio) -> int:
    """Number of soft tokens of an audio of ``samples`` samples."""
    chunks, rest = divmod(count_frames(samples, c), c.chunk)
    return chunks * c.tokens(c.chunk) + c.tokens(rest)


def features(
    samples: Float[np.ndarray, " samples"], c: config.Audio
) -> tuple[Float[np.ndarray, "C T M"], Int[np.ndarray, " C"]]:
    """Frames of one audio in chunks [C, T, M], zero padded, and the valid frames of each chunk int32 [C].

    Raises ValueError for audio that is too short to have a frame, or longer than an open encoder reads.
    """
    if _variant(c) in ("gemma3n", "gemma4"):
        # Resampling may add a few samples.
        if len(samples) > GEMMA_SAMPLES + HOP:
            seconds, limit = len(samples) / SAMPLE_RATE, GEMMA_SAMPLES // SAMPLE_RATE
            raise ValueError(f"the audio lasts {seconds:.1f} s; this model reads at most {limit} s at a time: split it")
        samples = samples[:GEMMA_SAMPLES]
    if count_frames(len(samples), c) == 0:
        raise ValueError(f"the audio is too short: {1000 * len(samples) / SAMPLE_RATE:.1f} ms are not one frame")
    return chunk(samples_in_frames(samples, c) if isinstance(c, config.UnifiedAudio) else log_mel(samples, c), c)


def samples_in_frames(samples: Float[np.ndarray, " samples"], c: config.UnifiedAudio) -> Float[np.ndarray, "frames M"]:
    """Raw samples [frames, samples per token], the last frame zero padded."""
    frames = np.zeros((count_frames(len(samples), c), c.samples_per_token), np.float32)
    frames.reshape(-1)[: len(samples)] = samples
    return frames


def log_mel(samples: Float[np.ndarray, " samples"], c: config.Conformer) -> Float[np.ndarray, "frames M"]:
    """float32 [frames, M] in the form that the encoder of this configuration reads."""
    size, offset, spectrum = {
        "Conformer": (WINDOW, WINDOW // 2, _features),
        "gemma4": (GEMMA4_WINDOW, GEMMA4_WINDOW // 2, _gemma4_features),
    }.get(_variant(c), (USM_WINDOW + 1, 0, _usm_features))
    windows = _windows(samples, size, offset, count_frames(len(samples), c))
    blocks = range(0, len(windows), FRAMES_PER_BLOCK)
    return np.concatenate([spectrum(windows[i : i + FRAMES_PER_BLOCK], c.mels) for i in blocks])


def _windows(
    samples: Float[np.ndarray, " samples"], size: int, offset: int, frames: int
) -> Float[np.ndarray, "frames size"]:
    """[frames, size], one for each 10 ms, each starting ``offset`` samples early; zeros around the audio."""
    padded = np.zeros(max(frames * HOP, len(samples)) + size, np.float32)
    padded[offset : offset + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::HOP][:frames]


def _periodic_hann(size: int) -> Float[np.ndarray, " size"]:
    return np.hanning(size + 1)[:-1].astype(np.float32)


def _gemma4_features(windows: Float[np.ndarray, "frames 320"], mels: int) -> Float[np.ndarray, "frames M"]:
    """Log-mel of magnitudes, over a constant floor."""
    magnitude = np.abs(np.fft.rfft(windows * _periodic_hann(GEMMA4_WINDOW), GEMMA4_FFT))
    mel = magnitude @ mel_filters(mels, GEMMA4_FFT, GEMMA4_HERTZ)
    return np.log(mel + GEMMA4_FLOOR).astype(np.float32)


def _usm_features(windows: Float[np.ndarray, "frames 513"], mels: int) -> Float[np.ndarray, "frames M"]:
    """Log-mel of magnitudes, with HTK's pre-emphasis."""
    first, rest = windows[:, :1] * (1 - PRE_EMPHASIS), windows[:, 1:-1] - PRE_EMPHASIS * windows[:, :-2]
    magnitude = np.abs(np.fft.rfft(np.concatenate([first, rest], 1) * _periodic_hann(USM_WINDOW), USM_FFT))
    mel = magnitude @ mel_filters(mels, USM_FFT, USM_HERTZ)
    return np.log(np.maximum(mel, FLOOR)).astype(np.float32)


def _features(windows: Float[np.ndarray, "frames 400"], mels: int) -> Float[np.ndarray, "frames M"]:
    """Log-mel of power, scaled."""
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW).astype(np.float32), FFT).astype(np.complex64)) ** 2
    return (np.log10(np.maximum(power @ mel_filters(mels, FFT, HERTZ, fill=True), FLOOR)) + 2) / 2


def chunk(
    frames: Float[np.ndarray, "frames M"], c: config.Audio
) -> tuple[Float[np.ndarray, "C T M"], Int[np.ndarray, " C"]]:
    """Frames to [C, T, M] in the dtype of the encoder, zero padded, and the valid frames of each chunk int32 [C]."""
    chunks = -(-len(frames) // c.chunk)
    out = np.zeros((chunks * c.chunk, c.frame_values), c.frame_dtype)
    out[: len(frames)] = frames
    lengths = np.minimum(len(frames) - np.arange(chunks) * c.chunk, c.chunk)
    return out.reshape(chunks, c.chunk, c.frame_values), lengths.astype(np.int32)
