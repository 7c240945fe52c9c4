"""MIME types by content."""

from __future__ import annotations

import pytest

from alhena.media import encode_video, sniff
from tests.media.inputs import gray_frames, seeds, sound, tone

TYPES = {
    "image/png16": "image/png", "image/palette": "image/png", "image/rgba": "image/png",
    "image/progressive": "image/jpeg", "image/cmyk": "image/jpeg",
    "audio/float": "audio/wav", "audio/long": "audio/flac", "audio/vorbis": "audio/ogg", "audio/opus": "audio/ogg",
    "audio/mp3": "audio/mpeg", "audio/m4a": "audio/mp4", "audio/adts": "audio/aac",
    "audio/alac": "audio/mp4", "audio/7.1": "audio/mp4", "audio/adpcm": "audio/wav", "audio/ulaw": "audio/wav",
    "video/fragmented": "video/mp4", "video/hevc": "video/mp4", "video/ffv1": "video/x-matroska", "video/rotated": "video/mp4", "video/mov": "video/quicktime", "video/vp9": "video/webm",
    "video/mkv": "video/x-matroska", "video/avi": "video/x-msvideo", "video/ts": "video/mp2t",
}  # fmt: skip


@pytest.mark.parametrize("name", seeds())
def test_every_kind_is_recognized(name: str) -> None:
    assert sniff(seeds()[name]) == TYPES.get(name, name)


def test_zeros_or_a_tag_before_mp3_frames_are_skipped() -> None:
    mp3 = sound(tone(0.2), form="MP3")
    assert sniff(bytes(5000) + mp3) == sniff(b"ID3\4" + bytes(20) + mp3) == "audio/mpeg"


def test_text_lists_and_noise_have_no_type() -> None:
    for data in (
        b"", b"\0" * 100, b"ffconcat version 1.0\nfile 'x.mp4'", b"v=0\no=- 0 0 IN IP4 127.0.0.1", b"#EXTM3U\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"PK\3\4", b"\xff\xfe<\0h\0", b"GGGG" * 10,
        b"\0\0\0\x1cftypavif\0\0\0\0", b"RIFF....junk", b"\xff" * 300,
    ):  # fmt: skip
        assert sniff(data) is None, data[:20]


def test_a_clip_without_sound_is_video() -> None:
    assert sniff(encode_video(gray_frames(2), 4)) == "video/mp4"
