"""Video: listed containers only, upright frames of square pixels, evenly spaced, times from the first one, the audio track."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from alhena.content import Video
from alhena.media import SAMPLE_RATE, Limits, check, decode_video, encode_video
from tests.media.inputs import clip, gray_frames, motion_jpeg, picture, silent_matroska, tone
from tests.media.test_audio import pitch
from tests.media.test_image import corners

FORMATS = {
    "mp4": ("mp4", "libx264", ("aac", 16000)),
    "mov": ("mov", "mjpeg", ("pcm_s16le", 16000)),
    "webm": ("webm", "libvpx", ("libopus", 48000)),
    "vp9": ("webm", "libvpx-vp9", ("libvorbis", 44100)),
    "mkv": ("matroska", "mpeg4", ("mp3", 16000)),
    "avi": ("avi", "mpeg4", ("mp3", 16000)),
    "ts": ("mpegts", "mpeg2video", ("mp2", 16000)),
}


def all_frames(data: bytes) -> list[np.ndarray]:
    """Every frame of a video, decoded by PyAV alone."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_listed_container_gives_its_frames_and_its_audio(name: str) -> None:
    form, codec, (audio_codec, rate) = FORMATS[name]
    if audio_codec not in av.codecs_available:
        audio_codec = "vorbis"
    track = (audio_codec, tone(2.0, rate), rate) if audio_codec != "vorbis" else None
    got = decode_video(clip(gray_frames(50), form, codec, track, per_second=25), 5)
    assert got.frames.shape == (5, 32, 48, 3)
    np.testing.assert_allclose(got.seconds, np.array([0, 12, 24, 37, 49]) / 25, atol=0.01)
    np.testing.assert_allclose(got.frames.mean((1, 2, 3)), [16, 64, 112, 164, 212], atol=4)
    if track:
        assert got.audio is not None and 1.9 < len(got.audio) / SAMPLE_RATE < 2.2 and abs(pitch(got.audio) - 440) < 3


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("max_frames", [1, 2, 6, 8, 100])
def test_frames_are_evenly_spaced(total: int, max_frames: int) -> None:
    data = encode_video(gray_frames(total), 4)
    expected = all_frames(data)
    indices = np.linspace(0, total - 1, min(total, max_frames)).round().astype(int)
    got = decode_video(data, max_frames)
    np.testing.assert_array_equal(got.frames, np.stack([expected[i] for i in indices]))
    np.testing.assert_allclose(got.seconds, indices / 4, atol=1e-3)


def muxed(packets: list[bytes]) -> bytes:
    """VP8 packets as WebM, four a second."""
    out = io.BytesIO()
    with av.open(out, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 4), number, number
            container.mux(packet)
    return out.getvalue()


def test_hidden_packets_do_not_shift_the_selection() -> None:
    """VP8 with frames that are decoded but not shown has more packets than frames."""
    frames, hidden = gray_frames(9), (0, 2, 3, 7)
    packets = []
    for number, pixels in enumerate(frames):
        with av.open(io.BytesIO(clip([pixels], "webm", "libvpx"))) as source:
            packet = bytearray(bytes(next(source.demux(video=0))))
        # bit 4 of a frame's first byte says that it is shown
        packet[0] &= ~0x10 if number in hidden else 0xFF
        packets.append(bytes(packet))
    data = muxed(packets)
    assert len(all_frames(data)) == len(frames) - len(hidden)
    got = decode_video(data, 3)
    np.testing.assert_allclose(got.frames.mean((1, 2, 3)), [20, 36, 48 - 0], atol=4)


@pytest.mark.parametrize(("degrees", "expected"), [
    (0, "red green blue white"), (90, "green white red blue"), (180, "white blue green red"), (-90, "blue red white green"),
])  # fmt: skip
def test_a_clip_is_turned_upright(degrees: int, expected: str) -> None:
    """Counterclockwise, as FFmpeg counts the angle by which a stored frame is to be turned."""
    got = decode_video(clip([picture()] * 2, rotation=degrees), 2)
    assert corners(got.frames[0]) == expected.split()
    assert got.frames.shape[1:] == ((64, 32, 3) if degrees in (90, -90) else (32, 64, 3))


def test_a_mirrored_video_is_mirrored_again() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(0, hflip=True)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")))
        container.mux(stream.encode())
    assert corners(decode_video(out.getvalue(), 1).frames[0]) == "green red white blue".split()


def test_pixels_become_square() -> None:
    wide = decode_video(clip(gray_frames(3), aspect=Fraction(2, 1)), 3)
    assert wide.frames.shape == (3, 32, 96, 3)
    assert decode_video(clip(gray_frames(3), aspect=Fraction(1, 2)), 3).frames.shape == (3, 32, 24, 3)
    assert decode_video(clip(gray_frames(3), aspect=Fraction(2, 1), rotation=90), 3).frames.shape == (3, 96, 32, 3)
    # An implausible ratio is ignored.
    assert decode_video(clip(gray_frames(3), "matroska", aspect=Fraction(200, 1)), 3).frames.shape[1] == 32


def test_a_large_frame_is_scaled_to_the_limit() -> None:
    got = decode_video(motion_jpeg(640, 480, 3), 3, Limits(output_frame_pixels=320 * 240))
    assert got.frames.shape == (3, 240, 320, 3)


