"""generationConfig and safetySettings of a request. An unsupported field is refused by name, never ignored."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from alhena.serve.gemini.fields import (
    Fields,
    WireError,
    not_offered,
    read_flag,
    read_integer,
    read_list,
    read_number,
    read_object,
    read_string,
    refuse,
)
from alhena.serve.sampler import IMAGE_GUIDANCE, Sampling

WHERE = "generationConfig"
MAX_STOPS, MAX_STOP_LENGTH = 5, 1024
NUMBERS = ("temperature", "topK", "topP", "seed", "maxOutputTokens", "candidateCount")
# Refused unless they are empty, false or zero.
NOT_OFFERED = (
    "responseSchema", "responseJsonSchema", "responseFormat", "responseLogprobs", "logprobs", "presencePenalty", "frequencyPenalty",
    "speechConfig", "translationConfig", "audioTimestamp", "routingConfig", "modelSelectionConfig", "enableAffectiveDialog",
    "enableEnhancedCivicAnswers",
)  # fmt: skip
KNOWN = (
    *NUMBERS, "stopSequences", "responseModalities", "imageConfig", "responseMimeType", "thinkingConfig", "mediaResolution",
    *NOT_OFFERED,
)  # fmt: skip
# This server blocks nothing: these thresholds are the only ones it supports.
NEVER_BLOCK = ("BLOCK_NONE", "OFF")
MAX_TOKENS = 1 << 20
UNSPECIFIED_LEVEL = "THINKING_LEVEL_UNSPECIFIED"


def _aspect(config: Fields, default: float | None) -> float | None:
    """Width / height of generated images, from ``imageConfig.aspectRatio`` such as 16:9."""
    where = f"{WHERE}.imageConfig"
    image = read_object(
        config.get("imageConfig") or {}, where, ("aspectRatio", "imageSize", "personGeneration", "outputMimeType",
        "outputCompressionQuality", "imageOutputOptions", "prominentPeople"),
    )  # fmt: skip
    refuse(image, where, [name for name in image if name != "aspectRatio"])
    if "aspectRatio" not in image:
        return default
    ratio = read_string(image["aspectRatio"], f"{where}.aspectRatio", 16)
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", ratio)
    if match is None or int(match[2]) == 0:
        raise WireError(400, f"{where}.aspectRatio is {ratio!r}; it must be width:height, as in 16:9")
    return int(match[1]) / int(match[2])


def _modalities(config: Fields) -> list[str]:
    where = f"{WHERE}.responseModalities"
    values = [read_string(m, where, 32).upper() for m in read_list(config.get("responseModalities", []), where, 8)]
    for value in values:
        if value not in ("TEXT", "IMAGE"):
            raise WireError(400, f"{where} has {value}; this server answers with TEXT and IMAGE")
    return values


class Thinking(Enum):
    """Whether the model thinks before it answers, and whether its thoughts are part of the response."""

    OFF = "off"
    # Up to a number of tokens: that holds for a model that does not think.
    LIMITED = "limited"
    HIDDEN = "hidden"
    INCLUDED = "included"
    # Where the model can think: clients ask for thoughts without knowing whether there are any.
    IF_ANY = "if any"


def read_thinking(value: Any) -> Thinking:
    """The thinkingConfig of a generationConfig: off by default. Raises WireError for a budget or level that cannot be kept."""
    where = f"{WHERE}.thinkingConfig"
    config = read_object({} if value is None else value, WHERE, KNOWN)
    thinking = read_object(
        config.get("thinkingConfig", {}), where, ("includeThoughts", "thinkingBudget", "thinkingLevel")
    )
    budget = read_integer(thinking, where, "thinkingBudget", 0)
    has_budget = thinking.get("thinkingBudget") is not None
    if budget < -1:
        raise WireError(400, f"{where}.thinkingBudget must be -1 or more")
    level = read_string(thinking.get("thinkingLevel", UNSPECIFIED_LEVEL), f"{where}.thinkingLevel", 64).upper()
    if level not in (UNSPECIFIED_LEVEL, "MINIMAL", "LOW", "MEDIUM", "HIGH"):
        raise WireError(400, f"{where}.thinkingLevel is {level}; there are MINIMAL, LOW, MEDIUM and HIGH")
    if has_budget and level != UNSPECIFIED_LEVEL:
        raise WireError(400, f"{where}: thinkingBudget and thinkingLevel exclude each other")
    is_included = read_flag(thinking, where, "includeThoughts")
    if budget > 0:
        return Thinking.LIMITED
    if budget == -1 or level in ("LOW", "MEDIUM", "HIGH"):
        return Thinking.INCLUDED if is_included else Thinking.HIDDEN
    is_off = has_budget or level == "MINIMAL"
    return Thinking.IF_ANY if is_included and not is_off else Thinking.OFF


def _check_trivial(config: Fields) -> None:
    """Raises WireError for fields of which only the default is supported."""
    if read_integer(config, WHERE, "candidateCount", 1) != 1:
        raise WireError(400, f"{WHERE}.candidateCount must be 1: this server returns one answer")
    mime = read_string(config.get("responseMimeType", "text/plain"), f"{WHERE}.responseMimeType", 256)
    if mime not in ("", "text/plain"):
        raise not_offered(f"{WHERE}.responseMimeType", f" as {mime!r}; it must be text/plain")
    unspecified = "MEDIA_RESOLUTION_UNSPECIFIED"
    if read_string(config.get("mediaResolution", unspecified), f"{WHERE}.mediaResolution", 64) != unspecified:
        raise not_offered(f"{WHERE}.mediaResolution")
    refuse(config, WHERE, NOT_OFFERED)


def read_sampling(value: Any, default: Sampling) -> Sampling:
    """The generationConfig of a request. Raises WireError for what is out of range, unknown, or not offered."""
    config = read_object({} if value is None else value, WHERE, KNOWN)
    _check_trivial(config)
    where = f"{WHERE}.stopSequences"
    stop = tuple(
        read_string(s, where, MAX_STOP_LENGTH) for s in read_list(config.get("stopSequences", []), where, MAX_STOPS)
    )
    if not all(stop):
        raise WireError(400, f"{where} must be non-empty strings")
    modalities = _modalities(config)
    top_p = read_number(config, WHERE, "topP", default.top_p)
    try:
        return Sampling(
            temperature=read_number(config, WHERE, "temperature", default.temperature),
            top_k=min(read_integer(config, WHERE, "topK", default.top_k), 1 << 30),
            # Zero keeps only the most likely token, as the smallest positive value does.
            top_p=1e-6 if top_p == 0 else top_p,
            seed=read_integer(config, WHERE, "seed", default.seed),
            max_tokens=min(read_integer(config, WHERE, "maxOutputTokens", default.max_tokens), MAX_TOKENS),
            guidance=IMAGE_GUIDANCE if "IMAGE" in modalities else default.guidance,
            image_first=modalities == ["IMAGE"],
            aspect=_aspect(config, default.aspect),
            stop=stop,
        )
    except ValueError as error:
        raise WireError(400, f"{WHERE}: {error}") from None


def check_safety(value: Any) -> None:
    """Raises WireError for a safety setting that requires blocking."""
    for i, item in enumerate(read_list([] if value is None else value, "safetySettings", 64)):
        where = f"safetySettings[{i}]"
        setting = read_object(item, where, ("category", "threshold", "method"))
        read_string(setting.get("category", ""), f"{where}.category", 128)
        threshold = read_string(setting.get("threshold", ""), f"{where}.threshold", 128)
        if threshold not in NEVER_BLOCK:
            raise not_offered(
                f"{where}.threshold",
                f" as {threshold!r}: nothing is blocked; it must be {' or '.join(NEVER_BLOCK)}",
            )
        refuse(setting, where, ("method",))
