"""Part, Content, Document: the record of every stage and of the API.

A web page with images, a recording with its transcript, a question about a video, a chat: all are Documents.

    Document ── contents ──► Content(role="user",  parts=(Image(…), Text("What color is the circle?")))
                             Content(role="model", parts=(Text("red"),))

Roles: ``user`` and ``model`` are the turns of a chat; ``document`` is continuous material (prose, code, an interleaved page).
An Image in a ``model`` turn is an output of the model, encoded as image codes; anywhere else media are inputs of the encoders.

A Document is stored as a row of Parquet (parts are a list of structs with the bytes of media), which other tools can read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from alhena.files import atomic
from alhena.parquet import MAX_ROW_BYTES, Lost, read_rows

Role = Literal["user", "model", "document"]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Image:
    data: bytes
    mime: str = "image/png"


@dataclass(frozen=True)
class Audio:
    data: bytes
    mime: str = "audio/wav"


@dataclass(frozen=True)
class Video:
    data: bytes
    mime: str = "video/mp4"


Part = Text | Image | Audio | Video
MEDIA: Mapping[str, type[Image | Audio | Video]] = {"image": Image, "audio": Audio, "video": Video}
MIME_OF_SUFFIX: Mapping[str, str] = MappingProxyType(
    {
        ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".jfif": "image/jpeg", ".webp": "image/webp",
        ".gif": "image/gif", ".bmp": "image/bmp",
        ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg", ".opus": "audio/ogg",
        ".mp3": "audio/mpeg", ".aac": "audio/aac", ".m4a": "audio/mp4", ".m4b": "audio/mp4", ".weba": "audio/webm",
        ".mka": "audio/x-matroska", ".aif": "audio/aiff", ".aiff": "audio/aiff", ".aifc": "audio/aiff",
        ".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime",
        ".mkv": "video/x-matroska", ".avi": "video/x-msvideo", ".3gp": "video/3gpp", ".3g2": "video/3gpp",
        ".ts": "video/mp2t", ".mts": "video/mp2t", ".m2ts": "video/mp2t", ".ogv": "video/ogg",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Content:
    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role is {self.role!r}; it must be one of {', '.join(get_args(Role))}")


@dataclass(frozen=True)
class Document:
    """One record of a corpus.

    ``source`` is its name in the mixture (``scenes``, ``speech``, …); ``facts`` holds its ground truth or provenance as
    JSON values (for instance ``{"task": "scenes/colour", "shape": "circle"}``).
    """

    contents: tuple[Content, ...]
    id: str
    source: str
    language: str = "und"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> Iterator[Part]:
        return (part for content in self.contents for part in content.parts)


def text_of(contents: Iterable[Content]) -> str:
    """All text of the contents, one line for each part.

    >>> text_of([Content("user", (Text("Draw"), Image(b""))), Content("model", (Text("ok"),))])
    'Draw\\nok'
    """
    return "\n".join(part.text for content in contents for part in content.parts if isinstance(part, Text))


_PART = pa.struct([("kind", pa.string()), ("text", pa.string()), ("mime", pa.string()), ("data", pa.binary())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("contents", pa.list_(pa.struct([("role", pa.string()), ("parts", pa.list_(_PART))]))),
        ("facts", pa.string()),
    ]
)


# Row groups are closed by the bytes or by the number of their documents, whichever comes first.
GROUP_BYTES = 64 << 20
GROUP_DOCUMENTS = 256
# Exists while curate replaces its files: after a killed run, the files beside it are of two runs.
UNFINISHED = Path(".curate.partial", "report.json")


def size_of(document: Document) -> int:
    """An upper bound on the bytes of a document."""
    size = len(document.id)
    for part in document.parts:
        content = part.text if isinstance(part, Text) else part.data
        size += 64 + len(content) * (4 if isinstance(content, str) and not content.isascii() else 1)
    return size


def _part_row(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"kind": "text", "text": part.text, "mime": None, "data": None}
    return {"kind": type(part).__name__.lower(), "text": None, "mime": part.mime, "data": part.data}


def _part(row: Mapping[str, Any]) -> Part:
    _check_columns(row, "kind", "text", "mime", "data")
    kind, content = row["kind"], row["text"] if row["kind"] == "text" else row["data"]
    if kind == "text" and isinstance(content, str):
        return Text(content)
    if kind not in MEDIA or not isinstance(content, bytes):
        raise ValueError(f"part kind is {kind!r}; it must be text, {', '.join(MEDIA)}, with its content")
    return MEDIA[kind](content, row["mime"]) if isinstance(row["mime"], str) else MEDIA[kind](content)


def _check_columns(row: Mapping[str, Any], *names: str) -> None:
    if not isinstance(row, Mapping):
        raise TypeError(f"{row!r} is not an object with the fields {', '.join(names)}")
    if other := [name for name, value in row.items() if name not in names and value is not None]:
        raise ValueError(f"unknown column {other[0]!r}; known are {', '.join(names)}")


def to_row(document: Document) -> dict[str, Any]:
    contents = [{"role": c.role, "parts": [_part_row(part) for part in c.parts]} for c in document.contents]
    return {
        "id": document.id,
        "source": document.source,
        "language": document.language,
        "contents": contents,
        "facts": json.dumps(document.facts, ensure_ascii=False, sort_keys=True),
    }


def from_row(row: Mapping[str, Any]) -> Document:
    """Inverse of :func:`to_row`. Raises ValueError (or KeyError, TypeError) on a row of another shape."""
    _check_columns(row, *SCHEMA.names)
    for content in row["contents"]:
        _check_columns(content, "role", "parts")
    contents = tuple(Content(c["role"], tuple(_part(part) for part in c["parts"])) for c in row["contents"])
    facts = json.loads(row["facts"] or "{}")
    if not isinstance(facts, dict):
        raise ValueError(f"facts must be a JSON object; they are {row['facts'][:40]!r}")
    return Document(contents, row["id"], row["source"], row["language"] or "und", facts)


def _groups(documents: Iterable[Document], max_documents: int, max_bytes: int) -> Iterator[list[Document]]:
    """Consecutive documents, grouped into row groups."""
    group: list[Document] = []
    total = 0
    for document in documents:
        size = size_of(document)
        if size > MAX_ROW_BYTES:
            raise ValueError(f"document {document.id[:80]!r} has {size:,} bytes; at most {MAX_ROW_BYTES:,} fit one row")
        if group and (len(group) >= max_documents or total + size > max_bytes):
            yield group
            group, total = [], 0
        group.append(document)
        total += size
    if group:
        yield group


def write_documents(
    path: Path, documents: Iterable[Document], rows_per_group: int = GROUP_DOCUMENTS, bytes_per_group: int = GROUP_BYTES
) -> int:
    """Writes Documents to one Parquet file (all of them or nothing); returns their number."""
    count = 0
    with (
        atomic(path) as partial,
        pq.ParquetWriter(partial, SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for group in _groups(documents, rows_per_group, bytes_per_group):
            writer.write_table(pa.Table.from_pylist([to_row(document) for document in group], SCHEMA))
            count += len(group)
    return count


def read_documents(folder: Path) -> Iterator[Document]:
    """Streams the Documents of a Parquet file, or of every ``*.parquet`` of a folder in the order of their names.

    Raises ValueError that names the file and row when one cannot be read; meant for the output of curate.
    """
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if (folder / UNFINISHED).exists():
        raise ValueError(f"{folder}: alhena curate was stopped while it replaced its files; run it again")
    if not files or not files[0].exists():
        raise ValueError(f"{folder}: no Parquet file here; run the stage before this one (alhena curate)")
    for file in files:
        for row in read_rows(file):
            if isinstance(row, Lost):
                raise ValueError(f"{file}, row {row.number}: {row.reason} ({row.detail}); run alhena curate again")
            try:
                document = from_row(row.values)
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"{file}, row {row.number}: not a Document ({error}); run alhena curate on it"
                ) from None
            yield document
