"""The page over an API whose answers a test writes, for what a small random model cannot be made to say: calls, thoughts, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from alhena.serve.gemini.app import listen
from alhena.serve.gemini.server.access import check_key
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.page import page
from alhena.testing.server import run_in_thread

MODEL = {
    "name": "models/scripted", "displayName": "Scripted", "supportedGenerationMethods": ["generateContent"], "inputTokenLimit": 1000,
    "outputTokenLimit": 100, "temperature": 0.5, "topP": 0.9, "topK": 40, "thinking": True,
}  # fmt: skip


def event(*parts: dict[str, Any], finish: str = "") -> dict[str, Any]:
    """An event of a stream; the last one has a finish reason and token counts."""
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if not finish:
        return {"candidates": [candidate]}
    usage = {"promptTokenCount": 12, "candidatesTokenCount": 7, "totalTokenCount": 19}
    return {"candidates": [{**candidate, "finishReason": finish}], "usageMetadata": usage}


def error(code: int, status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message}}


class ScriptedApi:
    """Answers in order: each a list of events, or an error. ``bodies`` are the requests; ``key`` is the API key that is demanded."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.key, self.cancelled = "", 0

    async def events(self, answer: list[Any]) -> AsyncIterator[str]:
        try:
            for item in answer:
                # A number is a pause in seconds.
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield f"data: {json.dumps(item)}\r\n\r\n"
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def call(self, call: str, request: Request) -> Response:
        body = await request.json()
        if call.endswith(":countTokens"):
            return JSONResponse({"totalTokens": len(json.dumps(body)) // 10})
        self.bodies.append(body)
        answer = self.answers.pop(0)
        if isinstance(answer, dict):
            return JSONResponse(answer, answer["error"]["code"])
        return StreamingResponse(self.events(answer), media_type="text/event-stream")

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page.page_routes())

        @app.middleware("http")
        async def require_key(request: Request, call_next: Any) -> Response:
            headers = {name: value.decode() for name, value in request.headers.raw}
            try:
                check_key(request.url.path, request.url.query, headers, (self.key,) if self.key else ())
            except WireError as refusal:
                return JSONResponse(refusal.body(), refusal.code)
            return await call_next(request)

        app.get("/{version}/models")(lambda: {"models": [MODEL]})
        app.post("/{version}/models/{call}", response_model=None)(self.call)
        return app

    @contextmanager
    def running(self) -> Iterator[str]:
        """Yields the server's URL."""
        with listen("127.0.0.1", 0) as listener:
            server = uvicorn.Server(uvicorn.Config(self.app(), log_level="error"))
            with run_in_thread(server, listener):
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
