"""GET /v1beta/openai/models, and the fields that make a response of GET /v1/models readable for OpenAI's clients too."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from alhena.serve.gemini.calls import Calls
from alhena.serve.openai.errors import Route

STARTED = int(time.time())


def model_fields(name: str) -> dict[str, Any]:
    """A model as OpenAI's API describes it."""
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "alhena"}


def list_fields(names: list[str]) -> dict[str, Any]:
    """A list of models as OpenAI's API has it."""
    return {"object": "list", "data": [model_fields(name) for name in names]}


def router(calls: Calls) -> APIRouter:
    """Routes under ``/v1beta/openai/models``."""
    routes = APIRouter(prefix="/v1beta/openai", route_class=Route)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return list_fields(calls.names)

    @routes.get("/models/{model:path}")
    async def model_card(model: str) -> dict[str, Any]:
        calls.resolve(model)
        return model_fields(model)

    return routes
