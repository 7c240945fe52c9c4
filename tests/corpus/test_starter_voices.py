"""Speech made on this machine: the same in any process, in every language, and loud enough to be heard."""

from __future__ import annotations

import numpy as np
import pytest

from alhena.corpus.starter.audio import synthesis
from alhena.corpus.starter.audio.speech import number_words
from alhena.corpus.starter.audio.synthesis import LANGUAGES, VARIANTS, Voice


def say(text: str, name: str, speed: int = 170) -> np.ndarray:
    return synthesis.speak(text, Voice(name, speed, 50, 50))


@pytest.mark.parametrize("name", ["en-us", "en-gb-x-rp+f3", "en-us+f5", "de+m3"])  # f3 and f5 breathe at random
def test_a_restart_forgets_what_was_said_before(name: str) -> None:
    synthesis.restart()
    first = say("what shape is green", name)
    for other in ("fr+f5", "en+f3"):
        say("quatorze", other)
    synthesis.restart()
    np.testing.assert_array_equal(first, say("what shape is green", name))


def test_every_voice_speaks() -> None:
    for language, names in LANGUAGES.items():
        for name in set(names):
            for variant in VARIANTS:
                samples = say(number_words(7, language), name + variant)
                assert 0.1 < len(samples) / 16_000 < 1.5, (name, variant)
                assert samples.std() > 0.02, (name, variant)


def test_speed_shortens_and_words_differ() -> None:
    assert len(say("forty seven", "en-us", 130)) > 1.2 * len(say("forty seven", "en-us", 200))
    assert len(say("what colour is the triangle", "en-us")) > 1.5 * len(say("seven", "en-us"))


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(ValueError, match="no voice 'en-moon'"):
        say("one", "en-moon")


def test_the_microphone_keeps_the_speech_and_bounds_the_level() -> None:
    clean = say("forty seven", "en-us")
    for seed in range(20):
        heard = synthesis.record(np.random.default_rng(seed), clean)
        assert 0.19 < np.abs(heard).max() <= 1
        assert len(clean) <= len(heard) <= len(clean) + 16_000 // 4
        assert np.correlate(heard, clean, "valid").max() > 0.5 * np.linalg.norm(heard) * np.linalg.norm(clean)
