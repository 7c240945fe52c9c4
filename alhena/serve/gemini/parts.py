"""Parts of the Gemini wire format to Parts and back.

{"text": "…"}   {"inlineData": {"mimeType": "image/png", "data": "…"}}   {"text": "…", "thought": true}
{"functionCall": {"name": "f", "args": {…}}}   {"functionResponse": {"name": "f", "response": {…}}}
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from alhena.content import MEDIA, Media, Part, Text, Thought, ToolCall, ToolResult
from alhena.media import sniff
from alhena.serve.gemini.fields import (
    WireError,
    not_offered,
    path,
    read_flag,
    read_list,
    read_object,
    read_string,
    refuse,
)

MAX_TEXT = 1 << 20
MAX_DATA_BYTES = 64 << 20
MAX_RESULT_PARTS = 16
CONTENT = ("text", "inlineData", "functionCall", "functionResponse")
PARTS_NOT_OFFERED = (
    "fileData", "executableCode", "codeExecutionResult", "videoMetadata", "thoughtSignature", "mediaResolution", "toolCall",
    "toolResponse", "partMetadata",
)  # fmt: skip


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


def _blob(value: Any, where: str) -> Media:
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


def _result(value: Any, where: str) -> ToolResult:
    result = read_object(value, where, ("name", "response", "id", "parts", "willContinue", "scheduling"))
    refuse(result, where, ("willContinue", "scheduling"))
    identity = read_string(result["id"], f"{where}.id", 256) if "id" in result else None
    media = []
    for i, item in enumerate(read_list(result.get("parts", []), f"{where}.parts", MAX_RESULT_PARTS)):
        part = read_object(item, f"{where}.parts[{i}]", ("inlineData",))
        media.append(_blob(part.get("inlineData", {}), f"{where}.parts[{i}].inlineData"))
    response = _json_object(result.get("response", {}), f"{where}.response")
    return ToolResult(read_name(result.get("name", ""), f"{where}.name"), response, tuple(media), identity)


def read_part(value: Any, where: str) -> Part:
    """A part of a request. Raises WireError."""
    if isinstance(value, str):
        value = {"text": value}
    part = read_object(value, where, (*CONTENT, "thought", *PARTS_NOT_OFFERED))
    for name in PARTS_NOT_OFFERED:
        if name in part:
            raise not_offered(path(where, name))
    present = [name for name in CONTENT if name in part]
    if len(present) != 1:
        raise WireError(
            400, f"{where} must have one of {', '.join(CONTENT)}; it has {', '.join(present or part) or 'nothing'}"
        )
    field, thought = present[0], read_flag(part, where, "thought")
    if thought and field != "text":
        raise WireError(400, f"{where}.thought is true; only a text can be a thought")
    if field == "text":
        text = read_string(part["text"], f"{where}.text", MAX_TEXT)
        return Thought(text) if thought else Text(text)
    readers = {"inlineData": _blob, "functionCall": _call, "functionResponse": _result}
    return readers[field](part[field], path(where, field))


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
