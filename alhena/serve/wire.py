"""The Gemini wire format to Content and back: nowhere else does Alhena know it.

    {"contents": [{"role": "user", "parts": [{"text": "What is this?"}, {"inlineData": {"mimeType": "image/png", "data": "…"}}]}],
     "generationConfig": {"temperature": 0.2, "maxOutputTokens": 64}}

camelCase and snake_case may be mixed in one body, as the official SDK does; numbers may arrive as floats. Everything is bounded
and every error names the field it is about.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alhena.content import MEDIA, Audio, Content, Image, Part, Role, Text, Video
from alhena.media import decode_audio, decode_image, decode_video
from alhena.serve.engine import Answer
from alhena.serve.sampler import DRAWING, Sampling

MOST_CONTENTS, MOST_PARTS, MOST_TEXT = 512, 256, 1 << 20
CHECKS: dict[type, Callable[[bytes], object]] = {
    Image: decode_image,
    Audio: decode_audio,
    Video: lambda data: decode_video(data, 1),
}
REASONS = {"stop": "STOP", "length": "MAX_TOKENS"}


class WireError(Exception):
    """An error in Google's shape."""

    def __init__(self, code: int, message: str, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "status": self.status}}


def camel(name: str) -> str:
    """
    >>> camel("inline_data"), camel("inlineData")
    ('inlineData', 'inlineData')
    """
    return re.sub(r"_([a-z0-9])", lambda m: m.group(1).upper(), name)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise WireError(400, f"{where} must be an object")
    return {camel(str(key)): item for key, item in value.items()}


def _list(value: Any, where: str, most: int) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise WireError(400, f"{where} must be a list of at most {most} items")
    return value


def _blob(value: Any, where: str) -> Part:
    blob = _object(value, where)
    mime, data = blob.get("mimeType"), blob.get("data")
    if not isinstance(mime, str) or not isinstance(data, str):
        raise WireError(400, f"{where} needs mimeType and base64 data")
    kind = MEDIA.get(mime.split("/")[0])
    if kind is None:
        raise WireError(400, f"{where}.mimeType is {mime!r}; image/*, audio/* and video/* can be read")
    try:
        raw = base64.b64decode(data.replace("-", "+").replace("_", "/"), validate=True)
        CHECKS[kind](raw)
    except binascii.Error as error:
        raise WireError(400, f"{where}.data is not base64: {error}") from None
    except ValueError as error:
        raise WireError(400, f"{where}: {error}") from None
    return kind(raw, mime)


def _part(value: Any, where: str) -> Part:
    part = _object(value, where)
    if "text" in part:
        if not isinstance(part["text"], str) or len(part["text"]) > MOST_TEXT:
            raise WireError(400, f"{where}.text must be a string of at most {MOST_TEXT:,} characters")
        return Text(part["text"])
    if "inlineData" in part:
        return _blob(part["inlineData"], f"{where}.inlineData")
    raise WireError(400, f"{where} must have text or inlineData; it has {', '.join(part) or 'nothing'}")


def _content(value: Any, where: str) -> Content:
    content = _object(value, where)
    named = content.get("role") or "user"
    if named not in ("user", "model"):
        raise WireError(400, f"{where}.role is {named!r}; it must be user or model")
    role: Role = "model" if named == "model" else "user"
    parts = _list(content.get("parts", []), f"{where}.parts", MOST_PARTS)
    return Content(role, tuple(_part(p, f"{where}.parts[{i}]") for i, p in enumerate(parts)))


def read_contents(body: Any) -> list[Content]:
    """The conversation of a request; a system instruction goes before the first turn's words. Raises WireError."""
    request = _object(body, "the request")
    contents = [
        _content(c, f"contents[{i}]") for i, c in enumerate(_list(request.get("contents"), "contents", MOST_CONTENTS))
    ]
    if not contents or not contents[-1].parts:
        raise WireError(400, "contents must hold at least one turn with parts")
    if contents[-1].role != "user":
        raise WireError(400, f"contents[{len(contents) - 1}].role is model; the last turn must be the user's")
    if request.get("systemInstruction"):
        system = _content(request["systemInstruction"], "systemInstruction")
        contents[0] = Content(contents[0].role, (*system.parts, Text("\n"), *contents[0].parts))
    return contents


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(400, f"generationConfig.{name} must be a number")
    return float(value)


def _aspect(config: Mapping[str, Any], default: float | None) -> float | None:
    """Width over height of pictures to draw, of ``imageConfig.aspectRatio`` such as 16:9."""
    where = "generationConfig.imageConfig"
    ratio = _object(config.get("imageConfig") or {}, where).get("aspectRatio")
    if ratio is None:
        return default
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", ratio) if isinstance(ratio, str) else None
    if match is None or int(match[2]) == 0:
        raise WireError(400, f"{where}.aspectRatio is {ratio!r}; width and height are wanted, as in 16:9")
    return int(match[1]) / int(match[2])


def read_sampling(body: Any, default: Sampling) -> Sampling:
    """The generationConfig of a request. Raises WireError for what is out of range or not offered."""
    config = _object(_object(body, "the request").get("generationConfig") or {}, "generationConfig")
    if _number(config, "candidateCount", 1) != 1:
        raise WireError(400, "generationConfig.candidateCount must be 1: one answer is given")
    for name in ("responseSchema", "responseJsonSchema"):
        if config.get(name):
            raise WireError(400, f"generationConfig.{name} is not offered by this server")
    stop = _list(config.get("stopSequences") or [], "generationConfig.stopSequences", 5)
    if not all(isinstance(s, str) and s for s in stop):
        raise WireError(400, "generationConfig.stopSequences must be non-empty strings")
    modalities = [
        str(m).upper() for m in _list(config.get("responseModalities") or [], "generationConfig.responseModalities", 8)
    ]
    try:
        return Sampling(
            temperature=_number(config, "temperature", default.temperature),
            top_k=int(_number(config, "topK", default.top_k)),
            top_p=_number(config, "topP", default.top_p),
            seed=int(_number(config, "seed", default.seed)),
            max_tokens=int(_number(config, "maxOutputTokens", default.max_tokens)),
            guidance=DRAWING if "IMAGE" in modalities else default.guidance,
            image_first=modalities == ["IMAGE"],
            aspect=_aspect(config, default.aspect),
            stop=tuple(stop),
        )
    except ValueError as error:
        raise WireError(400, f"generationConfig: {error}") from None


def write_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    return {"inlineData": {"mimeType": part.mime, "data": base64.b64encode(part.data).decode()}}


def write_response(parts: Sequence[Part], model: str, answer: Answer | None) -> dict[str, Any]:
    """A response, or one event of a stream; the last one carries the :class:`Answer` with its reason and counts."""
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [write_part(p) for p in parts]}, "index": 0}
    response: dict[str, Any] = {"candidates": [candidate], "modelVersion": model}
    if answer:
        candidate["finishReason"] = REASONS[answer.finish]
        counts = answer.prompt_tokens, answer.answer_tokens
        response["usageMetadata"] = {
            "promptTokenCount": counts[0],
            "candidatesTokenCount": counts[1],
            "totalTokenCount": sum(counts),
        }
    return response
