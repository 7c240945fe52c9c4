"""Speech from espeak-ng, called through ctypes: numbers and short commands in several languages, voices, speeds and pitches.

    text ─ espeak-ng 22,050 Hz ─ 16 kHz ─ trim ─ gain, noise, telephone band ─► FLAC
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import soxr

from alhena.content import Audio, Document
from alhena.corpus.starter import scenes
from alhena.corpus.starter.splits import COLOURS, HELD_OUT_PAIRS, SHAPES, Split, ask, belongs, quiz, reply
from alhena.media import SAMPLE_RATE, encode_audio

LANGUAGES = ("en", "de", "es", "fr")
SHARES = (0.64, 0.12, 0.12, 0.12)
ACCENTS = {"en": ("en-us", "en", "en-029"), "de": ("de",), "es": ("es",), "fr": ("fr",)}
VARIANTS = ("", "+f2", "+m3", "+f4", "+m1", "+m7", "+f5")
_SYNCHRONOUS, _UTF8, _RATE, _PITCH = 2, 1, 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Espeak:
    """The library keeps one voice and one callback a process."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise OSError("espeak-ng cannot start: its voices were not found beside the library (reinstall espeakng-loader)")
        self.pieces: list[np.ndarray] = []
        self.callback = _CALLBACK(self._receive)  # kept alive: the library calls it later
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples: ctypes._Pointer, count: int, _events: int) -> int:
        if samples and count > 0:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(_RATE, rate, 0)
        self.library.espeak_SetParameter(_PITCH, pitch, 0)
        self.pieces.clear()
        data = text.encode()
        self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        return np.concatenate(self.pieces).astype(np.float32) / 32768


@cache
def _espeak() -> _Espeak:
    return _Espeak()


def trim(samples: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Cuts leading and trailing silence, leaving 30 ms."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    margin = SAMPLE_RATE * 30 // 1000
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin] if len(loud) else samples


def speak(rng: np.random.Generator, text: str, language: str) -> Audio:
    """One recording: a voice, speed, pitch, level, hiss and sometimes a telephone's band, all drawn from ``rng``."""
    accents = ACCENTS[language]
    voice = accents[rng.integers(len(accents))] + VARIANTS[rng.integers(len(VARIANTS))]
    raw = _espeak().say(text, voice, int(rng.integers(120, 210)), int(rng.integers(20, 80)))
    samples = trim(soxr.resample(raw, _espeak().rate, SAMPLE_RATE).astype(np.float32))
    if rng.random() < 0.3:
        samples = soxr.resample(soxr.resample(samples, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE).astype(np.float32)
    samples = samples / max(np.abs(samples).max(), 1e-3) * rng.uniform(0.2, 0.9)
    hiss = rng.normal(0, 10 ** rng.uniform(-4, -2.2), len(samples)).astype(np.float32)
    return Audio(encode_audio(samples + hiss), "audio/flac")


@cache
def number_words(language: str) -> tuple[str, ...]:
    from num2words import num2words

    return tuple(num2words(n, lang=language).replace("-", " ") for n in range(100))


def commands() -> list[str]:
    pairs = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS]
    return [f"draw a {c} {s}" for c, s in pairs] + [f"what colour is the {s}" for s in SHAPES] + [f"draw the digit {w}" for w in number_words("en")[:10]]


def make_speech(rng: np.random.Generator, split: Split, i: int) -> Document:
    """A recording to transcribe: a number in words (its tens and units are heard in training, the whole is not), or a command."""
    language = str(rng.choice(LANGUAGES, p=SHARES))
    if split != "test" and language == "en" and rng.random() < 0.15:
        known = commands()
        text = known[rng.integers(len(known))]
    elif split != "test" and rng.random() < 0.3:
        text = number_words(language)[rng.integers(0, 13)]
    else:
        while True:
            n = int(rng.integers(0, 100))
            if n > 20 and n % 10 and belongs(("spoken", n, language), split):
                break
            if split != "test" and (n <= 20 or n % 10 == 0):
                break
        text = number_words(language)[n]
    return quiz("speech", (speak(rng, text, language),), [("speech", "Transcribe.", text)], {"text": text}, language)


def make_spoken(rng: np.random.Generator, split: Split, i: int) -> Document:
    """A picture and a recording of a question about it, nothing written."""
    while True:
        width, height = scenes.SIZES[rng.integers(2)]
        things = scenes.arrange(rng, int(rng.integers(1, 4)), width, height, split, distinct=True)
        asked = [q for q in scenes.questions(rng, things) if q[0] in scenes.TASKS[:2]]
        asked = asked[:2] if split == "test" else asked
        _, question, answer = asked[rng.integers(len(asked))]
        picture = scenes.Image(scenes.encode_png(scenes.paint(things, width, height)))
        sound = speak(rng, question.lower().rstrip("?"), "en")
        facts = {"task": "spoken", "question": question}
        return Document((ask("", picture, sound), reply(answer)), "", "spoken", "en", facts)
