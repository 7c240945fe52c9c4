"""A request of /v1/chat/completions as a body of generateContent.

A field that this server does not know or cannot honor is refused by name. HARMLESS ones change no answer and are read and not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alhena.serve.gemini.wire.fields import Fields, WireError, not_offered, path, read_flag, read_list, read_string
from alhena.serve.gemini.wire.settings.tools import MAX_FUNCTIONS
from alhena.serve.gemini.wire.translation import Translation, read_exactly
from alhena.serve.openai.messages import MessageReader

# For accounting and caching elsewhere; latency hints.
HARMLESS = (
    "user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "prediction",
)  # fmt: skip
# Refused unless they are empty or false.
NOT_OFFERED = ("audio", "logit_bias", "store", "verbosity", "web_search_options", "moderation")
REPLACED = {"functions": "tools", "function_call": "tool_choice"}
# Fields of generationConfig by those of a chat completion.
NUMBERS = {
    "temperature": "temperature", "top_p": "topP", "top_k": "topK", "seed": "seed", "n": "candidateCount",
    "presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty", "max_completion_tokens": "maxOutputTokens",
    "max_tokens": "maxOutputTokens", "top_logprobs": "logprobs",
}  # fmt: skip
KNOWN = (
    "model", "messages", "stream", "stream_options", "stop", "logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "modalities", "reasoning_effort", "service_tier", "extra_body", *NUMBERS, *NOT_OFFERED, *REPLACED, *HARMLESS,
)  # fmt: skip
EFFORTS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "HIGH"}
CHOICES = {"none": "NONE", "auto": "AUTO", "required": "ANY"}


@dataclass(frozen=True)
class ChatRequest:
    """A chat completion to make: the model's name, its body of generateContent, and how to respond."""

    model: str
    translation: Translation
    stream: bool
    include_usage: bool


def read_model(fields: Fields) -> str:
    """The model that a request names."""
    model = read_string(fields.get("model", ""), "model", 256)
    if not model:
        raise WireError(400, "model is missing")
    return model.removeprefix("models/")


def read_chat(value: Any) -> ChatRequest:
    """Raises WireError."""
    fields = read_exactly(value, "", KNOWN)
    for name in NOT_OFFERED:
        if fields.get(name):
            raise not_offered(name)
    for name, instead in REPLACED.items():
        if name in fields:
            raise not_offered(name, f"; use {instead}")
    if fields.get("service_tier", "auto") not in ("auto", "default"):
        raise not_offered("service_tier", " but as auto or default")
    out = Translation()
    MessageReader(out).read(fields.get("messages", []))
    out.paths |= {"contents": "messages", "generationConfig": "the request"}
    config = _generation_config(fields, out)
    _read_tools(fields, out)
    _read_extra_body(fields, out, config)
    out.body["generationConfig"] = config
    stream = read_flag(fields, "", "stream")
    options = read_exactly(fields.get("stream_options", {}), "stream_options", ("include_usage", "include_obfuscation"))
    if read_flag(options, "stream_options", "include_obfuscation"):
        raise not_offered("stream_options.include_obfuscation")
    if options and not stream:
        raise WireError(400, "stream_options is given, but stream is not true")
    return ChatRequest(read_model(fields), out, stream, read_flag(options, "stream_options", "include_usage"))


def _generation_config(fields: Fields, out: Translation) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, target in NUMBERS.items():
        if name not in fields:
            continue
        if target in config:
            raise WireError(400, f"{name} and max_completion_tokens exclude each other")
        config[target] = fields[name]
        out.paths[f"generationConfig.{target}"] = name
    if read_flag(fields, "", "logprobs"):
        config["responseLogprobs"] = True
        # The chosen tokens alone, unless top_logprobs asks for more.
        config.setdefault("logprobs", 0)
    elif "logprobs" in config:
        raise WireError(400, "top_logprobs is given, but logprobs is not true")
    if "stop" in fields:
        config["stopSequences"] = read_list(fields["stop"], "stop", 5)
    if "reasoning_effort" in fields:
        config["thinkingConfig"] = _effort(fields["reasoning_effort"])
    modalities = read_list(fields.get("modalities", []), "modalities", 4)
    if modalities and list(modalities) != ["text"]:
        config["responseModalities"] = [read_string(m, "modalities", 32).upper() for m in modalities]
    _read_format(fields, config)
    out.paths |= {
        "generationConfig.responseLogprobs": "logprobs", "generationConfig.stopSequences": "stop",
        "generationConfig.thinkingConfig": "reasoning_effort", "generationConfig.responseModalities": "modalities",
        "generationConfig.responseMimeType": "response_format",
        "generationConfig.responseJsonSchema": "response_format.json_schema.schema",
    }  # fmt: skip
    return config


def _effort(value: Any) -> dict[str, Any]:
    if value == "none":
        return {"thinkingBudget": 0}
    if not isinstance(value, str) or value not in EFFORTS:
        raise WireError(400, f"reasoning_effort is {str(value)[:60]!r}; there are none, {', '.join(EFFORTS)}")
    return {"thinkingLevel": EFFORTS[value]}


