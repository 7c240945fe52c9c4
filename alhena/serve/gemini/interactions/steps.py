"""Steps of the Interactions API as contents of generateContent: what the user gave, what the model wrote, calls and their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pydantic

from alhena.serve.gemini.interactions import sdk
from alhena.serve.gemini.wire.blobs import MAX_TEXT
from alhena.serve.gemini.wire.fields import (
    Fields,
    WireError,
    not_offered,
    path,
    read_flag,
    read_list,
    read_string,
    refuse,
)
from alhena.serve.gemini.wire.request import MAX_CONTENTS, MAX_PARTS
from alhena.serve.gemini.wire.translation import Translation, read_exactly

Json = dict[str, Any]
STEPS = ("user_input", "model_output", "thought", "function_call", "function_result")
# The SDK's type of each medium.
MEDIA = {"image": "ImageContent", "audio": "AudioContent", "video": "VideoContent", "document": "DocumentContent"}
# Of raw audio; a video's name is for other APIs.
MEDIA_NOT_OFFERED = ("channels", "sample_rate", "name")


@cache
def names(kind: type[pydantic.BaseModel]) -> tuple[str, ...]:
    """The names of a type's fields on the wire."""
    return tuple(field.alias or name for name, field in kind.model_fields.items())


def kind_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, Mapping) else None


# ── The input ───────────────────────────────────────────────────────────────────────────────────────────────────


def read_input(value: Any) -> list[Json]:
    """The input as steps: a text, a content, contents, or steps. Their fields are read when they are translated."""
    items = read_list(value, "input", MAX_CONTENTS)
    if all(kind_of(item) in STEPS for item in items) and items:
        return [dict(item) for item in items]
    if any(kind_of(item) in STEPS for item in items):
        raise WireError(400, "input has steps and contents; it must be a list of either")
    contents = [{"type": "text", "text": item} if isinstance(item, str) else item for item in items]
    return [{"type": "user_input", "content": contents}]


def write_contents(out: Translation, history: list[Json], steps: list[Json], is_steps: bool) -> None:
    """Fills ``contents``: the history, then the steps of the input, which ``is_steps`` says it has itself. Raises WireError."""
    writer = _Writer(out)
    for step in history:
        writer.step(step, "previous_interaction_id")
    for i, step in enumerate(steps):
        writer.step(step, f"input[{i}]" if is_steps else "input")
    out.body["contents"] = writer.contents


