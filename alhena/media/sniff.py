"""MIME type of media bytes, by their content alone.

Only formats that the decoders support have a type; anything else is None, whatever its file name or declared type.
"""

from __future__ import annotations

import re

# Brands of ISO media files that hold audio only, and of those that hold still images.
_AUDIO_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1", b"crx ")
_HANDLER = re.compile(rb"hdlr.{8}(vide|soun)", re.DOTALL)
# Bytes at either end that are searched for the kinds of the tracks.
_SEARCHED_BYTES = 1 << 20


def sniff(data: bytes) -> str | None:
    """The MIME type of an image, audio or video file that can be decoded, or None.

    >>> sniff(b"GIF89a......"), sniff(b"RIFF....WAVEfmt "), sniff(b"ffconcat version 1.0")
    ('image/gif', 'audio/wav', None)
    """
    return (
        _image(data)
        or _riff(data)
        or _iso(data)
        or _matroska(data)
        or _ogg(data)
        or _audio(data)
        or _headerless_stream(data)
    )


def _image(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if data.startswith(b"BM") and data[6:10] == b"\0\0\0\0":
        return "image/bmp"
    return None


def _riff(data: bytes) -> str | None:
    if data[:4] not in (b"RIFF", b"RIFX", b"RF64"):
        return None
    return {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}.get(data[8:12])


def _iso(data: bytes) -> str | None:
    """ISO base media (MP4, QuickTime, 3GPP): a box with a known name at the start."""
    box, brand = data[4:8], data[8:12]
    if box == b"ftyp" and brand in _STILL_BRANDS:
        return None
    if box not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return None
    kinds = set(_HANDLER.findall(data[:_SEARCHED_BYTES])) | set(_HANDLER.findall(data[-_SEARCHED_BYTES:]))
    if brand in _AUDIO_BRANDS or kinds == {b"soun"}:
        return "audio/mp4"
    if box != b"ftyp" or brand == b"qt  ":
        return "video/quicktime"
    return "video/3gpp" if brand[:2] == b"3g" else "video/mp4"


def _matroska(data: bytes) -> str | None:
    if not data.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    # The identifier of CodecID (86), its size, its value.
    kinds = set(re.findall(rb"\x86[\x80-\xff]([VA])_", data[:_SEARCHED_BYTES]))
    form = "webm" if b"webm" in data[:64] else "x-matroska"
    return f"audio/{form}" if kinds == {b"A"} else f"video/{form}"


def _ogg(data: bytes) -> str | None:
    if not data.startswith(b"OggS"):
        return None
    return "video/ogg" if b"\x80theora" in data[:4096] else "audio/ogg"


def _audio(data: bytes) -> str | None:
    if data.startswith(b"fLaC"):
        return "audio/flac"
    if data.startswith(b"FORM") and data[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    return None


def _headerless_stream(data: bytes) -> str | None:
    """Streams without a header: MPEG transport streams, and MPEG audio or ADTS frames after a tag or zeros."""
    for size, first in ((188, 0), (192, 4)):
        marks = data[first : first + 3 * size : size]
        if len(data) >= first + 3 * size and marks == b"\x47\x47\x47":
            return "video/mp2t"
    start = data.lstrip(b"\0")[:4]
    if start[:3] == b"ID3":
        return "audio/mpeg"
    if len(start) < 4 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return None
    layer, bit_rate, rate = start[1] >> 1 & 3, start[2] >> 4, start[2] >> 2 & 3
    if layer == 0:
        return "audio/aac" if start[1] & 0xF6 == 0xF0 else None
    version = start[1] >> 3 & 3
    return "audio/mpeg" if version != 1 and rate != 3 and bit_rate not in (0, 15) else None
