"""Messages of a chat completion as contents of the Gemini API.

    {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                 {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}]}

Instructions (roles ``system`` and ``developer``) become one system instruction, wherever they stand. URLs are never fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alhena.serve.gemini.wire.blobs import MAX_DATA_BYTES, MAX_TEXT
from alhena.serve.gemini.wire.fields import Fields, WireError, not_offered, parse_json, read_list, read_string
from alhena.serve.gemini.wire.request import MAX_CONTENTS, MAX_PARTS
from alhena.serve.gemini.wire.translation import Translation, read_exactly

Json = dict[str, Any]
# Fields of a message by its role.
ROLES: Mapping[str, tuple[str, ...]] = {
    "system": ("content", "name"),
    "developer": ("content", "name"),
    "user": ("content", "name"),
    "assistant": ("content", "name", "tool_calls", "refusal", "reasoning_content", "audio", "function_call", "annotations"),
    "tool": ("content", "name", "tool_call_id"),
}  # fmt: skip
# Fields of a content part by its type.
PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image_url": ("image_url",),
    "input_audio": ("input_audio",),
    "file": ("file",),
    "refusal": ("refusal",),
}
RESOLUTIONS = {"low": "MEDIA_RESOLUTION_LOW", "high": "MEDIA_RESOLUTION_HIGH", "auto": None}
AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "aac": "audio/aac"}


class MessageReader:
    """Translates the messages of one request; remembers the functions that were called, by the ids of the calls."""

    def __init__(self, out: Translation) -> None:
        self._out, self._names = out, dict[str, str]()

    def read(self, value: Any) -> None:
        """Fills ``contents`` and ``systemInstruction``. Raises WireError."""
        contents: list[Json] = []
        instructions: list[Json] = []
        for i, item in enumerate(read_list(value, "messages", MAX_CONTENTS)):
            where = f"messages[{i}]"
            role = item.get("role") if isinstance(item, Mapping) else None
            if role == "function":
                raise not_offered(f"{where}.role", " as 'function'; use the role 'tool'")
            if not isinstance(role, str) or role not in ROLES:
                raise WireError(400, f"{where}.role is {role!r}; there are {', '.join(ROLES)}")
            message = read_exactly(item, where, ("role", *ROLES[role]))
            if "name" in message and role != "tool":
                raise not_offered(f"{where}.name", ": prompts do not distinguish participants")
            if role in ("system", "developer"):
                instructions += self._parts(message, where, f"systemInstruction.parts[{len(instructions)}]")
                continue
            target = f"contents[{len(contents)}]"
            self._out.paths[target] = where
            turn = {"user": self._user, "assistant": self._assistant, "tool": self._tool}[role](message, where, target)
            contents.append({"role": "model" if role == "assistant" else "user", "parts": turn})
        self._out.body["contents"] = contents
        if instructions:
            self._out.body["systemInstruction"] = {"parts": instructions}

    def _user(self, message: Fields, where: str, target: str) -> list[Json]:
        return self._parts(message, where, f"{target}.parts[0]")

    def _parts(self, message: Fields, where: str, first: str) -> list[Json]:
        """The parts of a message's content; ``first`` is the path of the first one in the body."""
        content, where = message.get("content"), f"{where}.content"
        if content is None:
            return []
        if isinstance(content, str):
            self._out.paths[first] = where
            return [{"text": content}]
        parts = []
        prefix, _, number = first.removesuffix("]").rpartition("[")
        for j, item in enumerate(read_list(content, where, MAX_PARTS)):
            self._out.paths[f"{prefix}[{int(number) + j}]"] = f"{where}[{j}]"
            parts.append(_read_part(item, f"{where}[{j}]"))
        return parts

    def _assistant(self, message: Fields, where: str, target: str) -> list[Json]:
        for name in ("audio", "function_call"):
            if message.get(name):
                raise not_offered(f"{where}.{name}", "; use tool_calls" if name == "function_call" else "")
        if message.get("annotations"):
            raise not_offered(f"{where}.annotations")
        parts: list[Json] = []
        if message.get("reasoning_content"):
            parts.append({"text": message["reasoning_content"], "thought": True})
        parts += self._parts(message, where, f"{target}.parts[{len(parts)}]")
        if message.get("refusal"):
            parts.append({"text": read_string(message["refusal"], f"{where}.refusal", MAX_TEXT)})
        for j, call in enumerate(read_list(message.get("tool_calls", []), f"{where}.tool_calls", MAX_PARTS)):
            self._out.paths[f"{target}.parts[{len(parts)}]"] = f"{where}.tool_calls[{j}]"
            parts.append(self._call(call, f"{where}.tool_calls[{j}]"))
        return parts

    def _call(self, value: Any, where: str) -> Json:
        call = read_exactly(value, where, ("id", "type", "function", "index", "extra_content"))
        if call.get("type", "function") != "function":
            raise not_offered(f"{where}.type", f" as {call['type']!r}; it must be 'function'")
        function = read_exactly(call.get("function"), f"{where}.function", ("name", "arguments"))
        text = read_string(function.get("arguments", ""), f"{where}.function.arguments", MAX_TEXT)
        arguments = _parsed(text, f"{where}.function.arguments") if text.strip() else {}
        identity = read_string(call.get("id", ""), f"{where}.id", 256)
        name = read_string(function.get("name", ""), f"{where}.function.name", 128)
        self._names[identity] = name
        written = {"functionCall": {"name": name, "args": arguments, **({"id": identity} if identity else {})}}
        return written | _signature(call.get("extra_content", {}), f"{where}.extra_content")

    def _tool(self, message: Fields, where: str, target: str) -> list[Json]:
        identity = read_string(message.get("tool_call_id", ""), f"{where}.tool_call_id", 256)
        name = self._names.get(identity)
        if name is None:
            raise WireError(400, f"{where}.tool_call_id is {identity!r}; no earlier message has a tool call of that id")
        parts = self._parts(message, where, f"{target}.parts[0]")
        texts = [part["text"] for part in parts if "text" in part]
        if len(texts) < len(parts):
            raise WireError(400, f"{where}.content: the result of a tool is text")
        return [{"functionResponse": {"name": name, "id": identity, "response": result_object("".join(texts))}}]


