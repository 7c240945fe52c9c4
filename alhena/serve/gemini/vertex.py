"""The paths of Vertex AI: the methods of models under projects and publishers.

    POST /v1beta1/projects/P/locations/L/publishers/google/models/NAME:generateContent
    POST /v1beta1/publishers/google/models/NAME:generateContent           with an API key, without a project

Projects and locations are read and mean nothing here. Everything else of Vertex AI is refused.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.models import call_method
from alhena.serve.gemini.wire.fields import WireError

VERSIONS = ("v1", "v1beta1")
PREFIXES = (
    "/{version}/projects/{project}/locations/{location}/publishers/{publisher}",
    "/{version}/publishers/{publisher}",
)


def check_version(version: str) -> None:
    """Raises WireError 404 for a version of the API that this server does not have."""
    if version not in VERSIONS:
        raise WireError(404, f"Vertex AI has no version {version[:20]}; there are {', '.join(VERSIONS)}", "NOT_FOUND")


def _publisher_model(calls: Calls, name: str) -> dict[str, Any]:
    return {
        "name": f"publishers/google/models/{name}",
        "versionId": "1",
        "openSourceCategory": "GOOGLE_OWNED_OSS",
        "launchStage": "GA",
        "publisherModelTemplate": f"publishers/google/models/{calls.name}",
    }


def router(calls: Calls) -> APIRouter:
    """Routes of the models of Vertex AI; any other path under a project is 501."""
    routes = APIRouter()
    for prefix in PREFIXES:
        _add_models(routes, calls, prefix)

    @routes.api_route("/{version}/projects/{rest:path}", methods=["GET", "POST", "PATCH", "DELETE"])
    async def other(version: str, rest: str) -> None:
        check_version(version)
        message = f"projects/{rest[:100]} is not offered: of Vertex AI, this server has the methods of models"
        raise WireError(501, f"{message}; files, caches and batches are those of the Gemini API", "UNIMPLEMENTED")

    return routes


def _add_models(routes: APIRouter, calls: Calls, prefix: str) -> None:
    @routes.get(f"{prefix}/models")
    async def models(version: str) -> dict[str, Any]:
        check_version(version)
        names = [calls.name, *calls.settings.aliases]
        return {"publisherModels": [_publisher_model(calls, name) for name in names]}

    @routes.get(f"{prefix}/models/{{model}}")
    async def model_card(version: str, model: str) -> dict[str, Any]:
        check_version(version)
        calls.resolve(model)
        return _publisher_model(calls, model)

    @routes.post(f"{prefix}/models/{{call}}", response_model=None)
    async def call(version: str, call: str, request: Request) -> Response:
        check_version(version)
        model, _, method = call.partition(":")
        calls.resolve(model)
        return await call_method(calls, model, method, request)
