"""Streamed responses: the events of a generation, as server-sent events or as one JSON array; and requests that end with their client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

CLIENT_CLOSED_REQUEST = 499
# Writes the events of a request as the body of a response.
WriteEvents = Callable[[AsyncIterator[dict[str, Any]]], AsyncIterator[str]]


async def write_sse(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    async for event in events:
        yield f"data: {json.dumps(event)}\r\n\r\n"


async def write_array(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    before = "["
    async for event in events:
        yield before + json.dumps(event)
        before = ",\n"
    yield "]"


class EventStream(StreamingResponse):
    """A stream of events; however it ends, ``cancel`` is called."""

    def __init__(self, cancel: Callable[[], None], body: AsyncIterator[str], media_type: str) -> None:
        self._cancel = cancel
        super().__init__(body, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


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
