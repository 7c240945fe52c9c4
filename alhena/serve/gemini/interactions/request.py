"""A request of the Interactions API as a body of generateContent.

The names of all fields are those of the SDK's types; one that this server does not know or cannot honor is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alhena.serve.gemini.interactions import sdk
from alhena.serve.gemini.interactions.steps import STEPS, Json, kind_of, names, read_input, write_contents
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
from alhena.serve.gemini.wire.settings.tools import MAX_FUNCTIONS
from alhena.serve.gemini.wire.translation import Translation, read_exactly

# Fields of a request for an agent; there are none here.
AGENT = ("agent", "agent_config")
NOT_OFFERED = ("continuation_token", "environment", "webhook_config")
CONFIG_NOT_OFFERED = ("speech_config", "transcription_config", "video_config")
MAX_LABELS, MAX_LABEL = 64, 63
# Fields of generationConfig by those of generation_config.
NUMBERS = {
    "temperature": "temperature", "top_p": "topP", "seed": "seed", "max_output_tokens": "maxOutputTokens",
    "stop_sequences": "stopSequences",
}  # fmt: skip
MODES = ("auto", "any", "none", "validated")
# Of the request, what the resource shows.
SHOWN = (
    "system_instruction", "tools", "generation_config", "response_format", "response_mime_type", "response_modalities",
    "safety_settings", "labels", "cached_content", "previous_interaction_id", "service_tier",
)  # fmt: skip


@dataclass(frozen=True)
class InteractionRequest:
    """A parsed request: its steps of input, and what the resource shows of it."""

    model: str
    input: list[Json]
    shown: Json
    previous: str | None
    store: bool
    background: bool
    stream: bool


def read_interaction(value: Any) -> tuple[InteractionRequest, Fields]:
    """A request and its fields, the input not yet translated. Raises WireError."""
    fields = read_exactly(value, "", (*names(sdk.CreateModelInteraction), *AGENT))
    for name in AGENT:
        if name in fields:
            raise not_offered(name, ": it has models and no agents; name a model")
    refuse(fields, "", NOT_OFFERED)
    if fields.get("service_tier", "standard") != "standard":
        raise not_offered("service_tier", " but as standard")
    if "input" not in fields:
        raise WireError(400, "input is missing: it must be a text, contents or steps")
    _check_labels(fields.get("labels", {}))
    store, background = read_flag({"store": True, **fields}, "", "store"), read_flag(fields, "", "background")
    previous = read_string(fields.get("previous_interaction_id", ""), "previous_interaction_id", 128) or None
    if background and not store:
        raise WireError(400, "background requires store: nobody could get an interaction that is not stored")
    model = read_string(fields.get("model", ""), "model", 256).removeprefix("models/")
    if not model:
        raise WireError(400, "model is missing")
    shown = {name: fields[name] for name in SHOWN if name in fields}
    stream = read_flag(fields, "", "stream")
    return InteractionRequest(model, read_input(fields["input"]), shown, previous, store, background, stream), fields


def _check_labels(value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
        raise WireError(400, f"labels must be an object of at most {MAX_LABELS} texts")
    for key, text in value.items():
        read_string(key, "labels", MAX_LABEL)
        read_string(text, f"labels.{key}", MAX_LABEL)


def translate(fields: Fields, history: list[Json], steps: list[Json]) -> Translation:
    """The body of generateContent for a request: its input after the steps of earlier interactions."""
    out = Translation()
    value = fields["input"]
    first = value[0] if isinstance(value, list) and value else value
    write_contents(out, history, steps, kind_of(first) in STEPS)
    if "system_instruction" in fields:
        text = read_string(fields["system_instruction"], "system_instruction", MAX_TEXT)
        out.body["systemInstruction"] = {"parts": [{"text": text}]}
    config = _generation_config(fields, out)
    _read_formats(fields, config)
    out.body["generationConfig"] = config
    _read_tools(fields, out)
    if "cached_content" in fields:
        out.body["cachedContent"] = fields["cached_content"]
    if "safety_settings" in fields:
        out.body["safetySettings"] = _safety(fields["safety_settings"])
    out.paths |= {
        "contents": "input", "systemInstruction": "system_instruction", "cachedContent": "cached_content",
        "safetySettings": "safety_settings", "generationConfig.responseMimeType": "response_format",
        "generationConfig.responseJsonSchema": "response_format.schema", "generationConfig.imageConfig": "response_format",
        "generationConfig.responseModalities": "response_modalities", "generationConfig": "generation_config",
    }  # fmt: skip
    return out


def _generation_config(fields: Fields, out: Translation) -> Json:
    where = "generation_config"
    config = read_exactly(fields.get(where, {}), where, names(sdk.GenerationConfig))
    refuse(config, where, CONFIG_NOT_OFFERED)
    written: Json = {target: config[name] for name, target in NUMBERS.items() if name in config}
    out.paths |= {f"generationConfig.{target}": path(where, name) for name, target in NUMBERS.items()}
    thinking: Json = {}
    if "thinking_level" in config:
        level = read_string(config["thinking_level"], f"{where}.thinking_level", 32)
        # The API that this is translated to has no higher one.
        thinking["thinkingLevel"] = "HIGH" if level == "xhigh" else level.upper()
    summaries = config.get("thinking_summaries", "none")
    if summaries not in ("auto", "none"):
        raise WireError(400, f"{where}.thinking_summaries is {str(summaries)[:60]!r}; there are auto and none")
    if summaries == "auto":
        thinking["includeThoughts"] = True
    if thinking:
        written["thinkingConfig"] = thinking
        out.paths["generationConfig.thinkingConfig.thinkingLevel"] = f"{where}.thinking_level"
    if "image_config" in config:
        image = read_exactly(config["image_config"], f"{where}.image_config", names(sdk.ImageConfig))
        written["imageConfig"] = _image_config(image)
    return written


def _image_config(fields: Fields) -> Json:
    named = {"aspect_ratio": "aspectRatio", "image_size": "imageSize"}
    return {target: fields[name] for name, target in named.items() if name in fields}


# ── Formats of the response ─────────────────────────────────────────────────────────────────────────────────────


def _read_formats(fields: Fields, config: Json) -> None:
    """response_format, response_mime_type and response_modalities as fields of generationConfig."""
    where = "response_format"
    mime = read_string(fields.get("response_mime_type", ""), "response_mime_type", 128)
    if mime:
        config["responseMimeType"] = mime
    modalities = [
        read_string(m, "response_modalities", 32).upper()
        for m in read_list(fields.get("response_modalities", []), "response_modalities", 8)
    ]
    value = fields.get(where, [])
    several = isinstance(value, list)
    for i, item in enumerate(read_list(value, where, 4)):
        at = f"{where}[{i}]" if several else where
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind in ("audio", "video"):
            raise not_offered(f"{at}.type", f" as {kind!r}; there are text and image")
        modalities += [kind.upper()] if kind in ("text", "image") and kind.upper() not in modalities else []
        if kind == "image":
            _read_image_format(item, at, config)
        elif kind == "text":
            _read_text_format(item, at, config)
        else:
            # A JSON schema by itself: the form of earlier versions of this API.
            _set_schema(item, at, config)
    if modalities and modalities != ["TEXT"]:
        config["responseModalities"] = modalities


def _read_text_format(item: Any, where: str, config: Json) -> None:
    format = read_exactly(item, where, names(sdk.TextResponseFormat))
    mime = format.get("mime_type", "application/json" if "schema" in format else "text/plain")
    config["responseMimeType"] = mime
    if "schema" in format:
        _set_schema(format["schema"], f"{where}.schema", config)


def _read_image_format(item: Any, where: str, config: Json) -> None:
    format = read_exactly(item, where, names(sdk.ImageResponseFormat))
    if format.get("delivery", "inline") != "inline":
        raise not_offered(f"{where}.delivery", " but as inline")
    if "mime_type" in format:
        raise not_offered(f"{where}.mime_type", ": generated images are PNG")
    if image := _image_config(format):
        config["imageConfig"] = image


def _set_schema(value: Any, where: str, config: Json) -> None:
    if not isinstance(value, Mapping):
        raise WireError(400, f"{where} must be an object: a JSON schema")
    if "responseJsonSchema" in config:
        raise WireError(400, f"{where}: there is a second schema; one can be kept")
    config["responseMimeType"], config["responseJsonSchema"] = "application/json", value


# ── Tools and safety ────────────────────────────────────────────────────────────────────────────────────────────


def _read_tools(fields: Fields, out: Translation) -> None:
    declared = []
    for i, item in enumerate(read_list(fields.get("tools", []), "tools", MAX_FUNCTIONS)):
        where = f"tools[{i}]"
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind != "function":
            raise not_offered(f"{where}.type", f" as {str(kind)[:60]!r}; there is 'function'")
        tool = read_exactly(item, where, names(sdk.Function))
        refuse(tool, where, ("defer_loading", "short_description"))
        named = {"name": "name", "description": "description", "parameters": "parametersJsonSchema"}
        declared.append({named[name]: tool[name] for name in named if name in tool})
        target = f"tools[0].functionDeclarations[{i}]"
        out.paths |= {target: where, f"{target}.parametersJsonSchema": f"{where}.parameters"}
    if declared:
        out.body["tools"] = [{"functionDeclarations": declared}]
    config = fields.get("generation_config") or {}
    if config.get("tool_choice") is not None:
        out.body["toolConfig"] = {"functionCallingConfig": _tool_choice(config["tool_choice"])}
        out.paths["toolConfig.functionCallingConfig"] = "generation_config.tool_choice"


def _tool_choice(value: Any) -> Json:
    where, allowed = "generation_config.tool_choice", list[str]()
    if isinstance(value, Mapping):
        choice = read_exactly(value, where, names(sdk.ToolChoiceConfig))
        where = f"{where}.allowed_tools"
        tools = read_exactly(choice.get("allowed_tools", {}), where, names(sdk.AllowedTools))
        allowed = [
            read_string(n, f"{where}.tools", 128) for n in read_list(tools.get("tools", []), where, MAX_FUNCTIONS)
        ]
        value = tools.get("mode", "auto")
    if value not in MODES:
        raise WireError(400, f"{where} is {str(value)[:60]!r}; there are {', '.join(MODES)}")
    # Only a mode that constrains the answer can keep it to some of the functions.
    mode = "validated" if allowed and value == "auto" else value
    return {"mode": mode.upper(), **({"allowedFunctionNames": allowed} if allowed else {})}


def _safety(value: Any) -> list[Json]:
    settings: list[Json] = []
    for i, item in enumerate(read_list(value, "safety_settings", 64)):
        where = f"safety_settings[{i}]"
        setting = read_exactly(item, where, names(sdk.SafetySetting))
        texts = {name: read_string(setting[name], path(where, name), 128).upper() for name in setting}
        category: Json = {"category": f"HARM_CATEGORY_{texts['type']}"} if "type" in texts else {}
        settings.append(category | {name: texts[name] for name in ("threshold", "method") if name in texts})
    return settings
