"""Needles in long media: where decoding finds them, in clips that a model reads at once, held out from training."""

from __future__ import annotations

import numpy as np
import pytest

from alhena.content import Audio, Document, Video
from alhena.corpus.starter.audio.speech import number_words
from alhena.corpus.starter.audio.synthesis import Voice, synthesize
from alhena.corpus.starter.needles import Haystack, make_all
from alhena.corpus.starter.splits import HELD_OUT_NUMBERS, is_held_out_string
from alhena.media import SAMPLE_RATE, decode_audio, decode_video

# In a recording of 75 s a clip ends at a third of it.
DEPTHS = (0.0, 1 / 3, 0.5, 1.0)
# Windows in which loudness is measured.
WINDOW = SAMPLE_RATE // 50


def media(document: Document, kind: type) -> list[bytes]:
    return [part.data for part in document.parts if isinstance(part, kind)]


def loud_seconds(samples: np.ndarray) -> np.ndarray:
    """Beginnings of windows that are far louder than most, in seconds."""
    windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    loudness = windows.std(1)
    return np.flatnonzero(loudness > 4 * np.median(loudness)) * WINDOW / SAMPLE_RATE


@pytest.mark.parametrize("length", [3, 30, 75])
def test_a_number_is_spoken_where_it_is_said_to_be(length):
    """Of the clips of a recording, put together again."""
    for document in make_all([Haystack("audio", length, depth, 30) for depth in DEPTHS], 0):
        clips = [decode_audio(data) for data in media(document, Audio)]
        assert sum(map(len, clips)) == length * SAMPLE_RATE
        assert len(clips) == document.facts["clips"] == -(-length // 30) and max(map(len, clips)) <= 30 * SAMPLE_RATE
        loud, at, depth = loud_seconds(np.concatenate(clips)), document.facts["at"], document.facts["depth"]
        assert at - 0.03 <= loud.min() < at + 0.3 and loud.max() < at + 2
        assert abs(at - depth * (length - 1)) < 1
        assert depth < 1 or loud.max() > length - 0.3
        # It is in one clip.
        assert sum(len(loud_seconds(clip)) > 3 for clip in clips) == 1


@pytest.mark.parametrize(("frames", "clip"), [(2, 6), (6, 6), (20, 6), (20, 32), (3, 1)])
def test_one_frame_shows_the_needle_and_every_frame_is_read(frames, clip):
    for document in make_all([Haystack("video", frames, depth, clip) for depth in DEPTHS], 0):
        decoded = np.concatenate([decode_video(data, clip).frames for data in media(document, Video)]).astype(int)
        assert len(decoded) == frames
        at = document.facts["at"]
        assert at == round(document.facts["depth"] * (frames - 1))
        common = decoded[(at + 1) % frames]
        differs = [np.abs(frame - common).mean() > 10 for frame in decoded]
        assert differs == [n == at for n in range(frames)]


def test_numbers_and_strings_are_held_out():
    spoken = make_all([Haystack("audio", 2, 0.5, 30)] * 16, 0)
    answers = [document.contents[-1].parts[0].text for document in spoken]
    assert sorted(answers) == sorted(number_words(number, "en") for number in HELD_OUT_NUMBERS)
    for depth in DEPTHS:
        for document in make_all([Haystack("video", 6, depth, 6)] * 10, 0):
            order = document.contents[-1].parts[0].text.split()
            assert is_held_out_string("".join(order)) and len(set(order)) == 2
            assert len(order) == (2 if depth in (0, 1) else 3) and order[0] != order[1]


def test_items_are_the_same_whatever_was_made_before():
    hay = Haystack("audio", 2, 0.5, 30)
    first = make_all([hay] * 3, 1, first=5)
    synthesize("another text", Voice("en-us", 160, 50, 50))
    assert make_all([hay] * 3, 1, first=5) == first
    assert make_all([hay] * 3, 2, first=5) != first and len({document.id for document in first}) == 3


def test_clips_that_hold_no_number_are_refused():
    with pytest.raises(ValueError, match="too short for a spoken number"):
        make_all([Haystack("audio", 3, 0.5, 0.2)], 0)
