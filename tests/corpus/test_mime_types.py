"""MIME types of media: by the suffix of the file, else by the content; every suffix in the table decodes."""

from __future__ import annotations

import io
import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alhena.content import MIME_OF_SUFFIX, Audio, Document, Image, Video
from alhena.corpus.curate import curate
from alhena.corpus.readers import Dropped, read
from alhena.documents import read_documents
from alhena.media import sniff
from tests.conftest import random_audio, random_image

# FFmpeg's muxer and encoder for each suffix of audio and video; PyAV has no encoder for Theora (.ogv).
FORMATS = {
    ".wav": ("wav", "pcm_s16le"), ".flac": ("flac", "flac"), ".ogg": ("ogg", "libopus"), ".oga": ("ogg", "libopus"),
    ".opus": ("ogg", "libopus"), ".mp3": ("mp3", "libmp3lame"), ".aac": ("adts", "aac"), ".m4a": ("ipod", "aac"),
    ".m4b": ("ipod", "aac"), ".weba": ("webm", "libopus"), ".mka": ("matroska", "libopus"), ".aif": ("aiff", "pcm_s16be"),
    ".aiff": ("aiff", "pcm_s16be"), ".aifc": ("aiff", "pcm_s16be"), ".mp4": ("mp4", "libx264"), ".m4v": ("mp4", "libx264"),
    ".webm": ("webm", "libvpx"), ".mov": ("mov", "mjpeg"), ".mkv": ("matroska", "libx264"), ".avi": ("avi", "mpeg4"),
    ".3gp": ("3gp", "mpeg4"), ".3g2": ("3g2", "mpeg4"), ".ts": ("mpegts", "mpeg2video"), ".mts": ("mpegts", "libx264"),
    ".m2ts": ("mpegts", "libx264"),
}  # fmt: skip


def encoded(suffix: str) -> bytes:
    """A second of audio, or ten frames of video."""
    out, (muxer, codec) = io.BytesIO(), FORMATS[suffix]
    rng = np.random.default_rng(0)
    with av.open(out, "w", format=muxer) as container:
        if MIME_OF_SUFFIX[suffix].startswith("audio/"):
            rate = 48_000
            stream = container.add_stream(codec, rate=rate)
            samples = (3000 * rng.normal(size=(1, rate))).astype(np.int16)
            audio = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            audio.sample_rate = rate
            resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.frame_size or 0)
            frames = [*resampler.resample(audio), *resampler.resample(None)]
        else:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            images = rng.integers(0, 256, (10, 32, 32, 3), np.uint8)
            frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in images]
        for frame in [*frames, None]:
            container.mux(stream.encode(frame))
    return out.getvalue()


def test_the_formats_cover_every_suffix_of_audio_and_video():
    assert FORMATS.keys() == {suffix for suffix, mime in MIME_OF_SUFFIX.items() if not mime.startswith("image/")} - {
        ".ogv"
    }


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_of_every_suffix_decodes_and_its_type_follows_from_the_content_too(tmp_path, suffix):
    raw, mime = tmp_path / "raw", MIME_OF_SUFFIX[suffix]
    raw.mkdir()
    kind, data = mime.split("/")[0], encoded(suffix)
    for name in (f"a{suffix}", "a", "a.bin"):
        (raw / name).write_bytes(data)
    lines = [{kind: name, "question": f"{name}?", "answer": "x"} for name in (f"a{suffix}", "a", "a.bin")]
    (raw / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = curate(raw, tmp_path / "out")["raw"]
    assert report["kept"] == {"mine": 3}, report
    media = [next(document.parts) for document in read_documents(tmp_path / "out")]
    assert [medium.mime for medium in media] == [mime, sniff(data), sniff(data)]
    assert str(sniff(data)).startswith(f"{kind}/")


def test_bytes_without_a_name_have_the_type_of_their_content(tmp_path):
    gif, flac, avi = b"GIF89a" + bytes(20), random_audio(1, 0.1).data, encoded(".avi")
    rows = [
        {"image": {"bytes": gif, "path": None}, "audio": None, "video": None},
        {"image": {"bytes": random_image(1).data, "path": "a.unknown"}, "audio": None, "video": None},
        {"image": None, "audio": {"bytes": flac, "path": None}, "video": None},
        {"image": None, "audio": None, "video": avi},
        {"image": {"bytes": b"no image", "path": None}, "audio": None, "video": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    documents = list(read(tmp_path / "x.parquet"))
    assert all(isinstance(document, Document) for document in documents)
    media = [next(document.parts) for document in documents if isinstance(document, Document)]
    kinds = [(type(medium), medium.mime) for medium in media if isinstance(medium, Image | Audio | Video)]
    assert kinds == [
        (Image, "image/gif"),
        (Image, "image/png"),
        (Audio, "audio/flac"),
        (Video, "video/x-msvideo"),
        (Image, "image/png"),
    ]


@pytest.mark.parametrize("name", ["a.flac", "a", "a.txt"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(random_audio(1, 0.1).data)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"image": name, "answer": "x"}))
    (dropped,) = read(tmp_path)
    assert isinstance(dropped, Dropped) and dropped.reason == "unknown file type" and ".png" in dropped.detail
