"""Parts of the Gemini wire format to Parts and back.

{"text": "…"}   {"inlineData": {"mimeType": "image/png", "data": "…"}}   {"text": "…", "thought": true}   {"fileData": {…}}
{"functionCall": {"name": "f", "args": {…}}}   {"functionResponse": {"name": "f", "response": {…}}}
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from alhena.content import Media, Part, Resolution, Text, Thought, ToolCall, ToolResult
from alhena.serve.gemini.wire.blobs import MAX_TEXT, Files, only_media, read_file, read_inline
from alhena.serve.gemini.wire.fields import (
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
from alhena.serve.gemini.wire.settings.media_options import with_options
from alhena.serve.gemini.wire.signatures import read_signature

MAX_RESULT_PARTS = 16
CONTENT = ("text", "inlineData", "fileData", "functionCall", "functionResponse")
MEDIA_OPTIONS = ("mediaResolution", "videoMetadata")
# An application's own notes on a part (partMetadata) are not for the model.
OPTIONS = ("thought", "thoughtSignature", "partMetadata", *MEDIA_OPTIONS)
PARTS_NOT_OFFERED = (
    "executableCode", "codeExecutionResult", "toolCall", "toolResponse", "audioTranscription", "mediaProcessing", "speechMetadata",
    "documentMetadata", "spreadsheetMetadata", "audioMetadata",
)  # fmt: skip


def read_name(value: Any, where: str) -> str:
    """The name of a function."""
    name = read_string(value, where, 128)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.:-]*", name):
        raise WireError(400, f"{where} is {name!r}; letters, digits and _ . : - form the name of a function")
    return name


def _json_object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WireError(400, f"{where} must be an object")
    return value


def _call(value: Any, where: str) -> ToolCall:
    call = read_object(value, where, ("name", "args", "id", "partialArgs", "willContinue"))
    refuse(call, where, ("partialArgs", "willContinue"))
    identity = read_string(call["id"], f"{where}.id", 256) if "id" in call else None
    return ToolCall(
        read_name(call.get("name", ""), f"{where}.name"), _json_object(call.get("args", {}), f"{where}.args"), identity
    )


def _result(value: Any, where: str, files: Files) -> ToolResult:
    result = read_object(value, where, ("name", "response", "id", "parts", "willContinue", "scheduling"))
    refuse(result, where, ("willContinue", "scheduling"))
    identity = read_string(result["id"], f"{where}.id", 256) if "id" in result else None
    media: list[Media] = []
    for i, item in enumerate(read_list(result.get("parts", []), f"{where}.parts", MAX_RESULT_PARTS)):
        at = f"{where}.parts[{i}]"
        part = read_object(item, at, ("inlineData", "fileData", *MEDIA_OPTIONS))
        if ("inlineData" in part) == ("fileData" in part):
            raise WireError(400, f"{at} must have inlineData or fileData")
        name = "inlineData" if "inlineData" in part else "fileData"
        media += only_media(_media(part, name, at, files, None), path(at, name))
    response = _json_object(result.get("response", {}), f"{where}.response")
    return ToolResult(read_name(result.get("name", ""), f"{where}.name"), response, tuple(media), identity)


def _media(part: Fields, name: str, where: str, files: Files, resolution: Resolution | None) -> tuple[Part, ...]:
    """The parts of the bytes in a field, with the options beside it."""
    value, at = part[name], path(where, name)
    parts = read_inline(value, at) if name == "inlineData" else read_file(value, at, files)
    return with_options(parts, part, where, resolution)


def read_part(value: Any, where: str, files: Files, resolution: Resolution | None) -> tuple[Part, ...]:
    """The Parts of a part of a request: the pages of a PDF are several. Raises WireError.

    ``resolution`` is that of media that do not say theirs.
    """
    if isinstance(value, str):
        value = {"text": value}
    part = read_object(value, where, (*CONTENT, *OPTIONS, *PARTS_NOT_OFFERED))
    for name in PARTS_NOT_OFFERED:
        if name in part:
            raise not_offered(path(where, name))
    present = [name for name in CONTENT if name in part]
    signed = read_signature(part.get("thoughtSignature", ""), path(where, "thoughtSignature"))
    if not present and ("thoughtSignature" in part or "thought" in part):
        # The last event of a stream, and a thought whose text was not returned, have nothing else.
        present, part = ["text"], {**part, "text": ""}
    if len(present) != 1:
        raise WireError(
            400, f"{where} must have one of {', '.join(CONTENT)}; it has {', '.join(present or part) or 'nothing'}"
        )
    field, thought = present[0], read_flag(part, where, "thought")
    if thought and field != "text":
        raise WireError(400, f"{where}.thought is true; only a text can be a thought")
    _json_object(part.get("partMetadata", {}), path(where, "partMetadata"))
    if field in ("inlineData", "fileData"):
        return _media(part, field, where, files, resolution)
    if misplaced := next((name for name in MEDIA_OPTIONS if name in part), None):
        raise WireError(400, f"{path(where, misplaced)}: the part is no medium")
    if field == "text":
        text = read_string(part["text"], f"{where}.text", MAX_TEXT)
        return (Thought(text) if thought else Text(text),)
    if field == "functionResponse":
        return (_result(part[field], path(where, field), files),)
    call = _call(part[field], path(where, field))
    return (signed, call) if signed else (call,)


def write_part(part: Part) -> dict[str, Any]:
    """A part of a response."""
    if isinstance(part, Text | Thought):
        return {"text": part.text} | ({"thought": True} if isinstance(part, Thought) else {})
    if isinstance(part, ToolCall):
        identity = {} if part.id is None else {"id": part.id}
        return {"functionCall": {**identity, "name": part.name, "args": dict(part.arguments)}}
    if isinstance(part, Media):
        return {"inlineData": {"mimeType": part.mime, "data": base64.b64encode(part.data).decode()}}
    raise ValueError(f"an answer holds a result of the tool {part.name}")
