"""The OpenAPI description: the methods that take JSON, with the types of the SDK as schemas. Files, batches and caches are as docs/api.md says."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from google.genai import interactions as sdk
from google.genai import types

REFERENCE = "#/components/schemas/{model}"
# Fields that several requests have.
PROMPT: dict[str, Any] = {
    "contents": (list[types.Content], ...),
    "systemInstruction": (types.Content | None, None),
    "generationConfig": (types.GenerationConfig | None, None),
    "safetySettings": (list[types.SafetySetting] | None, None),
    "tools": (list[types.Tool] | None, None),
    "toolConfig": (types.ToolConfig | None, None),
}
EMBEDDING: dict[str, Any] = {"content": (types.Content, ...), "outputDimensionality": (int | None, None)}
BODIES = {
    "generateContent": pydantic.create_model("GenerateContentBody", **PROMPT),
    "streamGenerateContent": pydantic.create_model("StreamGenerateContentBody", **PROMPT),
    "countTokens": pydantic.create_model("CountTokensBody", contents=(list[types.Content], ...)),
    "embedContent": pydantic.create_model("EmbedContentBody", **EMBEDDING),
}
ROLE: Any = (Literal["system", "user", "assistant"], ...)
MESSAGE = pydantic.create_model("ChatMessage", role=ROLE, content=(str | list[dict[str, Any]] | None, None))
CHAT: dict[str, Any] = {
    "messages": (list[MESSAGE], ...),  # type: ignore[valid-type]
    "stream": (bool | None, None),
    "temperature": (float | None, None),
    "max_completion_tokens": (int | None, None),
    "tools": (list[dict[str, Any]] | None, None),
    "response_format": (dict[str, Any] | None, None),
}


def _post(body: type[pydantic.BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    """One method: its body's schema goes to ``schemas``, with those that it names."""
    schema = body.model_json_schema(by_alias=True, ref_template=REFERENCE)
    schemas |= schema.pop("$defs", {})
    schemas[body.__name__] = schema
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=body.__name__)}}}
    return {"post": {"requestBody": {"required": True, "content": content}, "responses": _responses()}}


def _responses() -> dict[str, Any]:
    answer = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    error = {"description": "an error", "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"200": {"description": "the answer", "content": answer}, "4XX": error, "501": error, "503": error}


def describe(name: str) -> dict[str, Any]:
    """The OpenAPI description of a server of the model ``name``."""
    schemas: dict[str, Any] = {}
    model: Any = (Literal[name], ...)
    chat = pydantic.create_model("ChatCompletionBody", model=model, **CHAT)
    embeddings = pydantic.create_model("EmbeddingsBody", model=model, input=(str | list[str], ...))
    paths = {f"/v1beta/models/{name}:{method}": _post(body, schemas) for method, body in BODIES.items()}
    paths |= {
        "/v1beta/interactions": _post(sdk.CreateModelInteraction, schemas),
        "/v1/chat/completions": _post(chat, schemas),
        "/v1/embeddings": _post(embeddings, schemas),
        "/v1beta/models": {"get": {"responses": _responses()}},
    }
    schemas["CreateModelInteraction"]["properties"]["model"] = {"const": name}
    info = {"title": "Alhena: the Gemini API", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
