"""Streamed responses: the events of a generation, as server-sent events or as one JSON array; and requests that end with their client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from alhena.content import Part, Thought
from alhena.serve.engine import Answer
from alhena.serve.gemini.fields import WireError
from alhena.serve.gemini.generation_config import Thinking
from alhena.serve.gemini.wire import GenerateRequest, write_response
from alhena.serve.scheduler import Generation

CLIENT_CLOSED_REQUEST = 499


def visible(parts: Sequence[Part], request: GenerateRequest) -> tuple[Part, ...]:
    """The parts that a response has: thoughts only where they are requested."""
    is_included = request.thinking in (Thinking.INCLUDED, Thinking.IF_ANY)
    return tuple(p for p in parts if is_included or not isinstance(p, Thought))


async def generation_events(
    generation: Generation, request: GenerateRequest, name: str, prompt: Mapping[str, int]
) -> AsyncIterator[dict[str, Any]]:
    """Events of a generation, each one behind: the last one then has a part, the finish reason and the token counts."""
    pending: Part | None = None
    try:
        async for item in generation:
            if isinstance(item, Answer):
                yield write_response((pending,) if pending else (), name, item, prompt)
                return
            if not visible((item,), request):
                continue
            if pending:
                yield write_response((pending,), name, None)
            pending = item
    except WireError as error:
        # The status has been sent already.
        yield error.body()


async def _sse(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    async for event in events:
        yield f"data: {json.dumps(event)}\r\n\r\n"


async def _array(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    before = "["
    async for event in events:
        yield before + json.dumps(event)
        before = ",\n"
    yield "]"


class EventStream(StreamingResponse):
    """A stream of events; however it ends, its generation is cancelled."""

    def __init__(self, generation: Generation, events: AsyncIterator[dict[str, Any]], sse: bool) -> None:
        self._generation = generation
        body, media_type = (_sse(events), "text/event-stream") if sse else (_array(events), "application/json")
        super().__init__(body, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response of ``work``, which is cancelled when the client disconnects."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, disconnect = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        for started in (task, disconnect):
            started.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await started
