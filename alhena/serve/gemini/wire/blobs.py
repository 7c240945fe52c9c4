"""Bytes in requests to Parts: images, audio, video, PDFs as an image a page, texts; inline, or a file of this server by its URI.

{"inlineData": {"mimeType": "image/png", "data": "…"}}   {"fileData": {"mimeType": "…", "fileUri": "https://…/v1beta/files/ID"}}

No address that a request names is ever fetched: of a URI only the ID counts, and only the server's own files are read.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Protocol, runtime_checkable

from alhena.content import MEDIA, Media, Part, Text
from alhena.media import sniff
from alhena.media.pdf import render_pages
from alhena.serve.gemini.wire.fields import WireError, read_object, read_string

MAX_DATA_BYTES = 64 << 20
MAX_TEXT = 1 << 20
PDF = "application/pdf"
# Types that are read as text, beside text/*.
TEXT_TYPES = frozenset(
    f"application/{name}"
    for name in "json xml javascript x-javascript typescript x-typescript x-python x-sh yaml x-yaml toml sql rtf".split()
)
FILE_URI = re.compile(r"(?:https?://[^/?#\s]{1,255}(?:/[A-Za-z0-9_.-]{1,64}){0,4}/)?files/([A-Za-z0-9-]{1,64})")


@runtime_checkable
class Files(Protocol):
    """The files of this server."""

    def open(self, name: str) -> tuple[bytes, str]:
        """Content and MIME type of ``files/ID``. Raises WireError when there is none."""
        ...


class NoFiles:
    """A server without files."""

    def open(self, name: str) -> tuple[bytes, str]:
        raise WireError(403, f"{name} does not exist on this server, or has expired", "PERMISSION_DENIED")


def _split_data_uri(data: str, mime: str | None, where: str) -> tuple[str, str | None]:
    """Payload and MIME type of ``data:image/png;base64,…``; anything else is all payload."""
    if not data.startswith("data:"):
        return data, mime
    head, comma, payload = data[5:].partition(",")
    named, *options = head.split(";")
    if not comma or "base64" not in options:
        raise WireError(400, f"{where}.data is a data: URI without base64")
    if mime is not None and named and named.lower() != mime.lower():
        raise WireError(400, f"{where}: mimeType is {mime!r}, but its data: URI says {named!r}")
    return payload, mime or named


def decode_base64(data: str, where: str) -> bytes:
    """The bytes of base64 in either alphabet, with or without line ends and padding."""
    data = re.sub(r"[ \t\r\n]+", "", data).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise WireError(400, f"{where} is not base64: {error}") from None


def read_inline(value: Any, where: str) -> tuple[Part, ...]:
    """The parts of ``inlineData``. Raises WireError."""
    blob = read_object(value, where, ("mimeType", "data", "displayName"))
    if "data" not in blob:
        raise WireError(400, f"{where} needs mimeType and base64 data")
    read_string(blob.get("displayName", ""), f"{where}.displayName", 1024)
    declared = read_string(blob["mimeType"], f"{where}.mimeType", 256) if "mimeType" in blob else None
    data, mime = _split_data_uri(read_string(blob["data"], f"{where}.data", 2 * MAX_DATA_BYTES), declared, where)
    return _parts(decode_base64(data, f"{where}.data"), mime or "", where)


def read_file(value: Any, where: str, files: Files) -> tuple[Part, ...]:
    """The parts of ``fileData``. Raises WireError, also for any address that is not one of this server's files."""
    fields = read_object(value, where, ("fileUri", "mimeType", "displayName"))
    read_string(fields.get("displayName", ""), f"{where}.displayName", 1024)
    uri = read_string(fields.get("fileUri", ""), f"{where}.fileUri", 1024)
    match = FILE_URI.fullmatch(uri)
    if match is None:
        raise WireError(400, f"{where}.fileUri is {uri!r}: only files of this server are read (upload one and use its uri); no other address is fetched")  # fmt: skip
    content, mime = files.open(f"files/{match[1]}")
    declared = read_string(fields.get("mimeType", mime), f"{where}.mimeType", 256)
    return _parts(content, declared or mime, where)


def _parts(content: bytes, mime: str, where: str) -> tuple[Part, ...]:
    """The parts of bytes of a MIME type."""
    charset = re.search(r"charset=\"?([^\s;\"]{1,40})", mime, re.IGNORECASE)
    mime = mime.split(";")[0].strip().lower()
    if mime == PDF:
        try:
            return render_pages(content)
        except ValueError as error:
            raise WireError(400, f"{where}: {error}") from None
    if mime in TEXT_TYPES or re.fullmatch(r"text/[a-z0-9.+-]+", mime):
        return (Text(_text(content, charset[1] if charset else "utf-8", where)),)
    match = re.fullmatch(r"(image|audio|video)/[a-z0-9.+-]+", mime)
    if match is None:
        raise WireError(400, f"{where}.mimeType is {mime!r}; image/*, audio/*, video/*, text/*, {PDF} and application/json can be read")  # fmt: skip
    return (MEDIA[match[1]](content, _actual_mime(content, mime, where)),)


def _text(content: bytes, charset: str, where: str) -> str:
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise WireError(400, f"{where}.mimeType names the charset {charset!r}; texts must be UTF-8")
    if len(content) > 4 * MAX_TEXT:
        raise WireError(400, f"{where} is a text of {len(content):,} bytes; at most {4 * MAX_TEXT:,} are read")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WireError(400, f"{where} is not a text in UTF-8: {error}") from None


def _actual_mime(data: bytes, declared: str, where: str) -> str:
    """The MIME type of the bytes. Raises WireError when they are another kind of media than declared.

    Bytes of no known format keep the declared type: the decoder then says what is wrong with them.
    """
    actual = sniff(data) or declared
    if actual.split("/")[0] != declared.split("/")[0]:
        raise WireError(400, f"{where}.mimeType is {declared!r}, but the data are {actual}; declare that type")
    return actual


def only_media(parts: tuple[Part, ...], where: str) -> tuple[Media, ...]:
    """Parts of which each must be a medium. Raises WireError."""
    media = tuple(part for part in parts if isinstance(part, Media))
    if len(media) < len(parts):
        raise WireError(400, f"{where} must be an image, audio, a video or a PDF")
    return media
