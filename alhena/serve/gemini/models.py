"""Models and their methods: list, get, and one route for all that generate, count and embed."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from alhena.serve.decoding.buckets import MAX_OUTPUT_TOKENS
from alhena.serve.gemini import embeddings
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.pages import read_page
from alhena.serve.gemini.streams import until_disconnect
from alhena.serve.gemini.tokens import compute_tokens
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.openai.models import list_fields, model_fields

METHODS = (
    "generateContent", "streamGenerateContent", "countTokens", "computeTokens", "embedContent", "batchEmbedContents",
    "batchGenerateContent", "asyncBatchEmbedContent",
)  # fmt: skip
# Known methods of Google's models.
NOT_OFFERED = {
    "predictLongRunning": "it generates no videos",
    "bidiGenerateContent": "it has no live sessions",
    "generateAnswer": "ask generateContent",
    "transferOwnership": "it tunes no models",
}


def _model_info(calls: Calls, name: str) -> dict[str, Any]:
    default = calls.engine.default_sampling
    return {
        "name": f"models/{name}",
        "baseModelId": calls.name,
        "displayName": f"Alhena {calls.name}",
        "version": "1",
        "supportedGenerationMethods": list(METHODS),
        "inputTokenLimit": calls.engine.max_prompt_tokens,
        "outputTokenLimit": MAX_OUTPUT_TOKENS,
        "temperature": default.temperature,
        "topP": default.top_p,
        "topK": default.top_k,
        "thinking": calls.engine.encoder.thinks,
    }


async def call_method(calls: Calls, model: str, method: str, request: Request) -> Response:
    """The response of one method of a model, whose name has been checked. Raises WireError."""
    alt = request.query_params.get("alt", "json")
    if alt not in ("json", "sse"):
        raise WireError(400, f"alt is {alt[:20]!r}; it must be json or sse")
    if method not in (*METHODS, "predict"):
        raise _no_method(model, method)
    data = await calls.bodies.read(request)
    if method == "generateContent":
        return await until_disconnect(request, calls.generate(data, model))
    if method == "streamGenerateContent":
        return await until_disconnect(request, calls.stream(data, alt == "sse", model))
    if method == "countTokens":
        return await until_disconnect(request, calls.count(data, model))
    return await until_disconnect(request, _as_response(_read_only(calls, data, method, model)))


async def _read_only(calls: Calls, data: bytearray, method: str, model: str) -> dict[str, Any]:
    """The response of a method that generates nothing."""
    if method == "computeTokens":
        return await calls.on_parser(compute_tokens, calls.engine.encoder.tokenizer, data)
    respond = {"embedContent": embeddings.respond, "batchEmbedContents": embeddings.respond_batch}
    return await respond.get(method, embeddings.predict)(calls, data, model)


async def _as_response(body: Awaitable[dict[str, Any]]) -> Response:
    return JSONResponse(await body)


def _no_method(model: str, method: str) -> WireError:
    if method in NOT_OFFERED:
        return WireError(501, f"{method} is not offered by this server: {NOT_OFFERED[method]}", "UNIMPLEMENTED")
    return WireError(404, f"models/{model} has no method {method[:40]!r}; it has {', '.join(METHODS)}", "NOT_FOUND")


def router(calls: Calls) -> APIRouter:
    """Routes under ``/{version}/models``."""
    routes = APIRouter()

    @routes.get("/{version}/models")
    async def models(version: str, request: Request) -> dict[str, Any]:
        calls.check_version(version)
        page = read_page(request, 50, 1000)
        start = page.number or 0
        shown = calls.names[start : start + page.size]
        more = start + page.size < len(calls.names)
        both = list_fields(shown) if version == "v1" else {}
        return {
            "models": [_model_info(calls, name) for name in shown],
            **({"nextPageToken": str(start + page.size)} if more else {}),
            **both,
        }

    @routes.get("/{version}/models/{model}")
    async def model_card(version: str, model: str) -> dict[str, Any]:
        calls.check(version, model)
        both = model_fields(model) if version == "v1" else {}
        return {**_model_info(calls, model), **both}

    @routes.get("/{version}/tunedModels")
    async def tuned_models(version: str) -> dict[str, Any]:
        calls.check_version(version)
        return {}

    @routes.get("/{version}/tunedModels/{model}")
    async def tuned_model(version: str, model: str) -> dict[str, Any]:
        calls.check_version(version)
        raise WireError(
            404, f"tunedModels/{model[:100]} is not found; `alhena tune` makes a model to serve", "NOT_FOUND"
        )

    @routes.post("/{version}/tunedModels", response_model=None)
    @routes.post("/{version}/tunedModels/{call}", response_model=None)
    async def tune(version: str, call: str = "") -> None:
        calls.check_version(version)
        message = "tunedModels are not offered: this server tunes no model; `alhena tune` makes one to serve"
        raise WireError(501, message, "UNIMPLEMENTED")

    @routes.post("/{version}/models/{call}", response_model=None)
    async def call(version: str, call: str, request: Request) -> Response:
        model, _, method = call.partition(":")
        calls.check(version, model)
        return await call_method(calls, model, method, request)

    return routes
