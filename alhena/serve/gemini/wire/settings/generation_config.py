"""generationConfig of a request: how an answer is sampled, and what it must be. An unsupported field is refused by name, never ignored."""

from __future__ import annotations

import json
import re
from typing import Any

from alhena.content import Resolution
from alhena.serve.decoding.sampling.sampler import IMAGE_GUIDANCE, MAX_LOGPROBS, OutputFormat, Sampling
from alhena.serve.gemini.wire.fields import (
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
from alhena.serve.gemini.wire.settings.media_options import UNSPECIFIED, read_level
from alhena.serve.structured.json_schema import enum_texts, json_schema

WHERE = "generationConfig"
MAX_STOPS, MAX_STOP_LENGTH, MAX_CANDIDATES = 5, 1024, 8
NUMBERS = (
    "temperature", "topK", "topP", "seed", "maxOutputTokens", "candidateCount", "presencePenalty", "frequencyPenalty",
    "responseLogprobs", "logprobs",
)  # fmt: skip
SCHEMAS = ("responseSchema", "responseJsonSchema")
# Refused unless they are empty, false or zero.
NOT_OFFERED = (
    "responseFormat", "speechConfig", "translationConfig", "audioTimestamp", "routingConfig", "modelSelectionConfig",
    "enableAffectiveDialog", "enableEnhancedCivicAnswers", "audioTranscriptionConfig", "modelConfig",
)  # fmt: skip
KNOWN = (
    *NUMBERS, *SCHEMAS, "stopSequences", "responseModalities", "imageConfig", "responseMimeType", "thinkingConfig", "mediaResolution",
    *NOT_OFFERED,
)  # fmt: skip
IMAGE_NOT_OFFERED = (
    "imageSize", "personGeneration", "outputCompressionQuality", "imageOutputOptions", "prominentPeople",
)  # fmt: skip
TEXT, JSON, ENUM = "text/plain", "application/json", "text/x.enum"
MAX_TOKENS = 1 << 20


def read_config(value: Any) -> Fields:
    """The fields of a generationConfig. Raises WireError for one that is unknown or not offered."""
    config = read_object({} if value is None else value, WHERE, KNOWN)
    refuse(config, WHERE, NOT_OFFERED)
    return config


# ── Images ────────────────────────────────────────────────────────────────────────────────────────────────────


def _aspect(config: Fields, default: float | None) -> float | None:
    """Width / height of generated images, from ``imageConfig.aspectRatio`` such as 16:9."""
    where = f"{WHERE}.imageConfig"
    image = read_object(config.get("imageConfig", {}), where, ("aspectRatio", "outputMimeType", *IMAGE_NOT_OFFERED))
    refuse(image, where, IMAGE_NOT_OFFERED)
    mime = read_string(image.get("outputMimeType", "image/png"), f"{where}.outputMimeType", 64)
    if mime not in ("", "image/png"):
        raise not_offered(f"{where}.outputMimeType", f" as {mime!r}; images are image/png")
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


# ── What an answer must be ────────────────────────────────────────────────────────────────────────────────────


def read_output(config: Fields) -> OutputFormat | None:
    """What the answer must be, by responseMimeType and a schema; None: any text. Raises WireError."""
    mime = read_string(config.get("responseMimeType", TEXT), f"{WHERE}.responseMimeType", 256) or TEXT
    present = [name for name in SCHEMAS if name in config]
    if len(present) == 2:
        raise WireError(400, f"{WHERE}: responseSchema and responseJsonSchema exclude each other")
    if mime == TEXT:
        if present:
            raise WireError(400, f"{WHERE}.{present[0]} needs responseMimeType {JSON} or {ENUM}")
        return None
    if mime not in (JSON, ENUM):
        raise not_offered(f"{WHERE}.responseMimeType", f" as {mime!r}; it must be {TEXT}, {JSON} or {ENUM}")
    name = present[0] if present else SCHEMAS[0]
    try:
        if mime == ENUM:
            return OutputFormat(choices=enum_texts(config.get(name, {}), f"{WHERE}.{name}"))
        return OutputFormat(json_schema=json.dumps(json_schema(config.get(name, {}), f"{WHERE}.{name}")))
    except ValueError as error:
        raise WireError(400, str(error)) from None


# ── Sampling ──────────────────────────────────────────────────────────────────────────────────────────────────


def read_candidates(config: Fields) -> int:
    """The number of answers. Raises WireError."""
    count = read_integer(config, WHERE, "candidateCount", 1)
    if not 1 <= count <= MAX_CANDIDATES:
        raise WireError(400, f"{WHERE}.candidateCount must be from 1 to {MAX_CANDIDATES}")
    return count


def read_resolution(config: Fields) -> Resolution | None:
    """The resolution of images and videos that do not say theirs. Raises WireError."""
    return read_level(config.get("mediaResolution", UNSPECIFIED), f"{WHERE}.mediaResolution")


def _logprobs(config: Fields) -> int | None:
    """The number of tokens at each position whose log-probabilities are returned beside that of the chosen one."""
    is_asked, count = read_flag(config, WHERE, "responseLogprobs"), read_integer(config, WHERE, "logprobs", 0)
    if not 0 <= count <= MAX_LOGPROBS:
        raise WireError(400, f"{WHERE}.logprobs must be from 0 to {MAX_LOGPROBS}")
    if "logprobs" in config and not is_asked:
        raise WireError(400, f"{WHERE}.logprobs needs that response_logprobs is true")
    return count if is_asked else None


def _stops(config: Fields) -> tuple[str, ...]:
    where = f"{WHERE}.stopSequences"
    values = read_list(config.get("stopSequences", []), where, MAX_STOPS)
    stop = tuple(read_string(value, where, MAX_STOP_LENGTH) for value in values)
    if not all(stop):
        raise WireError(400, f"{where} must be non-empty strings")
    return stop


def read_sampling(config: Fields, default: Sampling) -> Sampling:
    """How an answer is sampled. Raises WireError for what is out of range."""
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
            stop=_stops(config),
            presence_penalty=read_number(config, WHERE, "presencePenalty", default.presence_penalty),
            frequency_penalty=read_number(config, WHERE, "frequencyPenalty", default.frequency_penalty),
            logprobs=_logprobs(config),
            output=read_output(config),
        )
    except ValueError as error:
        raise WireError(400, f"{WHERE}: {error}") from None
