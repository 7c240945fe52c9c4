"""Spoken words from espeak-ng, called through ctypes: text and a voice in, float32 samples at 16 kHz out.

    "forty seven", Voice("en-us+f2", speed 160, pitch 55)  ──►  16 kHz, trimmed  ──►  as a microphone hears it

The library (``espeakng-loader`` carries it with its voices) keeps the phase of its oscillators, and the state of the
random generator behind its breath, between utterances: a recording depends by a hair on what was said before it.
:func:`restart` unloads it; every job begins with that, so its recordings are the same in any process.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
from dataclasses import dataclass

import numpy as np
import soxr

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
_SYNCHRONOUS, _NEVER_EXIT, _UTF8 = 2, 0x8000, 1
_SPEED, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_unload = getattr(_ctypes, "FreeLibrary" if os.name == "nt" else "dlclose")  # each system has one

_heard: list[np.ndarray] = []
_library: ctypes.CDLL | None = None


@dataclass(frozen=True)
class Voice:
    name: str
    speed: int  # words per minute
    pitch: int  # 0..100
    range: int  # 0..100, liveliness of the melody


def random_voice(rng: np.random.Generator, language: str) -> Voice:
    name = pick(rng, LANGUAGES[language]) + pick(rng, VARIANTS)
    return Voice(name, int(rng.integers(130, 211)), int(rng.integers(25, 76)), int(rng.integers(30, 71)))


@_CALLBACK
def _hear(samples, count, events) -> int:  # type: ignore[no-untyped-def]
    if samples and count:
        _heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        if library.espeak_Initialize(_SYNCHRONOUS, 500, data.encode(), _NEVER_EXIT) != ESPEAK_RATE:
            raise ValueError(f"espeak-ng does not start with its data in {data}; reinstall espeakng-loader")
        library.espeak_SetSynthCallback(_hear)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        _library = library
    return _library


def restart() -> None:
    """Unloads the library, so that the next word is spoken as if it were the first."""
    global _library
    if _library is not None:
        _library.espeak_Terminate()
        _unload(_library._handle)
        _library = None


def speak(text: str, voice: Voice) -> np.ndarray:
    """Clean speech, float32 [samples] at 16 kHz, silence at both ends cut to a few hundredths of a second."""
    library = _load()
    if library.espeak_SetVoiceByName(voice.name.encode()):
        raise ValueError(f"espeak-ng has no voice {voice.name!r}")
    for parameter, value in ((_SPEED, voice.speed), (_PITCH, voice.pitch), (_RANGE, voice.range)):
        library.espeak_SetParameter(parameter, value, 0)
    _heard.clear()
    data = text.encode()
    if library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None) or not _heard:
        raise ValueError(f"espeak-ng cannot say {text!r} with voice {voice.name!r}")
    samples = np.concatenate(_heard).astype(np.float32) / 32768
    _heard.clear()
    return _trim(resample(samples, ESPEAK_RATE))


def _trim(samples: np.ndarray, margin: int = SAMPLE_RATE // 33) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin]


def record(rng: np.random.Generator, samples: np.ndarray) -> np.ndarray:
    """The same speech through a microphone: some silence, another gain, a little noise, now and then telephone band."""
    before, after = rng.integers(0, SAMPLE_RATE // 8, 2)
    samples = np.pad(samples, (int(before), int(after)))
    if rng.random() < 0.25:
        narrow = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE // 2)
        samples = soxr.resample(narrow, SAMPLE_RATE // 2, SAMPLE_RATE).astype(np.float32)
    samples = samples * (rng.uniform(0.2, 0.95) / np.abs(samples).max())
    noise = 10 ** rng.uniform(-4, -2) * rng.standard_normal(len(samples))
    return (samples + noise).astype(np.float32).clip(-1, 1)


def recording(rng: np.random.Generator, text: str, language: str = "en") -> Audio:
    """Someone says ``text``: a random voice and microphone, as FLAC."""
    samples = record(rng, speak(text, random_voice(rng, language)))
    return Audio(encode_audio(samples), "audio/flac")