class _Writer:
    """Writes steps as contents; remembers the functions that were called, by the ids of the calls."""

    def __init__(self, out: Translation) -> None:
        self.contents: list[Json] = []
        self._out, self._names = out, dict[str, str]()
        # Of the thought before the next call.
        self._signature = ""

    def step(self, value: Json, where: str) -> None:
        read: Mapping[str, Callable[[Json, str], None]] = {
            "user_input": self._user_input, "model_output": self._model_output, "thought": self._thought,
            "function_call": self._call, "function_result": self._result,
        }  # fmt: skip
        read[value["type"]](value, where)

    def _add(self, role: str, parts: list[Json], paths: list[str]) -> None:
        if not parts:
            return
        target = f"contents[{len(self.contents)}]"
        self._out.paths |= {target: paths[0]} | {f"{target}.parts[{i}]": at for i, at in enumerate(paths)}
        self.contents.append({"role": role, "parts": parts})

    def _content(self, step: Fields, where: str, name: str = "content") -> tuple[list[Json], list[str]]:
        # A request with contents in place of steps.
        at = where if where == "input" else path(where, name)
        items = read_list(step.get(name, []), at, MAX_PARTS)
        paths = [f"{at}[{i}]" for i in range(len(items))]
        return [read_content(item, at) for item, at in zip(items, paths, strict=True)], paths

    def _user_input(self, value: Json, where: str) -> None:
        step = read_exactly(value, where, names(sdk.UserInputStep))
        self._add("user", *self._content(step, where))

    def _model_output(self, value: Json, where: str) -> None:
        step = read_exactly(value, where, names(sdk.ModelOutputStep))
        refuse(step, where, ("error",))
        self._add("model", *self._content(step, where))

    def _thought(self, value: Json, where: str) -> None:
        """A thought's summary; its signature goes with the next call."""
        step = read_exactly(value, where, names(sdk.ThoughtStep))
        self._signature = read_string(step.get("signature", ""), f"{where}.signature", 2 * MAX_TEXT)
        parts, paths = self._content(step, where, "summary")
        if any("text" not in part for part in parts):
            raise not_offered(f"{where}.summary", " but as text")
        self._add("model", [part | {"thought": True} for part in parts], paths)

    def _call(self, value: Json, where: str) -> None:
        step = read_exactly(value, where, names(sdk.FunctionCallStep))
        identity = read_string(step.get("id", ""), f"{where}.id", 256)
        name = read_string(step.get("name", ""), f"{where}.name", 128)
        self._names[identity] = name
        call = {"name": name, "args": step.get("arguments", {}), **({"id": identity} if identity else {})}
        signed = {"thoughtSignature": self._signature} if self._signature else {}
        self._signature = ""
        self._add("model", [{"functionCall": call, **signed}], [where])

    def _result(self, value: Json, where: str) -> None:
        step = read_exactly(value, where, names(sdk.FunctionResultStep))
        identity = read_string(step.get("call_id", ""), f"{where}.call_id", 256)
        name = read_string(step.get("name", self._names.get(identity, "")), f"{where}.name", 128)
        if not name:
            raise WireError(400, f"{where}.call_id is {identity!r}; no earlier step has a function_call of that id")
        response, media = self._returned(step.get("result", {}), f"{where}.result")
        if read_flag(step, where, "is_error"):
            response = {"error": response.get("result", response)}
        result = {"name": name, "response": response, **({"id": identity} if identity else {})}
        self._add("user", [{"functionResponse": result | ({"parts": media} if media else {})}], [where])

    def _returned(self, value: Any, where: str) -> tuple[Json, list[Json]]:
        """What a function returned as an object, and its media."""
        if isinstance(value, str):
            return {"result": read_string(value, where, MAX_TEXT)}, []
        if isinstance(value, Mapping) and kind_of(value) not in ("text", *MEDIA):
            return dict(value), []
        items = read_list(value, where, MAX_PARTS)
        parts = [read_content(item, f"{where}[{i}]") for i, item in enumerate(items)]
        texts = [part["text"] for part in parts if "text" in part]
        return {"result": "".join(texts)} if texts else {}, [part for part in parts if "text" not in part]


# ── Contents ────────────────────────────────────────────────────────────────────────────────────────────────────


def read_content(value: Any, where: str) -> Json:
    """A content as a part of generateContent. Raises WireError."""
    kind = kind_of(value)
    if kind == "text":
        content = read_exactly(value, where, names(sdk.TextContent))
        refuse(content, where, ("annotations",))
        return {"text": read_string(content.get("text", ""), f"{where}.text", MAX_TEXT)}
    if kind not in MEDIA:
        raise WireError(400, f"{where}.type is {str(kind)[:60]!r}; there are text, {', '.join(MEDIA)}")
    content = read_exactly(value, where, names(getattr(sdk, MEDIA[kind])))
    refuse(content, where, MEDIA_NOT_OFFERED)
    if ("data" in content) == ("uri" in content):
        raise WireError(400, f"{where} must have either data or uri")
    mime = {"mimeType": content["mime_type"]} if "mime_type" in content else {}
    if "uri" in content:
        part: Json = {"fileData": {**mime, "fileUri": content["uri"]}}
    else:
        part = {"inlineData": {**mime, "data": content["data"]}}
    if "resolution" in content:
        resolution = read_string(content["resolution"], f"{where}.resolution", 32)
        part["mediaResolution"] = {"level": f"MEDIA_RESOLUTION_{resolution.upper()}"}
    if "processing" in content:
        part["videoMetadata"] = _processing(content["processing"], f"{where}.processing", kind)
    return part


def _processing(value: Any, where: str, kind: str) -> Json:
    """Frames a second and time range of a video."""
    if kind != "video":
        raise not_offered(where, " but for video")
    fields = read_exactly(value, where, names(sdk.StaticMediaProcessing))
    refuse(fields, where, ("content_layers",))
    if fields.get("type", "static") != "static":
        raise not_offered(f"{where}.type", f" as {str(fields['type'])[:60]!r}; there is static")
    named = {"fps": "fps", "start_offset": "startOffset", "end_offset": "endOffset"}
    return {target: fields[name] for name, target in named.items() if name in fields}
