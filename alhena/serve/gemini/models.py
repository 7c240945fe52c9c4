"""Models and their methods: list, get, generateContent, streamGenerateContent, countTokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from alhena.serve.buckets import MAX_OUTPUT_TOKENS
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.fields import WireError
from alhena.serve.gemini.streams import until_disconnect
from alhena.serve.scheduler import StreamingEngine

METHODS = ("generateContent", "streamGenerateContent", "countTokens")


def _model_info(name: str, engine: StreamingEngine) -> dict[str, Any]:
    default = engine.default_sampling
    return {
        "name": f"models/{name}",
        "displayName": f"Alhena {name}",
        "version": "1",
        "supportedGenerationMethods": list(METHODS),
        "inputTokenLimit": engine.max_prompt_tokens,
        "outputTokenLimit": MAX_OUTPUT_TOKENS,
        "temperature": default.temperature,
        "topP": default.top_p,
        "topK": default.top_k,
        "thinking": engine.encoder.thinks,
    }


def router(calls: Calls) -> APIRouter:
    """Routes under ``/{version}/models``."""
    routes = APIRouter()

    @routes.get("/{version}/models")
    async def models(version: str) -> dict[str, Any]:
        calls.check(version, calls.name)
        return {"models": [_model_info(calls.name, calls.engine)]}

    @routes.get("/{version}/models/{model}")
    async def model_card(version: str, model: str) -> dict[str, Any]:
        calls.check(version, model)
        return _model_info(model, calls.engine)

    @routes.post("/{version}/models/{call}", response_model=None)
    async def call(version: str, call: str, request: Request) -> Response:
        model, _, method = call.partition(":")
        calls.check(version, model)
        alt = request.query_params.get("alt", "json")
        if alt not in ("json", "sse"):
            raise WireError(400, f"alt is {alt[:20]!r}; it must be json or sse")
        if method not in METHODS:
            raise WireError(404, f"models/{model} has no method {method!r}; it has {', '.join(METHODS)}", "NOT_FOUND")
        data = await calls.bodies.read(request)
        if method == "generateContent":
            return await until_disconnect(request, calls.generate(data))
        if method == "countTokens":
            return await until_disconnect(request, calls.count(data))
        return await until_disconnect(request, calls.stream(data, alt == "sse"))

    return routes
