"""Requests of the Gemini wire format to prompts and settings; alhena/serve/gemini/wire/responses.py writes the answers.

    {"contents": [{"role": "user", "parts": [{"text": "What is this?"}, {"inlineData": {"mimeType": "image/png", "data": "…"}}]}],
     "generationConfig": {"temperature": 0.2, "maxOutputTokens": 64}}

All sizes are bounded, unknown fields are refused, and every error names its field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from alhena.content import Content, Part, Resolution, Role, Text, Thought, Tool, ToolCall, ToolResult, part_size
from alhena.media import check
from alhena.serve.decoding.sampling.sampler import OutputFormat, Sampling
from alhena.serve.engine import Prompt
from alhena.serve.gemini.wire.blobs import MAX_TEXT, Files, NoFiles
from alhena.serve.gemini.wire.fields import Fields, WireError, path, read_list, read_object, read_string, refuse
from alhena.serve.gemini.wire.parts import read_part
from alhena.serve.gemini.wire.settings.generation_config import (
    WHERE,
    read_candidates,
    read_config,
    read_resolution,
    read_sampling,
)
from alhena.serve.gemini.wire.settings.safety_settings import Ratings, Thresholds, rate_prompt, read_thresholds
from alhena.serve.gemini.wire.settings.thinking import Thinking, read_thinking
from alhena.serve.gemini.wire.settings.tools import read_tools
from alhena.serve.safety import Classify
from alhena.tokens.text.text_stream import join

MAX_CONTENTS, MAX_PARTS, MAX_MEDIA = 512, 256, 256
REQUEST = (
    "contents", "systemInstruction", "generationConfig", "safetySettings", "model", "tools", "toolConfig", "cachedContent", "labels",
    "serviceTier",
)  # fmt: skip
# Refused unless they are empty.
NOT_OFFERED = ("store",)
# Fields that a cached content has, and a request that names it may not.
CACHED = ("systemInstruction", "tools", "toolConfig")
# Roles of the API; a result of a function may come in a turn of its own role or of the user.
ROLES = ("user", "model", "function", "tool")
MAX_LABELS = 64
TIERS = ("", "SERVICE_TIER_UNSPECIFIED", "UNSPECIFIED", "STANDARD", "AUTO", "DEFAULT")


@runtime_checkable
class Caches(Protocol):
    """The cached contents of this server."""

    def open(self, name: str) -> tuple[Fields, int]:
        """The body of ``cachedContents/ID`` with contents and CACHED, and the number of its tokens. Raises WireError."""
        ...


class NoCaches:
    """A server without cached contents."""

    def open(self, name: str) -> tuple[Fields, int]:
        raise WireError(403, f"{name} does not exist on this server, or has expired", "PERMISSION_DENIED")


@dataclass(frozen=True)
class Served:
    """What requests refer to: how the model is sampled by default, and the files and cached contents of the server."""

    sampling: Sampling = Sampling()
    files: Files = NoFiles()
    caches: Caches = NoCaches()


@dataclass(frozen=True)
class GenerateRequest:
    """A parsed request. ``media`` holds the field and the part of each media item, in order."""

    prompt: Prompt
    sampling: Sampling
    media: tuple[tuple[str, Part], ...]
    thinking: Thinking = Thinking()
    candidates: int = 1
    thresholds: Thresholds = Thresholds()
    # Of the cached content that the prompt begins with.
    cached_tokens: int = 0
    # Of the prompt.
    ratings: Ratings = Ratings()

    def for_model(self, thinks: bool, classify: Classify | None = None) -> GenerateRequest:
        """The request as a model answers it, and its prompt rated. Raises WireError where the model cannot think or nothing can be rated."""
        thinking = self.thinking.for_model(thinks)
        self.thresholds.check(classify)
        return replace(
            self,
            prompt=replace(self.prompt, thinking=thinking.is_on),
            sampling=replace(self.sampling, thinking_budget=thinking.budget),
            thinking=thinking,
            ratings=rate_prompt(classify, self.thresholds, self.prompt.contents),
        )

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

    def __init__(self, files: Files, resolution: Resolution | None) -> None:
        self.media: list[tuple[str, Part]] = []
        self._files, self._resolution, self._characters = files, resolution, 0

    def content(self, value: Any, where: str, roles: Sequence[str]) -> Content:
        if isinstance(value, str):
            value = {"parts": [{"text": value}]}
        content = read_object(value, where, ("role", "parts"))
        role = read_string(content.get("role", ""), f"{where}.role", 64) or "user"
        if role not in roles:
            hint = "; use systemInstruction" if role == "system" else ""
            raise WireError(400, f"{where}.role is {role!r}; it must be {' or '.join(roles)}{hint}")
        parts = read_list(content.get("parts", []), f"{where}.parts", MAX_PARTS)
        read = [each for i, part in enumerate(parts) for each in self._parts(part, f"{where}.parts[{i}]")]
        named: Role = "model" if role == "model" else "user"
        return Content(named, tuple(read))

    def _parts(self, value: Any, where: str) -> tuple[Part, ...]:
        parts = read_part(value, where, self._files, self._resolution)
        field = where + (
            ".fileData" if isinstance(value, dict) and {"fileData", "file_data"} & value.keys() else ".inlineData"
        )
        for part in parts:
            if isinstance(part, Text | Thought):
                self._characters += len(part.text)
            elif isinstance(part, ToolCall | ToolResult):
                self._characters += part_size(part)
                media = part.parts if isinstance(part, ToolResult) else ()
                self.media += [(f"{where}.functionResponse.parts[{i}]", medium) for i, medium in enumerate(media)]
            else:
                self.media.append((field, part))
        if self._characters > MAX_TEXT or len(self.media) > MAX_MEDIA:
            raise WireError(
                400, f"{where}: a request has at most {MAX_TEXT:,} characters of text and {MAX_MEDIA} images, audio and video items"
            )  # fmt: skip
        return parts

    def turns(self, value: Any, where: str) -> list[Content]:
        """Turns, those with results of functions split."""
        turns: list[Content] = []
        for i, content in enumerate(read_list(value, where, MAX_CONTENTS)):
            turns += _split_results(self.content(content, f"{where}[{i}]", ROLES), f"{where}[{i}]")
        return turns


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


def _without_restored(parts: Sequence[Part]) -> list[Part]:
    """Parts without the thoughts that signatures restore where they are there anyway."""
    out: list[Part] = []
    thought = ""
    for part, following in zip(parts, (*parts[1:], None), strict=True):
        if isinstance(part, Thought) and isinstance(following, ToolCall) and part.text == thought:
            continue
        thought = thought + part.text if isinstance(part, Thought) else "" if isinstance(part, ToolCall) else thought
        out.append(part)
    return out


def _merge(contents: Sequence[Content]) -> list[Content]:
    """Merges consecutive turns of one role: the SDK returns a streamed answer as one turn for each event."""
    out: list[list[Content]] = []
    for content in contents:
        if out and out[-1][0].role == content.role:
            out[-1].append(content)
        else:
            out.append([content])
    merged = [Content(turns[0].role, tuple(part for turn in turns for part in turn.parts)) for turns in out]
    return [replace(c, parts=join(_without_restored(c.parts))) if c.role == "model" else c for c in merged]


def _conversation(request: Fields, cached: Fields, reader: _Reader) -> tuple[Content, ...]:
    """All turns, those of the cached content first, after the system instruction."""
    if "contents" not in request:
        raise WireError(400, "contents is missing: it must hold at least one turn with parts")
    before = reader.turns(cached.get("contents", []), "cachedContent.contents")
    contents = _merge([*before, *reader.turns(request["contents"], "contents")])
    if not contents or not contents[-1].parts:
        raise WireError(400, "contents must hold at least one turn with parts; the last one has none")
    where = "systemInstruction"
    if where in cached or where in request:
        system = reader.content({**request, **cached}[where], where, ("user", "system", "model"))
        if not all(isinstance(part, Text) for part in system.parts):
            raise WireError(400, f"{where} must be text")
        if system.parts:
            contents.insert(0, Content("system", system.parts))
    return tuple(contents)


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────


def _request(value: Any, where: str, model: str) -> Fields:
    request = read_object(value, where, (*REQUEST, *NOT_OFFERED))
    refuse(request, where, NOT_OFFERED)
    named = read_string(request.get("model", model), path(where, "model"), 256)
    if named.removeprefix("models/") != model:
        raise WireError(400, f"{path(where, 'model')} is {named!r}, but the URL names models/{model}")
    _check_administrative(request, where)
    return request


def _check_administrative(request: Fields, where: str) -> None:
    """Labels are notes for a bill, and mean nothing here; a tier of service must be the only one that there is."""
    labels = request.get("labels", {})
    if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
        raise WireError(400, f"{path(where, 'labels')} must be an object of at most {MAX_LABELS} strings")
    for name, value in labels.items():
        read_string(value, path(where, f"labels.{name[:64]}"), 256)
    tier = read_string(request.get("serviceTier", ""), path(where, "serviceTier"), 64)
    if tier.upper() not in TIERS:
        raise WireError(400, f"{path(where, 'serviceTier')} is {tier!r}; this server has the standard tier only")


def _cached(request: Fields, served: Served) -> tuple[Fields, int]:
    """The cached content that a request begins with, and the number of its tokens."""
    name = read_string(request.get("cachedContent", ""), "cachedContent", 256)
    if not name:
        return {}, 0
    if present := next((field for field in CACHED if request.get(field)), None):
        raise WireError(400, f"{present} and cachedContent exclude each other: put {present} into the cached content")
    return served.caches.open(name)


def _output(form: OutputFormat | None, tools: Sequence[Tool], calls: OutputFormat | None) -> OutputFormat | None:
    """What an answer must be: of a form, calls of functions, or either of them. Raises WireError."""
    if form is None or not tools:
        return form or calls
    if calls and not calls.text_allowed:
        raise WireError(400, f"{WHERE}.responseMimeType and the mode ANY of function calling exclude each other")
    return replace(form, calls=calls.calls if calls else tuple(tool.name for tool in tools), text_allowed=True)


def _generate_request(request: Fields, served: Served) -> GenerateRequest:
    config = read_config(request.get("generationConfig"))
    sampling, thinking = read_sampling(config, served.sampling), read_thinking(config)
    cached, cached_tokens = _cached(request, served)
    tools, calls = read_tools({**request, **cached})
    reader = _Reader(served.files, read_resolution(config))
    contents = _conversation(request, cached, reader)
    return GenerateRequest(
        Prompt(contents, tools, thinking.is_on),
        replace(sampling, output=_output(sampling.output, tools, calls)),
        tuple(reader.media),
        thinking,
        read_candidates(config),
        read_thresholds(request.get("safetySettings")),
        cached_tokens,
    )


def read_request(body: Any, model: str, served: Served) -> GenerateRequest:
    """A request to generate. Raises WireError."""
    request = _generate_request(_request(body, "", model), served)
    if request.prompt.contents[-1].role == "model":
        raise WireError(400, "contents ends with a turn of the model; the last turn must be one of the user")
    return request


def read_count_request(body: Any, model: str, served: Served) -> GenerateRequest:
    """A request to count tokens; the last turn may have either role. Raises WireError."""
    name = "generateContentRequest"
    outer = read_object(body, "", (name, *REQUEST, *NOT_OFFERED))
    if name in outer and len(outer) > 1:
        raise WireError(400, f"{name} and {next(field for field in outer if field != name)} exclude each other")
    return _generate_request(_request(outer.get(name, body), name if name in outer else "", model), served)
