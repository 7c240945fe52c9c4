"""Media of requests: files of the server, texts, PDFs, resolutions, and excerpts of videos."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from alhena.content import Content, Excerpt, Image, Text, Video
from alhena.media import MediaError, decode_image, decode_video, encode_video
from alhena.media.pdf import render_pages
from alhena.model import config
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.gemini.wire.request import Served, read_request
from alhena.tokens.images import resolution_budget
from tests.conftest import random_image
from tests.serve.pdfs import make_pdf

PNG = random_image(1).data
URI = "https://host.example:8000/v1beta/files/abc-1"


class Files:
    """One file."""

    def __init__(self, content: bytes, mime: str) -> None:
        self._file = content, mime

    def open(self, name: str) -> tuple[bytes, str]:
        if name != "files/abc-1":
            raise WireError(403, f"{name} does not exist", "PERMISSION_DENIED")
        return self._file


def parts(part, files=Files(PNG, "image/png"), **more):
    body = {"contents": [{"parts": [part]}], **more}
    return read_request(body, "tiny", Served(files=files)).prompt.contents[0].parts


def inline(mime, data, **more):
    return {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}, **more}


@pytest.mark.parametrize("uri", [URI, "files/abc-1", "http://127.0.0.1:1/v1/files/abc-1"])
def test_a_file_of_the_server_is_read(uri):
    assert parts({"file_data": {"file_uri": uri, "mimeType": "image/png"}}) == (Image(PNG),)


def test_a_file_that_does_not_exist_is_refused():
    with pytest.raises(WireError) as error:
        parts({"fileData": {"fileUri": URI + "2"}})
    assert error.value.code == 403


@pytest.mark.parametrize("mime", ["text/plain", "text/csv; charset=utf-8", "application/json"])
def test_texts_are_read_as_text(mime):
    assert parts(inline(mime, "é,1".encode())) == (Text("é,1"),)
    assert parts({"fileData": {"fileUri": URI}}, Files(b"a", mime)) == (Text("a"),)


def test_the_pages_of_a_pdf_are_images():
    pages = parts(inline("application/pdf", make_pdf(2)))
    assert [type(page) for page in pages] == [Image, Image]
    for n, page in enumerate(pages):
        pixels = decode_image(page.data)
        height, width = pixels.shape[:2]
        red = np.argwhere((pixels[..., 0] > 200) & (pixels[..., 1] < 60)) / [height, width] * [100, 200]
        assert np.allclose(red.min(0), [60, 10 * n], atol=1) and np.allclose(red.max(0), [90, 10 * n + 30], atol=1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GIF89a", "not a PDF"),
        (b"%PDF-1.4 nothing", "cannot be read"),
        (make_pdf(101), "101 pages; at most 100"),
        (make_pdf(1, 1e9, 1e-3), "no size"),
    ],
)
def test_a_bad_pdf_is_refused(data, reason):
    with pytest.raises(MediaError, match=reason):
        render_pages(data)


def test_a_huge_page_is_rendered_small():
    height, width = decode_image(render_pages(make_pdf(1, 1e7, 1e7))[0].data).shape[:2]
    assert height * width <= 1 << 20


def test_a_resolution_of_a_part_stands_before_that_of_the_request():
    low = {"generationConfig": {"mediaResolution": "MEDIA_RESOLUTION_LOW"}}
    assert parts(inline("image/png", PNG), **low) == (Image(PNG, resolution="low"),)
    part = inline("image/png", PNG, media_resolution={"level": "MEDIA_RESOLUTION_HIGH"})
    assert parts(part, **low) == (Image(PNG, resolution="high"),)
    assert parts({"text": "hi"}, **low) == (Text("hi"),)


def test_video_metadata_is_read():
    metadata = {"fps": 2, "startOffset": "1.5s", "end_offset": {"seconds": 4, "nanos": 5e8}}
    part = {"inlineData": {"mimeType": "video/mp4", "data": ""}, "video_metadata": metadata}
    assert parts(part) == (Video(b"", excerpt=Excerpt(1.5, 4.5, 2)),)


def test_the_budget_of_a_resolution_is_the_encoders():
    pixels = np.zeros((64, 64, 3), np.uint8)
    ours = config.Vision(32, 1, 1, 64)
    counts = [resolution_budget(r, pixels, ours, 64) for r in ("low", "medium", "high", None)]
    tokens = 64 * 64 // ours.pixels_per_token**2
    assert counts == [tokens // 4, tokens // 2, tokens, 64]
    with pytest.raises(ValueError, match="media resolution ultra high: this model's encoder has low, medium, high"):
        resolution_budget("ultra high", pixels, ours, 64)
    with pytest.raises(ValueError, match="makes 16 tokens of every image"):
        resolution_budget("low", pixels, replace(ours, plain=True, mean_pool=True, side=8, pool=2), 64)


GRAYS = [np.full((32, 32, 3), 20 * n, np.uint8) for n in range(12)]


def grays(excerpt: Excerpt, frames: int = 8) -> list[int]:
    """Which of 12 frames, 4 a second, are read, and when they are shown."""
    clip = decode_video(encode_video(GRAYS, 4), frames, excerpt=excerpt)
    numbers = (clip.frames.mean((1, 2, 3)) / 20).round().astype(int).tolist()
    assert np.allclose(clip.seconds * 4, numbers, atol=0.01)
    return numbers


@pytest.mark.parametrize(
    ("excerpt", "frames"),
    [
        (Excerpt(frames_per_second=1), [0, 4, 8]),
        (Excerpt(frames_per_second=2), [0, 2, 4, 6, 8, 10]),
        (Excerpt(1, frames_per_second=2), [4, 6, 8, 10]),
        (Excerpt(1, 2), [4, 5, 6, 7]),
        (Excerpt(0.5, 1.5, 4), [2, 3, 4, 5]),
        (Excerpt(2.6, frames_per_second=0.1), [11]),
    ],
)
def test_the_frames_of_an_excerpt_are_read(excerpt, frames):
    assert grays(excerpt) == frames


def test_an_excerpt_without_frames_or_with_too_many_is_refused():
    with pytest.raises(MediaError, match="no frame from 3 s on"):
        grays(Excerpt(3))
    with pytest.raises(MediaError, match="4 frames a second are 12 frames of this video; at most 8 are read"):
        grays(Excerpt(frames_per_second=4))


def test_a_request_with_options_is_not_stored():
    from alhena.content import Document
    from alhena.documents import to_row

    with pytest.raises(ValueError, match="are not stored"):
        to_row(Document((Content("user", (Image(PNG, resolution="low"),)),), "1", "test"))
