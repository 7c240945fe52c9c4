"""The routes of the page: ``/`` and its static files under ``/page/``, read once from the package.

The page runs no script but its own, loads nothing from elsewhere, sets no cookie, and cannot be shown inside another site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from alhena.serve.gemini.calls import Calls

INDEX = "index.html"
# require-trusted-types-for: a script that parses a text as HTML fails, so that no output of a model can become markup.
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' blob:", "media-src blob:",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
    )
)  # fmt: skip
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Cache-Control": "no-cache",
    }
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """The bytes of a file, their media type, and their hash as ETag."""

    data: bytes
    media_type: str
    tag: str

    def response(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers=headers, media_type=self.media_type)


def read_files() -> dict[str, StaticFile]:
    """All files of the page by name."""
    found: dict[str, StaticFile] = {}
    for file in files("alhena.serve.page").joinpath("static").iterdir():
        data = file.read_bytes()
        suffix = file.name[file.name.rindex(".") :]
        kind = TYPES[suffix]
        found[file.name] = StaticFile(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found


def router(_: Calls) -> APIRouter:
    """``/`` and ``/page/NAME``. They need no API key: the page asks for it."""
    return page_routes()


def page_routes() -> APIRouter:
    """The routes, which need nothing of the server."""
    routes, static = APIRouter(), read_files()

    @routes.get("/")
    async def page(request: Request) -> Response:
        return static[INDEX].response(request)

    @routes.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in static:
            raise HTTPException(404)
        return static[name].response(request)

    return routes
