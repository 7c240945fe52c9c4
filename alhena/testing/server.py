"""The server of an offline Gemini API: the real application, with a recorder in front of it that also fails, blocks and breaks off."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from alhena.serve.engine import Engine
from alhena.serve.gemini.app import create_app, listen, make_server
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.server.connections import Application, Message
from alhena.serve.gemini.server.settings import Settings
from alhena.serve.gemini.wire.settings.safety_settings import CATEGORIES
from alhena.serve.safety import classify
from alhena.testing.embeddings import HashingEmbedder
from alhena.testing.engine import ScriptedEngine, ScriptedScheduler, current_play
from alhena.testing.script import Block, Failure, Play, Reply, Request, Script

NAME = "scripted"
# After which a server that does not start is an error.
START_SECONDS = 60.0
# Time that it has to end.
STOP_SECONDS = 20.0


class Broken(Exception):
    """Ends a response in the middle: the server then closes the connection."""


class Recorder:
    """ASGI middleware: records each request, and delivers its outcome or has ``app`` deliver it."""

    def __init__(self, app: Application, script: Script) -> None:
        self._app, self._script = app, script

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        data = await _read(receive)
        request = _request(scope, data)
        self._script.requests.append(request)
        play = await asyncio.to_thread(self._script.take, request)
        current_play.set(play)
        answer = None if play is None else await _response(play, request)
        app, outcome = answer or self._app, play.outcome if play else None
        breaks = outcome.break_after if isinstance(outcome, Reply) else None
        if breaks is not None and not request.call.startswith("stream"):
            breaks = 0
        try:
            await app(scope, _replayed(data, receive), _observed(send, request, breaks))
        finally:
            if play and not play.delivered:
                self._script.give_back(play)


async def _read(receive: Any) -> bytes:
    data, more = bytearray(), True
    while more:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(data)


def _request(scope: Message, data: bytes) -> Request:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return Request(scope["method"], scope["path"], scope["query_string"].decode("latin-1"), headers, data)


def _replayed(data: bytes, receive: Any) -> Any:
    """``receive`` of an application for a body that has been read."""
    messages = [{"type": "http.request", "body": data, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _observed(send: Any, request: Request, break_after: int | None) -> Any:
    """``send`` that records the status, and breaks off after a number of events."""
    events = 0

    async def observed(message: Message) -> None:
        nonlocal events
        if message["type"] == "http.response.start":
            request.status = message["status"]
        elif message.get("body"):
            if break_after is not None and request.status == 200 and events >= break_after:
                raise Broken
            events += 1
        await send(message)

    return observed


async def _response(play: Play, request: Request) -> Response | None:
    """The response to a request that fails or is blocked."""
    outcome = play.outcome
    if isinstance(outcome, Reply):
        return None
    play.delivered = True
    if isinstance(outcome, Failure):
        await asyncio.sleep(outcome.delay)
        headers = {} if outcome.retry_after is None else {"retry-after": str(outcome.retry_after)}
        return JSONResponse(outcome.body(), outcome.code, headers)
    return _blocked(outcome, request)


def _blocked(block: Block, request: Request) -> Response:
    body = block.body(request.model)
    if "alt=sse" in request.query:
        return Response(f"data: {json.dumps(body)}\r\n\r\n", media_type="text/event-stream")
    return JSONResponse([body] if request.call.startswith("stream") else body)


def classify_all(text: str) -> dict[str, float]:
    """The probability of every category of harm, since applications set thresholds for all; 0 where only the script can block."""
    return dict.fromkeys(sorted(CATEGORIES), 0.0) | classify(text)


def make_app(model: Path | None, script: Script, settings: Settings | None = None) -> FastAPI:
    """The application that plays a script. By default it answers to the name of any model."""
    settings = settings or Settings(any_model=True, classify=classify if model else classify_all)
    engine = ScriptedEngine() if model is None else Engine.load(model)
    app = create_app(engine, NAME if isinstance(engine, ScriptedEngine) else engine.name, settings)
    calls: Calls = app.state.calls
    scheduler = ScriptedScheduler(None if model is None else calls.scheduler)
    scheduler.observer = calls.metrics.generation
    calls.scheduler = scheduler  # type: ignore[assignment]
    if model is None:
        calls.embedder = HashingEmbedder()
    app.add_middleware(Recorder, script=script)  # type: ignore[arg-type]
    return app


@contextmanager
def run_in_thread(server: uvicorn.Server, listener: socket.socket) -> Iterator[threading.Thread]:
    """Runs a server in a thread until the block ends; yields the thread. Raises RuntimeError when it does not start."""
    thread = threading.Thread(target=server.run, args=([listener],), name="gemini-server", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the server did not start")
        time.sleep(0.005)
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS)


@contextmanager
def running(model: Path | None = None, port: int = 0) -> Iterator[Script]:
    """Runs the offline API in a thread; yields its script."""
    with listen("127.0.0.1", port) as listener:
        script = Script(f"http://127.0.0.1:{listener.getsockname()[1]}")
        # A response that breaks off is no error of the server.
        with run_in_thread(make_server(make_app(model, script), "critical"), listener):
            yield script
