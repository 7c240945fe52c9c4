"""The Gemini wire format to Content and back; no other module reads or writes it.

    {"contents": [{"role": "user", "parts": [{"text": "What is this?"}, {"inlineData": {"mimeType": "image/png", "data": "…"}}]}],
     "generationConfig": {"temperature": 0.2, "maxOutputTokens": 64}}

All sizes are bounded, unknown fields are refused, and every error names its field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from alhena.content import Content, Part, Role, Text, Thought, ToolCall, ToolResult, part_size
from alhena.media import check
from alhena.serve.engine import Answer, Prompt
from alhena.serve.gemini.fields import Fields, WireError, path, read_list, read_object, read_string, refuse
from alhena.serve.gemini.generation_config import Thinking, check_safety, read_sampling, read_thinking
from alhena.serve.gemini.parts import MAX_TEXT, read_part, write_part
from alhena.serve.gemini.tools import read_tools
from alhena.serve.sampler import Sampling
from alhena.tokens.text_stream import join

MAX_CONTENTS, MAX_PARTS, MAX_MEDIA = 512, 256, 256
FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS"}
REQUEST = (
    "contents", "systemInstruction", "generationConfig", "safetySettings", "model", "tools", "toolConfig",
)  # fmt: skip
# Refused unless they are empty.
NOT_OFFERED = ("cachedContent", "labels", "store", "serviceTier")
# Roles of the API; a result of a function may come in a turn of its own role or of the user.
ROLES = ("user", "model", "function", "tool")


@dataclass(frozen=True)
class GenerateRequest:
    """A parsed request. ``media`` holds the field and the part of each media item, in order."""

    prompt: Prompt
    sampling: Sampling
    media: tuple[tuple[str, Part], ...]
    thinking: Thinking = Thinking.OFF

    def locate_error(self, error: ValueError) -> WireError:
        """An error of encoding these contents as a WireError, with the field whose media do not decode."""
        for where, part in self.media:
            try:
                check(part)
            except ValueError as reason:
                return WireError(400, f"{where}: {reason}")
        return WireError(400, str(error))


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
        part = read_part(value, where)
        if isinstance(part, Text | Thought):
            self._characters += len(part.text)
        elif isinstance(part, ToolCall | ToolResult):
            self._characters += part_size(part)
            media = part.parts if isinstance(part, ToolResult) else ()
            self.media += [(f"{where}.functionResponse.parts[{i}]", medium) for i, medium in enumerate(media)]
        else:
            self.media.append((where + ".inlineData", part))
        if self._characters > MAX_TEXT or len(self.media) > MAX_MEDIA:
            raise WireError(
                400, f"{where}: a request has at most {MAX_TEXT:,} characters of text and {MAX_MEDIA} images, audio and video items"
            )  # fmt: skip
        return part


def _split_results(content: Content, where: str) -> list[Content]:
    """A turn as one of the role ``tool`` with its function responses, and one with the rest. Raises WireError for a misplaced part."""
    results = tuple(part for part in content.parts if isinstance(part, ToolResult))
    rest = tuple(part for part in content.parts if not isinstance(part, ToolResult))
    if content.role == "model" and results:
        raise WireError(400, f"{where}: a functionResponse stands in a turn of the user, not of the model")
    if content.role == "user" and any(isinstance(part, ToolCall | Thought) for part in rest):
        raise WireError(400, f"{where}: a functionCall or a thought stands in a turn of the model, not of the user")
    if not results:
        return [content]
    return [Content("tool", results), *([Content("user", rest)] if rest else [])]


def _merge(contents: Sequence[Content]) -> list[Content]:
    """Merges consecutive turns of one role: the SDK returns a streamed answer as one turn for each event."""
    out: list[Content] = []
    for content in contents:
        if out and out[-1].role == content.role:
            content = Content(content.role, (*out.pop().parts, *content.parts))
        out.append(content)
    return [replace(c, parts=join(c.parts)) if c.role == "model" else c for c in out]


def _conversation(request: Fields, reader: _Reader) -> tuple[Content, ...]:
    """All turns, after the system instruction."""
    if "contents" not in request:
        raise WireError(400, "contents is missing: it must hold at least one turn with parts")
    turns: list[Content] = []
    for i, content in enumerate(read_list(request["contents"], "contents", MAX_CONTENTS)):
        where = f"contents[{i}]"
        turns += _split_results(reader.content(content, where, ROLES), where)
    contents = _merge(turns)
    if not contents or not contents[-1].parts:
        raise WireError(400, "contents must hold at least one turn with parts; the last one has none")
    if "systemInstruction" in request:
        where = "systemInstruction"
        system = reader.content(request[where], where, ("user", "system", "model"))
        if not all(isinstance(part, Text) for part in system.parts):
            raise WireError(400, f"{where} must be text")
        if system.parts:
            contents.insert(0, Content("system", system.parts))
    return tuple(contents)


def _request(value: Any, where: str, model: str) -> Fields:
    request = read_object(value, where, (*REQUEST, *NOT_OFFERED))
    refuse(request, where, NOT_OFFERED)
    check_safety(request.get("safetySettings"))
    named = read_string(request.get("model", model), path(where, "model"), 256)
    if named.removeprefix("models/") != model:
        raise WireError(400, f"{path(where, 'model')} is {named!r}, but the URL names models/{model}")
    return request


def _generate_request(request: Fields, default: Sampling) -> GenerateRequest:
    reader, config = _Reader(), request.get("generationConfig")
    contents = _conversation(request, reader)
    thinking = read_thinking(config)
    prompt = Prompt(contents, read_tools(request), thinking not in (Thinking.OFF, Thinking.LIMITED))
    return GenerateRequest(prompt, read_sampling(config, default), tuple(reader.media), thinking)


def read_request(body: Any, model: str, default: Sampling) -> GenerateRequest:
    """A request to generate. Raises WireError."""
    request = _generate_request(_request(body, "", model), default)
    if request.prompt.contents[-1].role == "model":
        raise WireError(400, "contents ends with a turn of the model; the last turn must be one of the user")
    return request


def read_count_request(body: Any, model: str, default: Sampling) -> GenerateRequest:
    """A request to count tokens; the last turn may have either role. Raises WireError."""
    name = "generateContentRequest"
    outer = read_object(body, "", (name, *REQUEST, *NOT_OFFERED))
    if name in outer and len(outer) > 1:
        raise WireError(400, f"{name} and {next(field for field in outer if field != name)} exclude each other")
    return _generate_request(_request(outer.get(name, body), name if name in outer else "", model), default)


# ── Responses ───────────────────────────────────────────────────────────────────────────────────────────────────


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
        response["usageMetadata"] = {
            "promptTokenCount": answer.prompt_tokens,
            "candidatesTokenCount": answer.answer_tokens - answer.thought_tokens,
            **({"thoughtsTokenCount": answer.thought_tokens} if answer.thought_tokens else {}),
            "totalTokenCount": answer.prompt_tokens + answer.answer_tokens,
            "promptTokensDetails": [{"modality": kind, "tokenCount": count} for kind, count in prompt.items()],
        }
    return response
