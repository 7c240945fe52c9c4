"""Part, Content, Document: the record of every stage and of the API.

A web page with images, a recording with its transcript, a question about a video, a chat: all are Documents.

    Document ── contents ──► Content(role="user",  parts=(Image(…), Text("What color is the circle?")))
                             Content(role="model", parts=(Text("red"),))

Roles: ``user`` and ``model`` are the turns of a chat, ``system`` is its instruction, ``tool`` holds the results of the tools that
the model called; ``document`` is continuous material (prose, code, an interleaved page).
An Image in a ``model`` turn is an output of the model, encoded as image codes; anywhere else media are inputs of the encoders.

They are stored as Parquet (alhena/documents.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from alhena.files import plain

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
        return len(call_json(part))
    if isinstance(part, ToolResult):
        return len(result_json(part)) + sum(map(part_size, part.parts))
    return len(part.data)


def text_of(contents: Iterable[Content]) -> str:
    """All text of the contents, one line for each part.

    >>> text_of([Content("user", (Text("Draw"), Image(b""))), Content("model", (Text("ok"),))])
    'Draw\\nok'
    """
    return "\n".join(part.text for content in contents for part in content.parts if isinstance(part, Text))


def call_json(part: ToolCall) -> str:
    """The stored text of a tool call."""
    return json.dumps({"name": part.name, "arguments": plain(part.arguments), "id": part.id}, allow_nan=False)


def result_json(part: ToolResult) -> str:
    """The stored text of a tool result; its media are stored after it."""
    fields = {"name": part.name, "response": plain(part.response), "id": part.id, "parts": len(part.parts)}
    return json.dumps(fields, allow_nan=False)
