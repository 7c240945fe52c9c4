"""GET /openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from alhena.serve.gemini.calls import Calls


def router(calls: Calls) -> APIRouter:
    """The route of the description."""
    routes = APIRouter()

    @routes.get("/openapi.json")
    def description() -> dict[str, Any]:
        # Its many types take a second to make.
        from alhena.serve.gemini.server.openapi import describe

        return describe(calls.name)

    return routes
