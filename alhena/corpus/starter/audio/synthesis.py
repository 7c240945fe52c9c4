"""Speech synthesis with espeak-ng, called through ctypes: text and a voice to float32 samples at 16 kHz.

    "forty seven", Voice("en-us+f2", speed 160, pitch 55)  ──►  16 kHz, trimmed  ──►  simulated microphone

The library (from the package ``espeakng-loader``, with its voices) retains the phase of its oscillators and the state of its
random generator between utterances, so the samples of one depend slightly on those before it.
:func:`unload` resets this state. Every job begins with it, so its recordings are the same in any process.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
from dataclasses import dataclass

import numpy as np
import soxr
from jaxtyping import Float

from alhena.content import Audio
from alhena.corpus.starter.items import pick
from alhena.media import SAMPLE_RATE, encode_audio, resample

ESPEAK_RATE = 22_050
LANGUAGES = {
    "en": ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc"),
    "de": ("de",),
    "es": ("es", "es-419"),
    "fr": ("fr", "fr-be"),
}
VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+m8", "+f1", "+f2", "+f3", "+f4", "+f5",
            "+Andy", "+Annie", "+Alex", "+Michael", "+belinda", "+ed", "+linda", "+steph", "+klatt3")  # fmt: skip
# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _NEVER_EXIT, _UTF8 = 2, 0x8000, 1
_SPEED, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_close = getattr(_ctypes, "FreeLibrary" if os.name == "nt" else "dlclose")
# Filled by the callback of the library, which is used by one thread.
_chunks: list[np.ndarray] = []
_library: ctypes.CDLL | None = None


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice with ``speed`` in words per minute, and ``pitch`` and pitch ``range`` in 0..100."""

    name: str
    speed: int
    pitch: int
    range: int


def random_voice(rng: np.random.Generator, language: str) -> Voice:
    """A voice of the language with random variant, speed and pitch."""
    name = pick(rng, LANGUAGES[language]) + pick(rng, VARIANTS)
    return Voice(name, int(rng.integers(130, 211)), int(rng.integers(25, 76)), int(rng.integers(30, 71)))


@_CALLBACK
def _collect(samples, count, events) -> int:  # type: ignore[no-untyped-def]
    """Copies the 16-bit samples of one chunk."""
    if samples and count:
        _chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        if library.espeak_Initialize(_SYNCHRONOUS, 500, data.encode(), _NEVER_EXIT) != ESPEAK_RATE:
            raise ValueError(f"espeak-ng does not start with its data in {data}; reinstall espeakng-loader")
        library.espeak_SetSynthCallback(_collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        _library = library
    return _library


def unload() -> None:
    """Unloads the library, so that the next call of :func:`synthesize` starts from its initial state."""
    global _library
    if _library is not None:
        _library.espeak_Terminate()
        _close(_library._handle)
        _library = None


def synthesize(text: str, voice: Voice) -> Float[np.ndarray, " samples"]:
    """Clean speech at 16 kHz, with silence at both ends trimmed to 0.03 s."""
    library = _load()
    if library.espeak_SetVoiceByName(voice.name.encode()):
        raise ValueError(f"espeak-ng has no voice {voice.name!r}")
    for parameter, value in ((_SPEED, voice.speed), (_PITCH, voice.pitch), (_RANGE, voice.range)):
        library.espeak_SetParameter(parameter, value, 0)
    _chunks.clear()
    data = text.encode()
    if library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None) or not _chunks:
        raise ValueError(f"espeak-ng cannot synthesize {text!r} with voice {voice.name!r}")
    samples = np.concatenate(_chunks).astype(np.float32) / 32768
    _chunks.clear()
    return _trim(resample(samples, ESPEAK_RATE))


def _trim(samples: Float[np.ndarray, " samples"], margin: int = SAMPLE_RATE // 33) -> Float[np.ndarray, " trimmed"]:
    """The samples between the first and the last above 2 % of the peak, with a margin."""
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin]


def simulate_microphone(
    rng: np.random.Generator, samples: Float[np.ndarray, " samples"], seconds: float = 0.0
) -> Float[np.ndarray, " padded"]:
    """Data augmentation: up to 1/8 s of silence before and after, and more up to a length in seconds; then :func:`degrade`."""
    before, after = (int(n) for n in rng.integers(0, SAMPLE_RATE // 8, 2))
    if (missing := round(seconds * SAMPLE_RATE) - before - len(samples) - after) > 0:
        more = int(rng.integers(missing + 1))
        before, after = before + more, after + missing - more
    return degrade(rng, np.pad(samples, (before, after)))


def degrade(rng: np.random.Generator, samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " degraded"]:
    """Gain, noise, and 4 kHz bandwidth (telephone) for one in four; resampling may add a sample."""
    if rng.random() < 0.25:
        narrow = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE // 2)
        samples = soxr.resample(narrow, SAMPLE_RATE // 2, SAMPLE_RATE).astype(np.float32)
    samples = samples * (rng.uniform(0.2, 0.95) / np.abs(samples).max())
    noise = 10 ** rng.uniform(-4, -2) * rng.standard_normal(len(samples))
    return (samples + noise).astype(np.float32).clip(-1, 1)


def random_recording(rng: np.random.Generator, text: str, language: str = "en", seconds: float = 0.0) -> Audio:
    """``text`` in a random voice through a simulated microphone, as FLAC of at least ``seconds``."""
    samples = simulate_microphone(rng, synthesize(text, random_voice(rng, language)), seconds)
    return Audio(encode_audio(samples), "audio/flac")
