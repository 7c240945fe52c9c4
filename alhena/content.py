"""Part, Content, Document: the record of every stage and of the API.

A web page with images, a recording with its transcript, a question about a video, a chat: all are Documents.

    Document ── contents ──► Content(role="user",  parts=(Image(…), Text("What color is the circle?")))
                             Content(role="model", parts=(Text("red"),))

Roles: ``user`` and ``model`` are the turns of a chat, ``system`` is its instruction, ``tool`` holds the results of the tools that
the model called; ``document`` is continuous material (prose, code, an interleaved page).
An Image in a ``model`` turn is an output of the model, encoded as image codes; anywhere else media are inputs of the encoders.

A Document is stored as a row of Parquet (parts are a list of structs with the bytes of media), which other tools can read. The
``text`` of a tool call or result is JSON; the media of a result are the parts after it, as many as its JSON says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from alhena.files import atomic, plain
from alhena.parquet import MAX_ROW_BYTES, Lost, read_rows

Role = Literal["user", "model", "document", "system", "tool"]
# How many soft tokens an encoder makes of an image, in the words of the API; each encoder has its own numbers.
Resolution = Literal["low", "medium", "high", "ultra high"]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Image:
    """``resolution`` None is the default of the encoder."""

    data: bytes
    mime: str = "image/png"
    resolution: Resolution | None = None


@dataclass(frozen=True)
class Audio:
    data: bytes
    mime: str = "audio/wav"


@dataclass(frozen=True)
class Excerpt:
    """The time range of a video that is read, in seconds from its start, and how many frames of each second; None: as the encoder does."""

    start: float = 0.0
    end: float | None = None
    frames_per_second: float | None = None


@dataclass(frozen=True)
class Video:
    """``resolution`` is that of its frames; None is the default of the encoder."""

    data: bytes
    mime: str = "video/mp4"
    resolution: Resolution | None = None
    excerpt: Excerpt = Excerpt()


@dataclass(frozen=True)
class Thought:
    """What the model writes for itself before an answer or a tool call."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the model; ``arguments`` are JSON values, ``id`` links the result to it."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


Media = Image | Audio | Video


@dataclass(frozen=True)
class ToolResult:
    """What a tool returned: JSON values, and media."""

    name: str
    response: Mapping[str, Any]
    parts: tuple[Media, ...] = ()
    id: str | None = None


@dataclass(frozen=True)
class Tool:
    """The declaration of a tool that the model may call; ``parameters`` is a JSON schema of type object, or empty."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


Part = Text | Image | Audio | Video | Thought | ToolCall | ToolResult
MEDIA: Mapping[str, type[Media]] = {"image": Image, "audio": Audio, "video": Video}
# Kinds of parts by the name under which they are stored.
KINDS: Mapping[str, type[Part]] = {
    "text": Text, **MEDIA, "thought": Thought, "tool_call": ToolCall, "tool_result": ToolResult,
}  # fmt: skip
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


def kind_of(part: Part) -> str:
    """The name of a part's kind, as messages and files say it.

    >>> kind_of(ToolCall("now", {}))
    'tool_call'
    """
    return next(name for name, kind in KINDS.items() if type(part) is kind)


def call_text(part: ToolCall) -> str:
    """A tool call for readers and for comparisons; the order of the arguments does not matter.

    >>> call_text(ToolCall("weather", {"days": 3, "city": "Bern"}))
    'weather{"city": "Bern", "days": 3}'
    """
    return part.name + json.dumps(plain(part.arguments), ensure_ascii=False, sort_keys=True, allow_nan=False)


def written(part: Part) -> str | None:
    """What a part says in characters: its text, or the JSON of a tool call or result; None for media.

    >>> written(ToolResult("now", {"hour": 12})), written(Image(b""))
    ('now{"hour": 12}', None)
    """
    if isinstance(part, ToolCall):
        return call_text(part)
    if isinstance(part, ToolResult):
        return call_text(ToolCall(part.name, part.response))
    return part.text if isinstance(part, Text | Thought) else None


def part_size(part: Part) -> int:
    """Characters of a part's text or JSON and bytes of its media, together."""
    if isinstance(part, Text | Thought):
        return len(part.text)
    if isinstance(part, ToolCall):
        return len(_call_json(part))
    if isinstance(part, ToolResult):
        return len(_result_json(part)) + sum(map(part_size, part.parts))
    return len(part.data)


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
        is_ascii = not isinstance(part, Text | Thought) or part.text.isascii()
        size += 64 + part_size(part) * (1 if is_ascii else 4)
    return size


def _call_json(part: ToolCall) -> str:
    return json.dumps({"name": part.name, "arguments": plain(part.arguments), "id": part.id}, allow_nan=False)


def _result_json(part: ToolResult) -> str:
    fields = {"name": part.name, "response": plain(part.response), "id": part.id, "parts": len(part.parts)}
    return json.dumps(fields, allow_nan=False)


def _part_rows(part: Part) -> list[dict[str, Any]]:
    """The row of a part; after a tool result, the rows of its media."""
    row = {"kind": kind_of(part), "text": None, "mime": None, "data": None}
    if isinstance(part, Text | Thought):
        return [row | {"text": part.text}]
    if isinstance(part, ToolCall):
        return [row | {"text": _call_json(part)}]
    if isinstance(part, ToolResult):
        return [row | {"text": _result_json(part)}, *(r for medium in part.parts for r in _part_rows(medium))]
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
