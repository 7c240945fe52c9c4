"""Speech synthesis: reproducible in any process, for every voice, with an audible level."""

from __future__ import annotations

import numpy as np
import pytest

from alhena.corpus.starter.audio import synthesis
from alhena.corpus.starter.audio.speech import number_words
from alhena.corpus.starter.audio.synthesis import LANGUAGES, VARIANTS, Voice


def speech(text: str, name: str, speed: int = 170) -> np.ndarray:
    return synthesis.synthesize(text, Voice(name, speed, 50, 50))


@pytest.mark.parametrize("name", ["en-us", "en-gb-x-rp+f3", "en-us+f5", "de+m3"])  # f3 and f5 use random noise
def test_unload_resets_the_state_of_the_library(name: str) -> None:
    synthesis.unload()
    first = speech("what shape is green", name)
    for other in ("fr+f5", "en+f3"):
        speech("quatorze", other)
    synthesis.unload()
    np.testing.assert_array_equal(first, speech("what shape is green", name))


def test_every_voice_gives_speech() -> None:
    for language, names in LANGUAGES.items():
        for name in set(names):
            for variant in VARIANTS:
                samples = speech(number_words(7, language), name + variant)
                assert 0.1 < len(samples) / 16_000 < 1.5, (name, variant)
                assert samples.std() > 0.02, (name, variant)


def test_speed_shortens_and_words_differ() -> None:
    assert len(speech("forty seven", "en-us", 130)) > 1.2 * len(speech("forty seven", "en-us", 200))
    assert len(speech("what colour is the triangle", "en-us")) > 1.5 * len(speech("seven", "en-us"))


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(ValueError, match="no voice 'en-moon'"):
        speech("one", "en-moon")


def test_the_simulated_microphone_retains_the_speech_and_bounds_the_level() -> None:
    clean = speech("forty seven", "en-us")
    for seed in range(20):
        recorded = synthesis.simulate_microphone(np.random.default_rng(seed), clean)
        assert 0.19 < np.abs(recorded).max() <= 1
        assert len(clean) <= len(recorded) <= len(clean) + 16_000 // 4
        assert np.correlate(recorded, clean, "valid").max() > 0.5 * np.linalg.norm(recorded) * np.linalg.norm(clean)


def test_a_recording_of_a_length_has_the_speech_anywhere() -> None:
    clean = speech("seven", "en-us")
    starts = set()
    for seed in range(20):
        recorded = synthesis.simulate_microphone(np.random.default_rng(seed), clean, 2.5)
        assert abs(len(recorded) - 40_000) <= 1
        starts.add(int(np.correlate(recorded, clean, "valid").argmax()) // 4000)
    assert len(starts) > 4