def test_frames_of_another_size_are_scaled_to_the_first_ones() -> None:
    first, second = (clip(gray_frames(4, *size), "webm", "libvpx") for size in ((48, 64), (64, 48)))
    packets = []
    for data in (first, second):
        with av.open(io.BytesIO(data)) as source:
            packets += [bytes(packet) for packet in source.demux(video=0) if packet.size]
    data = muxed(packets)
    assert {frame.shape for frame in all_frames(data)} == {(48, 64, 3), (64, 48, 3)}
    got = decode_video(data, 8)
    assert got.frames.shape == (8, 48, 64, 3)
    np.testing.assert_allclose(got.frames.mean((1, 2, 3)), [16, 20, 24, 28] * 2, atol=4)


def test_times_count_from_the_first_frame() -> None:
    got = decode_video(clip(gray_frames(4), "matroska", "mpeg4", start=7.5), 4)
    np.testing.assert_allclose(got.seconds, [0, 0.25, 0.5, 0.75], atol=0.01)


def test_audio_is_aligned_with_the_first_frame() -> None:
    data = clip(gray_frames(8), "matroska", "mpeg4", ("pcm_s16le", tone(), SAMPLE_RATE), start=0.5)
    got = decode_video(data, 8)
    # The audio track starts at 0, half a second before the first frame.
    assert got.audio is not None and abs(len(got.audio) - SAMPLE_RATE // 2) < 100


def without_codec(data: bytes, name: bytes) -> bytes:
    """The clip with an unknown codec name, and without the descriptor that repeats it."""
    assert data.count(name) >= 1
    return data.replace(name, b"zz16").replace(b"esds", b"free")


def test_an_unknown_video_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="video track cannot be decoded: its codec"):
        decode_video(without_codec(clip(gray_frames(4)), b"avc1"), 4)


def test_frames_are_decoded_and_an_unknown_audio_codec_is_noted() -> None:
    data = without_codec(clip(gray_frames(4), track=("aac", tone(), SAMPLE_RATE)), b"mp4a")
    got = decode_video(data, 4)
    assert got.frames.shape == (4, 32, 48, 3) and got.audio is None
    assert got.notes == ("the video has no audio track that can be decoded: its codec is unknown",)
    assert check(Video(data)) == got.notes


def test_a_codec_that_is_not_listed_is_refused_though_ffmpeg_has_it() -> None:
    with pytest.raises(ValueError, match="its codec, snow, is not supported"):
        decode_video(clip(gray_frames(4), "matroska", "snow"), 4)


@pytest.mark.parametrize("prefix", [b"", b"\n", b"\xef\xbb\xbf"])
def test_lists_of_other_files_and_addresses_are_never_opened(
    prefix: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.mp4").write_bytes(encode_video(gray_frames(2), 4))
    monkeypatch.chdir(tmp_path)
    for text in (
        b"ffconcat version 1.0\nfile 'secret.mp4'\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>secret.mp4</BaseURL></MPD>",
    ):
        with pytest.raises(ValueError, match="of no supported format"):
            decode_video(prefix + text, 2)


def test_a_list_behind_the_first_bytes_of_a_clip_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.mp4").write_bytes(encode_video(gray_frames(2), 4))
    monkeypatch.chdir(tmp_path)
    for head in (b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3webm", b"RIFF....AVI ", b"OggS"):
        with pytest.raises(ValueError, match="the video"):
            decode_video(head + b"\nffconcat version 1.0\nfile 'secret.mp4'\n" * 20, 2)


def test_a_movie_that_refers_to_another_file_does_not_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QuickTime tracks may name the file of their data; that file is not opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(clip([np.full((32, 48, 3), 200, np.uint8)] * 4, "mov", "mjpeg"))
    data = clip(gray_frames(4), "mov", "mjpeg")
    # an entry "url " that says "in this file" (flags 1) becomes one that names another
    assert b"url \0\0\0\1" in data
    got = decode_video(data.replace(b"url \0\0\0\1", b"url \0\0\0\0"), 4)
    np.testing.assert_allclose(got.frames.mean((1, 2, 3)), [16, 20, 24, 28], atol=4)


def test_length_size_and_number_of_pixels_are_bounded() -> None:
    frames = clip(gray_frames(8))
    with pytest.raises(ValueError, match="lasts more than 1 s"):
        decode_video(frames, 4, Limits(video_seconds=1.0))
    with pytest.raises(ValueError, match="48x32; frames of at most 1,000 pixels"):
        decode_video(frames, 4, Limits(video_pixels=1000))
    with pytest.raises(ValueError, match="more than 10,000 pixels in all"):
        decode_video(frames, 4, Limits(video_total_pixels=10_000))
    with pytest.raises(ValueError, match="more than 4 packets"):
        decode_video(frames, 4, Limits(packets=4))
    assert len(decode_video(frames, 100, Limits(video_frames=3)).frames) == 3


def test_cover_art_is_not_a_video_track() -> None:
    with pytest.raises(ValueError, match="no video track"):
        decode_video(silent_matroska(0.001), 2)


def test_bytes_that_are_no_video_or_truncated_are_refused_in_one_sentence() -> None:
    whole = clip(gray_frames(4))
    for data in (b"", b"x" * 100, whole[:100], whole[: len(whole) // 2], b"\x1a\x45\xdf\xa3" + bytes(99)):
        with pytest.raises(ValueError, match=r"^the video[^\n]*$") as refused:
            decode_video(data, 2)
        assert " at 0x" not in str(refused.value)
