"""Audio longer than a model reads: an error that names the limit, or several examples; never truncated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alhena.content import Content, Document, Text
from alhena.tokens.encode import Encoder
from tests.conftest import random_audio


@pytest.fixture
def short(encoder: Encoder) -> Encoder:
    """An encoder that reads four seconds."""
    return replace(encoder, budget=replace(encoder.budget, audio_seconds=4))


def test_a_prompt_with_longer_audio_is_refused(short):
    ask = Text("Transcribe.")
    prompt = short.prompt([Content("user", (random_audio(1, 4.0), ask))])
    assert prompt.frame_lengths.sum() == 400
    with pytest.raises(ValueError, match=r"the audio lasts 4\.5 s; this model reads at most 4 s"):
        short.prompt([Content("user", (random_audio(1, 4.5), ask))])


def test_longer_audio_with_a_transcript_is_an_error(short):
    turns = Content("user", (random_audio(1, 9.0), Text("Transcribe."))), Content("model", (Text("red"),))
    with pytest.raises(ValueError, match=r"lasts 9\.0 s"):
        short.encode(Document(turns, "0", "speech"), 1000)


@pytest.mark.parametrize(("seconds", "max_tokens", "parts"), [(3.9, 256, 1), (9.0, 256, 3), (3.9, 40, 2), (1.0, 20, 1)])
def test_audio_without_a_transcript_is_split_and_nothing_is_lost(short, seconds, max_tokens, parts):
    document = Document((Content("document", (random_audio(1, seconds),)),), "0", "sounds")
    examples = short.encode(document, max_tokens)
    assert len(examples) == parts
    assert sum(e.frame_lengths.sum() for e in examples) == round(100 * seconds)
    assert max(len(e.tokens) for e in examples) <= max_tokens
    ends = [(e.tokens[0] == short.vocabulary.bos, e.tokens[-1] == short.vocabulary.end) for e in examples]
    assert ends == [(True, k == parts - 1) for k in range(parts)]
    for e in examples:
        assert (e.tokens == short.vocabulary.control("<aud>")).sum() == sum(
            short.audio.tokens(int(n)) for n in e.frame_lengths
        )
    complete = replace(short, budget=replace(short.budget, audio_seconds=60)).encode(document, 1000)[0]
    frames = np.concatenate([e.frames for e in examples])
    assert frames.shape == complete.frames.shape


def test_a_model_that_reads_less_than_a_chunk_gets_shorter_examples(encoder):
    shorter = replace(encoder, budget=replace(encoder.budget, audio_seconds=0.5))
    examples = shorter.encode(Document((Content("document", (random_audio(1, 1.2),)),), "0", "sounds"), 256)
    assert [int(e.frame_lengths.sum()) for e in examples] == [50, 50, 20]


def test_where_no_chunk_fits_it_is_an_error(short):
    document = Document((Content("document", (random_audio(1, 3.0),)),), "0", "sounds")
    with pytest.raises(ValueError, match="a chunk of audio takes 21 tokens; at most 20 fit"):
        short.encode(document, 20)
