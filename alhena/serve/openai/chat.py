"""POST /v1/chat/completions, also under /v1beta/openai."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.streams import until_disconnect
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.gemini.wire.request import GenerateRequest, Served
from alhena.serve.openai.chat_request import ChatRequest, read_chat
from alhena.serve.openai.chat_response import Reply
from alhena.serve.openai.errors import Route

# Where clients of OpenAI look, and where Google offers the same.
PREFIXES = ("/v1", "/v1beta/openai")


class _ChatCall:
    """One chat completion, from its body to its response."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._chat: ChatRequest | None = None

    def _parse(self, value: Any, _: str, served: Served) -> GenerateRequest:
        """Called on the parser's thread."""
        self._chat = read_chat(value)
        return self._chat.translation.read(self._calls.resolve(self._chat.model), served)

    async def respond(self, data: bytearray) -> Response:
        try:
            request, example = await self._calls.read(data, self._parse)
        except WireError as error:
            if self._chat is None:
                raise
            raise WireError(error.code, self._chat.translation.relocate(error.message), error.status) from None
        chat = self._chat
        assert chat is not None
        reply = Reply(chat.model)
        if chat.stream:
            return self._calls.stream_response(
                request, example, lambda events: reply.chunks(events, chat.include_usage)
            )
        return JSONResponse(reply.completion(await self._calls.respond(request, example)))


def router(calls: Calls) -> APIRouter:
    """The routes of chat completions."""
    routes = APIRouter(route_class=Route)
    for prefix in PREFIXES:

        @routes.post(f"{prefix}/chat/completions", response_model=None)
        async def chat_completions(request: Request) -> Response:
            data = await calls.bodies.read(request)
            return await until_disconnect(request, _ChatCall(calls).respond(data))

    return routes