def _read_format(fields: Fields, config: dict[str, Any]) -> None:
    where = "response_format"
    format = read_exactly(fields.get(where, {"type": "text"}), where, ("type", "json_schema"))
    kind = format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise WireError(400, f"{where}.type is {str(kind)[:60]!r}; there are text, json_object, json_schema")
    if ("json_schema" in format) != (kind == "json_schema"):
        raise WireError(400, f"{where}.json_schema goes with the type json_schema")
    if kind == "text":
        return
    config["responseMimeType"] = "application/json"
    if kind == "json_schema":
        where = f"{where}.json_schema"
        named = read_exactly(format["json_schema"], where, ("name", "description", "schema", "strict"))
        # A schema is always enforced, so strict changes nothing.
        read_flag(named, where, "strict")
        for name in ("name", "description"):
            read_string(named.get(name, ""), path(where, name), 1 << 12)
        config["responseJsonSchema"] = named.get("schema", {})


# ── Tools ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_tools(fields: Fields, out: Translation) -> None:
    declared, is_strict = [], False
    for i, item in enumerate(read_list(fields.get("tools", []), "tools", MAX_FUNCTIONS)):
        where = f"tools[{i}]"
        tool = read_exactly(item, where, ("type", "function", "custom"))
        if tool.get("type") != "function":
            raise not_offered(f"{where}.type", f" as {str(tool.get('type'))[:60]!r}; it must be 'function'")
        where = f"{where}.function"
        function = read_exactly(tool.get("function"), where, ("name", "description", "parameters", "strict"))
        is_strict |= read_flag(function, where, "strict")
        names = {"name": "name", "description": "description", "parameters": "parametersJsonSchema"}
        declared.append({names[name]: function[name] for name in names if name in function})
        target = f"tools[0].functionDeclarations[{i}]"
        out.paths |= {target: where, f"{target}.parametersJsonSchema": f"{where}.parameters"}
    if declared:
        out.body["tools"] = [{"functionDeclarations": declared}]
        out.paths["tools[0].functionDeclarations"] = "tools"
        if not read_flag({"parallel_tool_calls": True, **fields}, "", "parallel_tool_calls"):
            raise not_offered("parallel_tool_calls", " as false: the model decides how many calls it makes")
    _read_choice(fields.get("tool_choice", "auto" if declared else "none"), out, is_strict)


def _read_choice(value: Any, out: Translation, is_strict: bool) -> None:
    """tool_choice as functionCallingConfig. Calls of a ``strict`` function are valid by its schema (mode VALIDATED)."""
    names: Sequence[str] = ()
    if isinstance(value, Mapping):
        mode, names = _named_choice(value)
    elif isinstance(value, str) and value in CHOICES:
        mode = CHOICES[value]
    else:
        raise WireError(400, f"tool_choice is {str(value)[:60]!r}; there are {', '.join(CHOICES)}, or a named function")
    if "tools" not in out.body:
        if mode != "NONE" and value != "auto":
            raise WireError(400, "tool_choice requires a call, but there are no tools")
        return
    mode = "VALIDATED" if mode == "AUTO" and (is_strict or names) else mode
    allowed = {"allowedFunctionNames": list(names)} if names else {}
    out.body["toolConfig"] = {"functionCallingConfig": {"mode": mode, **allowed}}
    out.paths["toolConfig.functionCallingConfig"] = "tool_choice"


def _named_choice(value: Mapping[str, Any]) -> tuple[str, list[str]]:
    where = "tool_choice"
    choice = read_exactly(value, where, ("type", "function", "allowed_tools"))
    if choice.get("type") == "function":
        function = read_exactly(choice.get("function"), f"{where}.function", ("name",))
        return "ANY", [read_string(function.get("name", ""), f"{where}.function.name", 128)]
    if choice.get("type") != "allowed_tools":
        raise not_offered(
            f"{where}.type", f" as {str(choice.get('type'))[:60]!r}; there are function and allowed_tools"
        )
    where = f"{where}.allowed_tools"
    allowed = read_exactly(choice.get("allowed_tools"), where, ("mode", "tools"))
    mode = allowed.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise WireError(400, f"{where}.mode is {str(mode)[:60]!r}; there are auto and required")
    names = []
    for i, item in enumerate(read_list(allowed.get("tools", []), f"{where}.tools", MAX_FUNCTIONS)):
        tool = read_exactly(item, f"{where}.tools[{i}]", ("type", "function"))
        function = read_exactly(tool.get("function"), f"{where}.tools[{i}].function", ("name",))
        names.append(read_string(function.get("name", ""), f"{where}.tools[{i}].function.name", 128))
    if not names:
        raise WireError(400, f"{where}.tools is empty")
    return CHOICES[mode], names


def _read_extra_body(fields: Fields, out: Translation, config: dict[str, Any]) -> None:
    """Google's extension: extra_body.google has a thinking_config and a cached_content."""
    where = "extra_body.google"
    extra = read_exactly(fields.get("extra_body", {}), "extra_body", ("google",))
    google = read_exactly(extra.get("google", {}), where, ("thinking_config", "cached_content"))
    if "thinking_config" in google:
        if "thinkingConfig" in config:
            raise WireError(400, f"reasoning_effort and {where}.thinking_config exclude each other")
        config["thinkingConfig"] = google["thinking_config"]
        out.paths["generationConfig.thinkingConfig"] = f"{where}.thinking_config"
    if "cached_content" in google:
        out.body["cachedContent"] = google["cached_content"]
        out.paths["cachedContent"] = f"{where}.cached_content"
