"""Filters: quality of prose in every script; overlap with evaluation items in other scripts and media formats."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from alhena.content import Audio, Image, Video
from alhena.corpus.curate import curate
from alhena.corpus.filters import Deduplicator, inspect, quality
from alhena.corpus.prose import is_spaceless, units
from alhena.documents import write_documents
from alhena.media import Clip, decode_audio, decode_image, encode_video
from tests.conftest import random_audio, random_image
from tests.corpus.test_curate import chat, overlap_with, prose

SPACELESS = {
    "th": "ประเทศไทยตั้งอยู่ในภูมิภาคเอเชียตะวันออกเฉียงใต้และมีกรุงเทพมหานครเป็นเมืองหลวง",
    "km": "ប្រទេសកម្ពុជាស្ថិតនៅក្នុងតំបន់អាស៊ីអាគ្នេយ៍ហើយមានរាជធានីភ្នំពេញជាទីក្រុងធំបំផុត",
    "lo": "ປະເທດລາວຕັ້ງຢູ່ໃນອາຊີຕາເວັນອອກສຽງໃຕ້ແລະມີນະຄອນຫຼວງວຽງຈັນເປັນເມືອງຫຼວງ",
    "my": "မြန်မာနိုင်ငံသည်အရှေ့တောင်အာရှတွင်တည်ရှိပြီးနေပြည်တော်သည်မြို့တော်ဖြစ်သည်",
    "bo": "བོད་ནི་མཐོ་སྒང་གི་ཡུལ་ཞིག་ཡིན་ལ་ལྷ་ས་ནི་དེའི་རྒྱལ་ས་ཡིན།",
    "zh": "今天天气很好，我们去公园散步，然后回家吃饭。",
    "ja": "今日は天気がいいので公園へ散歩に行きました。",
}


@pytest.mark.parametrize("language", SPACELESS)
def test_quality_of_scripts_without_spaces_is_measured_in_characters(language):
    text = SPACELESS[language]
    assert is_spaceless(text)
    assert quality(prose(text, language), 5) is None
    assert quality(prose(f"{text}\n{text[::-1]}", language), 5) is None
    short, repeated, symbols = (quality(prose(t, language), 5) for t in (text[:4], text[:5] * 40, text + "?!" * 200))
    assert short and short[0] == "too short"
    assert repeated and repeated[0] == "one phrase repeated"
    assert symbols
    paragraphs = "\n".join(f"{text}{i}{text[i:]}" for i in range(12)) if len(text) > 30 else text
    assert quality(prose(paragraphs, language), 5) is None or language == "bo"


def test_quality_of_scripts_with_spaces_is_measured_in_words():
    assert not is_spaceless("A sentence of plain prose with one word 天气 in it.")
    hindi = "यह हिन्दी का एक साधारण वाक्य है जिसमें कई शब्द हैं"
    assert quality(prose(hindi), 5) is None
    assert units("हिन्दी का वाक्य") == ["हिन्दी", "का", "वाक्य"]
    assert quality(prose("a" * 500 + " and some more words here"), 5)


@pytest.mark.parametrize("language", ["th", "my", "zh", "ja"])
def test_a_common_ngram_of_characters_is_an_overlap(language):
    text = SPACELESS[language]
    overlaps = overlap_with(prose(text))
    assert overlaps(prose("ก" * 3 + text[2:] + "ข"))
    assert not overlaps(prose(SPACELESS["lo"]))


def test_questions_that_differ_in_their_vowel_signs_are_not_the_same():
    overlaps = overlap_with(chat("अनुवाद: की", "x"))
    assert overlaps(chat("अनुवाद: की", "x"))
    assert not overlaps(chat("अनुवाद: का", "x"))


def reencoded(medium: Image | Audio) -> Image | Audio:
    """The same pixels or samples in another lossless format."""
    out = io.BytesIO()
    if isinstance(medium, Image):
        Pillow.fromarray(decode_image(medium.data)).save(out, "BMP")
        return Image(out.getvalue(), "image/bmp")
    soundfile.write(out, decode_audio(medium.data), 16_000, format="WAV", subtype="PCM_16")
    return Audio(out.getvalue(), "audio/wav")


@pytest.mark.parametrize("medium", [random_image(1), random_audio(1, 0.5)])
def test_media_of_an_evaluation_set_overlap_in_another_format(medium):
    other = reencoded(medium)
    assert other.data != medium.data
    overlaps = overlap_with(chat("What is it?", "noise", medium))
    assert overlaps(chat("What is it?", "noise", other))
    assert overlaps(chat("And what is this?", "Noise.", other))
    assert not overlaps(chat("What is it?", "a dog", other))
    assert not overlaps(chat("What is it?", "noise", random_image(2)))
    deduplicator = Deduplicator()
    assert deduplicator(inspect(chat("a", "b", medium))) is None
    assert deduplicator(inspect(chat("a", "b", other)))


def test_clips_that_differ_in_one_frame_have_two_hashes():
    frames = [np.full((16, 16, 3), 40 * i, np.uint8) for i in range(6)]
    other = [*frames[:3], frames[0], *frames[4:]]
    hashes = {inspect(chat("a", "b", Video(encode_video(f, 4)))).media for f in (frames, frames, other)}
    assert len(hashes) == 2


def test_an_unexpected_exception_of_a_decoder_drops_the_record(monkeypatch):
    def broken(data: bytes) -> np.ndarray:
        raise AttributeError("'NoneType' object has no attribute 'width'")

    monkeypatch.setattr("alhena.corpus.filters.decode_image", broken)
    reason = inspect(chat("a", "b", random_image(1))).reason
    assert reason and reason[0] == "image does not decode" and "AttributeError" in reason[1]


def test_undecodable_audio_of_a_clip_is_counted(tmp_path, monkeypatch):
    clip = Clip(np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, np.float32), None, ("its audio was left out",))
    monkeypatch.setattr("alhena.corpus.filters.decode_video", lambda data, max_frames: clip)
    write_documents(tmp_path / "in.parquet", [chat("a", "b", Video(b"x"))])
    (report,) = curate(tmp_path / "in.parquet", tmp_path / "out").values()
    assert report["used_in_part"] == {"its audio was left out": 1}


def test_very_long_texts_are_dropped(monkeypatch):
    monkeypatch.setattr("alhena.corpus.filters.MAX_CHARACTERS", 1000)
    assert inspect(prose("word " * 100)).reason is None
    reason = inspect(prose("word " * 300)).reason
    assert reason and reason[0] == "text too long"