def _signature(value: Any, where: str) -> Json:
    """The signature of the thought before a call, where Google's API for OpenAI's clients has it."""
    google = read_exactly(
        read_exactly(value, where, ("google",)).get("google", {}), f"{where}.google", ("thought_signature",)
    )
    return {"thoughtSignature": google["thought_signature"]} if google else {}


def result_object(text: str) -> Json:
    """What a tool returned as an object: its JSON where it is an object, else the text as its field ``result``.

    >>> result_object('{"degrees": 7}'), result_object("7 degrees")
    ({'degrees': 7}, {'result': '7 degrees'})
    """
    try:
        value = parse_json(text.encode())
    except (WireError, UnicodeEncodeError):
        return {"result": text}
    return value if isinstance(value, dict) else {"result": text}


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text.encode())
    except (WireError, UnicodeEncodeError) as error:
        raise WireError(400, f"{where} is not JSON: {json.dumps(text[:60])} ({error})"[:400]) from None


def _read_part(value: Any, where: str) -> Json:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in PARTS:
        raise WireError(400, f"{where}.type is {kind!r}; there are {', '.join(PARTS)}")
    part = read_exactly(value, where, ("type", *PARTS[kind]))
    if kind not in part:
        raise WireError(400, f"{where}.{kind} is missing")
    readers = {"image_url": _image, "input_audio": _audio, "file": _file}
    if kind in readers:
        return readers[kind](part[kind], f"{where}.{kind}")
    return {"text": read_string(part[kind], f"{where}.{kind}", MAX_TEXT)}


def _data_url(value: Any, where: str) -> Json:
    url = read_string(value, where, 2 * MAX_DATA_BYTES)
    if not url.startswith("data:"):
        raise WireError(
            400, f"{where} is {url[:60]!r}; it must be a data: URL with base64, other URLs are never fetched"
        )
    head = url[5:].partition(",")[0]
    return {"inlineData": {"mimeType": head.split(";")[0], "data": url}}


def _image(value: Any, where: str) -> Json:
    image = read_exactly({"url": value} if isinstance(value, str) else value, where, ("url", "detail"))
    detail = image.get("detail", "auto")
    if detail not in RESOLUTIONS:
        raise WireError(400, f"{where}.detail is {str(detail)[:60]!r}; there are {', '.join(RESOLUTIONS)}")
    part = _data_url(image.get("url", ""), f"{where}.url")
    resolution = RESOLUTIONS[detail]
    return part if resolution is None else part | {"mediaResolution": {"level": resolution}}


def _audio(value: Any, where: str) -> Json:
    audio = read_exactly(value, where, ("data", "format"))
    format = audio.get("format")
    if format not in AUDIO:
        raise WireError(400, f"{where}.format is {str(format)[:60]!r}; there are {', '.join(AUDIO)}")
    return {"inlineData": {"mimeType": AUDIO[format], "data": audio.get("data")}}


def _file(value: Any, where: str) -> Json:
    file = read_exactly(value, where, ("file_data", "file_id", "filename"))
    if "file_id" in file:
        raise not_offered(f"{where}.file_id", "; give the bytes as file_data")
    read_string(file.get("filename", ""), f"{where}.filename", 1024)
    return _data_url(file.get("file_data", ""), f"{where}.file_data")
