"""Requests of another API as bodies of generateContent: one reader then holds all limits, and errors name the other API's fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from alhena.serve.gemini.wire.fields import Fields, WireError, read_object
from alhena.serve.gemini.wire.request import GenerateRequest, Served, read_request

# A field's path as messages name it: contents[0].parts[1].inlineData
# What names the kind of data in this API alone.
SUFFIX = re.compile(
    r"^\.(?:inlineData|fileData|functionCall|functionResponse)(?:\.(?:data|mimeType|fileUri|name|response|args))?"
)
PATH = re.compile(r"\b[A-Za-z]\w*(?:\[\d+\])?(?:\.[A-Za-z]\w*(?:\[\d+\])?)*")


@dataclass
class Translation:
    """A body of generateContent, and the paths of another API's fields by those of the body."""

    body: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    def relocate(self, message: str) -> str:
        """A message that names the other API's fields.

        >>> Translation(paths={"contents[0].parts[1]": "messages[0].content[1]"}).relocate("contents[0].parts[1].inlineData.data is bad")
        'messages[0].content[1] is bad'
        """
        return PATH.sub(lambda match: self._relocated(match[0]), message)

    def _relocated(self, path: str) -> str:
        for end in [len(path), *(at for at in range(len(path) - 1, 0, -1) if path[at] in ".[")]:
            if path[:end] in self.paths:
                return self.paths[path[:end]] + SUFFIX.sub("", path[end:])
        return path

    def read(self, model: str, served: Served) -> GenerateRequest:
        """The request. Raises WireError that names the other API's fields."""
        try:
            return read_request(self.body, model, served)
        except WireError as error:
            raise WireError(error.code, self.relocate(error.message), error.status) from None


def read_exactly(value: Any, where: str, known: Collection[str]) -> Fields:
    """Fields of an object whose names are taken as they are. Raises WireError for one that is not in ``known``."""
    return read_object(value, where, known, rename=lambda name: name)


def error_route(write: Callable[[WireError], dict[str, Any]]) -> type[APIRoute]:
    """A class of routes whose errors have the format of another API."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_in_format(request: Request) -> Response:
                try:
                    return await handle(request)
                except WireError as error:
                    return JSONResponse(write(error), error.code, error.headers)

            return handle_in_format

    return Route
