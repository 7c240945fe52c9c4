"""Documents as rows of Parquet, which other tools can read.

Parts are a list of structs with the bytes of media. The ``text`` of a tool call or result is JSON; the media of a result are the
parts after it, as many as its JSON says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alhena.content import (
    KINDS,
    MEDIA,
    Content,
    Document,
    Media,
    Part,
    Text,
    Thought,
    ToolCall,
    ToolResult,
    call_json,
    kind_of,
    part_size,
    result_json,
)
from alhena.files import atomic
from alhena.parquet import MAX_ROW_BYTES, Lost, read_rows

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
        is_ascii = not isinstance(part, Text | Thought) or part.text.isascii()
        size += 64 + part_size(part) * (1 if is_ascii else 4)
    return size


def _part_rows(part: Part) -> list[dict[str, Any]]:
    """The row of a part; after a tool result, the rows of its media."""
    row = {"kind": kind_of(part), "text": None, "mime": None, "data": None}
    if isinstance(part, Text | Thought):
        return [row | {"text": part.text}]
    if isinstance(part, ToolCall):
        return [row | {"text": call_json(part)}]
    if isinstance(part, ToolResult):
        return [row | {"text": result_json(part)}, *(r for medium in part.parts for r in _part_rows(medium))]
    if part != type(part)(part.data, part.mime):
        raise ValueError(
            f"a {kind_of(part)} with a resolution or an excerpt: these belong to requests and are not stored"
        )
    return [row | {"mime": part.mime, "data": part.data}]


def _fields(text: str, kind: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a tool call or result, with exactly these fields."""
    value = json.loads(text)
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise ValueError(f"the text of a {kind} must be a JSON object with {', '.join(types)}; it is {text[:40]!r}")
    for name, type_ in types.items():
        if not isinstance(value[name], type_) or isinstance(value[name], bool):
            raise ValueError(f"{name!r} of a {kind} is {value[name]!r:.40}")
    return value


def _parts(rows: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """Inverse of :func:`_part_rows`, over all parts of a content."""
    parts: list[Part] = []
    remaining = list(reversed(rows))
    while remaining:
        row = remaining.pop()
        part = _part(row)
        if isinstance(part, ToolResult):
            count = _fields(row["text"], "tool_result", _RESULT_FIELDS)["parts"]
            media = [_part(remaining.pop()) for _ in range(min(max(count, 0), len(remaining)))]
            if len(media) != count or not all(isinstance(medium, Media) for medium in media):
                raise ValueError(f"the result of the tool {part.name!r} must be followed by its {count} media")
            part = replace(part, parts=tuple(m for m in media if isinstance(m, Media)))
        parts.append(part)
    return tuple(parts)


_CALL_FIELDS = {"name": str, "arguments": dict, "id": str | None}
_RESULT_FIELDS = {"name": str, "response": dict, "id": str | None, "parts": int}


def _part(row: Mapping[str, Any]) -> Part:
    """The part of one row; that of a tool result without its media."""
    _check_columns(row, "kind", "text", "mime", "data")
    kind, text, data = row["kind"], row["text"], row["data"]
    if kind in MEDIA and isinstance(data, bytes):
        return MEDIA[kind](data, row["mime"]) if isinstance(row["mime"], str) else MEDIA[kind](data)
    if kind in MEDIA or kind not in KINDS or not isinstance(text, str):
        raise ValueError(f"part kind is {kind!r}; it must be {', '.join(KINDS)}, with its content")
    if kind == "tool_call":
        return ToolCall(**_fields(text, kind, _CALL_FIELDS))
    if kind == "tool_result":
        fields = _fields(text, kind, _RESULT_FIELDS)
        return ToolResult(fields["name"], fields["response"], id=fields["id"])
    return Text(text) if kind == "text" else Thought(text)


def _check_columns(row: Mapping[str, Any], *names: str) -> None:
    if not isinstance(row, Mapping):
        raise TypeError(f"{row!r} is not an object with the fields {', '.join(names)}")
    if other := [name for name, value in row.items() if name not in names and value is not None]:
        raise ValueError(f"unknown column {other[0]!r}; known are {', '.join(names)}")


def to_row(document: Document) -> dict[str, Any]:
    contents = [
        {"role": c.role, "parts": [row for part in c.parts for row in _part_rows(part)]} for c in document.contents
    ]
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
    contents = tuple(Content(c["role"], _parts(c["parts"])) for c in row["contents"])
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
