"""The Gemini wire format to Content and back; no other module reads or writes it.

    {"contents": [{"role": "user", "parts": [{"text": "What is this?"}, {"inlineData": {"mimeType": "image/png", "data": "…"}}]}],
     "generationConfig": {"temperature": 0.2, "maxOutputTokens": 64}}

All sizes are bounded, unknown fields are refused, and every error names its field.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from alhena.content import MEDIA, Content, Part, Role, Text
from alhena.media import check, sniff
from alhena.serve.detokenize import join
from alhena.serve.engine import Answer
from alhena.serve.gemini.fields import (
    Fields,
    WireError,
    not_offered,
    path,
    read_flag,
    read_list,
    read_object,
    read_string,
    refuse,
)
from alhena.serve.gemini.generation_config import check_safety, read_sampling
from alhena.serve.sampler import Sampling
from alhena.tokens.vocabulary import Vocabulary

MAX_CONTENTS, MAX_PARTS, MAX_TEXT, MAX_MEDIA = 512, 256, 1 << 20, 256
MAX_DATA_BYTES = 64 << 20
# The control tokens that open and close a media item, and the API's name of its modality.
MEDIA_MARKS = (
    ("bov", "eov", "VIDEO"),
    ("boi", "eoi", "IMAGE"),
    ("boa", "eoa", "AUDIO"),
    ("boi_out", "eoi_out", "IMAGE"),
)
FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS"}
REQUEST = ("contents", "systemInstruction", "generationConfig", "safetySettings", "model")
# Refused unless they are empty.
NOT_OFFERED = ("tools", "toolConfig", "cachedContent", "labels", "store", "serviceTier")
PART = ("text", "inlineData", "thought")
PARTS_NOT_OFFERED = (
    "functionCall", "functionResponse", "fileData", "executableCode", "codeExecutionResult", "videoMetadata", "thoughtSignature",
    "mediaResolution", "toolCall", "toolResponse", "partMetadata",
)  # fmt: skip


@dataclass(frozen=True)
class GenerateRequest:
    """A parsed request. ``media`` holds the field and the part of each media item, in order."""

    contents: tuple[Content, ...]
    sampling: Sampling
    media: tuple[tuple[str, Part], ...]

    def locate_error(self, error: ValueError) -> WireError:
        """An error of encoding these contents as a WireError, with the field whose media do not decode."""
        for where, part in self.media:
            try:
                check(part)
            except ValueError as reason:
                return WireError(400, f"{where}: {reason}")
        return WireError(400, str(error))


# ── Parts ─────────────────────────────────────────────────────────────────────────────────────────────────────


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


def _decode_base64(data: str, where: str) -> bytes:
    """The bytes of base64 in either alphabet, with or without line ends and padding."""
    data = re.sub(r"[ \t\r\n]+", "", data).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise WireError(400, f"{where}.data is not base64: {error}") from None


def _blob(value: Any, where: str) -> Part:
    blob = read_object(value, where, ("mimeType", "data", "displayName"))
    if "data" not in blob:
        raise WireError(400, f"{where} needs mimeType and base64 data")
    read_string(blob.get("displayName", ""), f"{where}.displayName", 1024)
    declared = read_string(blob["mimeType"], f"{where}.mimeType", 256) if "mimeType" in blob else None
    data, mime = _split_data_uri(read_string(blob["data"], f"{where}.data", 2 * MAX_DATA_BYTES), declared, where)
    mime = (mime or "").split(";")[0].strip().lower()
    match = re.fullmatch(r"(image|audio|video)/[a-z0-9.+-]+", mime)
    if match is None:
        raise WireError(400, f"{where}.mimeType is {mime!r}; image/*, audio/* and video/* can be read")
    content = _decode_base64(data, where)
    return MEDIA[match[1]](content, _actual_mime(content, mime, where))


def _actual_mime(data: bytes, declared: str, where: str) -> str:
    """The MIME type of the bytes. Raises WireError when they are another kind of media than declared.

    Bytes of no known format keep the declared type: the decoder then says what is wrong with them.
    """
    actual = sniff(data) or declared
    if actual.split("/")[0] != declared.split("/")[0]:
        raise WireError(400, f"{where}.mimeType is {declared!r}, but the data are {actual}; declare that type")
    return actual


def _part(value: Any, where: str) -> Part:
    if isinstance(value, str):
        value = {"text": value}
    part = read_object(value, where, (*PART, *PARTS_NOT_OFFERED))
    for name in PARTS_NOT_OFFERED:
        if name in part:
            raise not_offered(path(where, name))
    if read_flag(part, where, "thought"):
        raise not_offered(path(where, "thought"), ": the model does not think")
    if ("text" in part) == ("inlineData" in part):
        raise WireError(400, f"{where} must have either text or inlineData; it has {', '.join(part) or 'nothing'}")
    if "text" in part:
        return Text(read_string(part["text"], f"{where}.text", MAX_TEXT))
    return _blob(part["inlineData"], f"{where}.inlineData")


# ── Contents ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Reader:
    """Parses contents and records the field of each media item."""

    def __init__(self) -> None:
        self.media: list[tuple[str, Part]] = []
        self._characters = 0

    def content(self, value: Any, where: str, roles: Sequence[str]) -> Content:
        if isinstance(value, str):
            value = {"parts": [{"text": value}]}
        content = read_object(value, where, ("role", "parts"))
        role = read_string(content.get("role", ""), f"{where}.role", 64) or "user"
        if role not in roles:
            hint = "; use systemInstruction" if role == "system" else ""
            raise WireError(400, f"{where}.role is {role!r}; it must be {' or '.join(roles)}{hint}")
        parts = read_list(content.get("parts", []), f"{where}.parts", MAX_PARTS)
        read = [self._part(part, f"{where}.parts[{i}]") for i, part in enumerate(parts)]
        named: Role = "model" if role == "model" else "user"
        return Content(named, tuple(read))

    def _part(self, value: Any, where: str) -> Part:
        part = _part(value, where)
        if isinstance(part, Text):
            self._characters += len(part.text)
        else:
            self.media.append((where + ".inlineData", part))
        if self._characters > MAX_TEXT or len(self.media) > MAX_MEDIA:
            raise WireError(
                400, f"{where}: a request has at most {MAX_TEXT:,} characters of text and {MAX_MEDIA} images, audio and video items"
            )  # fmt: skip
        return part


def _merge(contents: Sequence[Content]) -> list[Content]:
    """Merges consecutive turns of one role: the SDK returns a streamed answer as one turn for each event."""
    out: list[Content] = []
    for content in contents:
        if out and out[-1].role == content.role:
            content = Content(content.role, (*out.pop().parts, *content.parts))
        out.append(content)
    return [replace(c, parts=join(c.parts)) if c.role == "model" else c for c in out]


def _conversation(request: Fields, reader: _Reader) -> tuple[Content, ...]:
    """All turns; a system instruction is put before the parts of the first user turn."""
    if "contents" not in request:
        raise WireError(400, "contents is missing: it must hold at least one turn with parts")
    contents = _merge(
        [
            reader.content(c, f"contents[{i}]", ("user", "model"))
            for i, c in enumerate(read_list(request["contents"], "contents", MAX_CONTENTS))
        ]
    )
    if not contents or not contents[-1].parts:
        raise WireError(400, "contents must hold at least one turn with parts; the last one has none")
    if "systemInstruction" in request:
        where = "systemInstruction"
        system = reader.content(request[where], where, ("user", "system", "model"))
        if not all(isinstance(part, Text) for part in system.parts):
            raise WireError(400, f"{where} must be text")
        if system.parts and contents[0].role == "user":
            contents[0] = Content("user", (*system.parts, Text("\n"), *contents[0].parts))
        elif system.parts:
            contents.insert(0, Content("user", system.parts))
    return tuple(contents)


def _request(value: Any, where: str, model: str) -> Fields:
    request = read_object(value, where, (*REQUEST, *NOT_OFFERED))
    refuse(request, where, NOT_OFFERED)
    check_safety(request.get("safetySettings"))
    named = read_string(request.get("model", model), path(where, "model"), 256)
    if named.removeprefix("models/") != model:
        raise WireError(400, f"{path(where, 'model')} is {named!r}, but the URL names models/{model}")
    return request


def read_request(body: Any, model: str, default: Sampling) -> GenerateRequest:
    """A request to generate. Raises WireError."""
    request, reader = _request(body, "", model), _Reader()
    contents = _conversation(request, reader)
    if contents[-1].role != "user":
        raise WireError(400, "contents ends with a turn of the model; the last turn must be one of the user")
    sampling = read_sampling(request.get("generationConfig"), default)
    return GenerateRequest(contents, sampling, tuple(reader.media))


def read_count_request(body: Any, model: str, default: Sampling) -> GenerateRequest:
    """A request to count tokens; the last turn may have either role. Raises WireError."""
    name = "generateContentRequest"
    outer = read_object(body, "", (name, *REQUEST, *NOT_OFFERED))
    if name in outer and len(outer) > 1:
        raise WireError(400, f"{name} and {next(field for field in outer if field != name)} exclude each other")
    request, reader = _request(outer.get(name, body), name if name in outer else "", model), _Reader()
    contents = _conversation(request, reader)
    return GenerateRequest(contents, read_sampling(request.get("generationConfig"), default), tuple(reader.media))


# ── Responses ───────────────────────────────────────────────────────────────────────────────────────────────────


def write_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    return {"inlineData": {"mimeType": part.mime, "data": base64.b64encode(part.data).decode()}}


def count_modalities(tokens: Sequence[int], v: Vocabulary) -> dict[str, int]:
    """Number of prompt tokens by modality: those between the marks of a media item are of its modality, the rest is text.

    >>> v = Vocabulary(10, 4)
    >>> names = "<bos> <user> <bov> <boi> <img> <eoi> <eov> <boa> <aud> <eoa> <end>".split()
    >>> count_modalities([v.control(name) for name in names], v)
    {'TEXT': 3, 'VIDEO': 5, 'AUDIO': 3}
    """
    opening = {v.control(f"<{a}>"): (kind, v.control(f"<{b}>")) for a, b, kind in MEDIA_MARKS}
    counts: dict[str, int] = {}
    inside: tuple[str, int] | None = None
    for token in tokens:
        inside = inside or opening.get(token)
        kind = inside[0] if inside else "TEXT"
        counts[kind] = counts.get(kind, 0) + 1
        inside = None if inside and token == inside[1] else inside
    return counts


def write_response(
    parts: Sequence[Part], model: str, answer: Answer | None, prompt: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """A response, or one event of a stream; the last one has the finish reason and the token counts of the :class:`Answer`.

    ``prompt`` is the number of prompt tokens by modality. There is always a part, even if it is an empty text: the SDK drops a turn
    from its history when one of its events has no part.
    """
    content = {"role": "model", "parts": [write_part(p) for p in parts or (Text(""),)]}
    candidate: dict[str, Any] = {"content": content, "index": 0}
    response: dict[str, Any] = {"candidates": [candidate], "modelVersion": model}
    if answer:
        candidate["finishReason"] = FINISH_REASONS[answer.finish]
        counts = answer.prompt_tokens, answer.answer_tokens
        response["usageMetadata"] = {
            "promptTokenCount": counts[0],
            "candidatesTokenCount": counts[1],
            "totalTokenCount": sum(counts),
            "promptTokensDetails": [{"modality": kind, "tokenCount": count} for kind, count in prompt.items()],
        }
    return response
