"""Part, Content, Document: the record that every stage and the API speak.

A web page with pictures, a recording with its transcript, a question about a clip, a chat: all are Documents.

    Document ── contents ──► Content(role="user",  parts=(Image(…), Text("What colour is the circle?")))
                             Content(role="model", parts=(Text("red"),))

Roles: ``user`` and ``model`` are the turns of a chat; ``document`` is running material (prose, code, an interleaved page).
An Image in a ``model`` turn is one the model is to *draw*; anywhere else media are *read*.

At rest a Document is a row of Parquet (parts are a list of structs, media bytes inside), so any tool opens it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from alhena.artifacts import atomic

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

    ``source`` names what it is mixed under (``scenes``, ``speech``, …), ``facts`` holds its ground truth or provenance as
    plain JSON values (for instance ``{"task": "scenes/colour", "shape": "circle"}``).
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
    """All text of some contents, one line a part.

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


def _part_row(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"kind": "text", "text": part.text, "mime": None, "data": None}
    return {"kind": type(part).__name__.lower(), "text": None, "mime": part.mime, "data": part.data}


def _part(row: Mapping[str, Any]) -> Part:
    if row["kind"] == "text":
        return Text(row["text"])
    if row["kind"] not in MEDIA:
        raise ValueError(f"part kind is {row['kind']!r}; it must be text, {', '.join(MEDIA)}")
    return MEDIA[row["kind"]](row["data"], row["mime"])


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
    contents = tuple(Content(c["role"], tuple(_part(part) for part in c["parts"])) for c in row["contents"])
    return Document(contents, row["id"], row["source"], row["language"] or "und", json.loads(row["facts"] or "{}"))


def write_documents(path: Path, documents: Iterable[Document], rows_per_group: int = 256) -> int:
    """Writes Documents to one Parquet file (the whole file or nothing); returns their number."""
    count = 0
    with atomic(path) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for document in documents:
            rows.append(to_row(document))
            count += 1
            if len(rows) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return count


def read_documents(folder: Path) -> Iterator[Document]:
    """Streams the Documents of a Parquet file, or of every ``*.parquet`` of a folder in the order of their names."""
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not files or not files[0].exists():
        raise ValueError(f"{folder}: no Parquet file here; run the stage before this one (alhena curate)")
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                yield from_row(row)
