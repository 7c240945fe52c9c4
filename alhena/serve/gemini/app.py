"""The Gemini API over HTTP: what the official SDK calls, at the paths it calls them (``/v1`` and ``/v1beta``).

POST /v1beta/models/NAME:generateContent          one answer
POST /v1beta/models/NAME:streamGenerateContent    the same as a stream of events (?alt=sse, or a JSON array)
POST /v1beta/models/NAME:countTokens
GET  /v1beta/models   GET /v1beta/models/NAME

A request passes three places, so that none keeps the others waiting: the event loop receives it, one thread parses it and encodes
its media, and the scheduler's thread generates. A client that leaves cancels its request in each of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from alhena.batch import Example
from alhena.content import Part
from alhena.serve.engine import MOST_OUTPUT, TOKENS, Answer, Engine, rows_of
from alhena.serve.gemini.connections import Bodies, Guard, Hosts, Protocol
from alhena.serve.gemini.fields import WireError, overloaded, parse_json
from alhena.serve.gemini.wire import GenerateRequest, count_modalities, read_count_request, read_request, write_response
from alhena.serve.sampler import Sampling
from alhena.serve.scheduler import STRIDE, Generation, Scheduler

DEFAULT = Sampling(temperature=0.0, max_tokens=256)
METHODS = ("generateContent", "streamGenerateContent", "countTokens")
MOST_READING = 64  # requests that wait to be parsed and encoded
MOST_RUNNING = 256
DRAIN_SECONDS = 5  # running requests get as long when the server is told to end
CLIENT_GONE = 499
STATUSES = {404: "NOT_FOUND", 405: "UNIMPLEMENTED", 500: "INTERNAL"}
Read = Callable[[Any, str, Sampling], GenerateRequest]


def _card(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "displayName": f"Alhena {name}",
        "version": "1",
        "supportedGenerationMethods": list(METHODS),
        "inputTokenLimit": TOKENS[-1],
        "outputTokenLimit": MOST_OUTPUT,
    }


class _Calls:
    """What the methods share: one reader thread (one medium is decoded at a time) and one scheduler."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name, self.bodies = engine, name, Bodies()
        self.scheduler = Scheduler(engine)
        self._reader, self._reading = ThreadPoolExecutor(1, "alhena-reader"), 0

    async def read(self, data: bytearray, read: Read) -> tuple[GenerateRequest, Example]:
        """The body, parsed, and its prompt, encoded once. Raises WireError."""
        if self._reading >= MOST_READING:
            raise overloaded(f"{MOST_READING} requests wait to be read")
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, self._read, data, read)
        finally:
            self._reading -= 1

    def _read(self, data: bytearray, read: Read) -> tuple[GenerateRequest, Example]:
        request = read(parse_json(data), self.name, DEFAULT)
        try:
            return request, self.engine.encode(request.contents, rows_of(request.sampling))
        except ValueError as error:
            raise request.culprit(error) from None

    async def count(self, data: bytearray) -> Response:
        _, example = await self.read(data, read_count_request)
        return JSONResponse({"totalTokens": len(example.tokens)})

    def modalities(self, example: Example) -> dict[str, int]:
        return count_modalities(example.tokens.tolist(), self.engine.encoder.vocabulary)

    async def generate(self, data: bytearray) -> Response:
        request, example = await self.read(data, read_request)
        generation = self.scheduler.submit(example, request.sampling, STRIDE)
        try:
            answer = await generation.answer()
        finally:
            generation.cancel()
        return JSONResponse(write_response(answer.content.parts, self.name, answer, self.modalities(example)))

    async def stream(self, data: bytearray, sse: bool) -> Response:
        """Read and queued before the stream begins, so that what is refused has a status of its own."""
        request, example = await self.read(data, read_request)
        generation = self.scheduler.submit(example, request.sampling)
        return _Stream(generation, _events(generation, self.name, self.modalities(example)), sse)

    def stop(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)
        self.scheduler.stop()


async def _events(generation: Generation, name: str, prompt: Mapping[str, int]) -> AsyncIterator[dict[str, Any]]:
    """Events of a generation. One is held back, so that the last one has a part as well as the reason and the counts."""
    held: Part | None = None
    try:
        async for news in generation:
            if isinstance(news, Answer):
                yield write_response((held,) if held else (), name, news, prompt)
                return
            if held:
                yield write_response((held,), name, None)
            held = news
    except WireError as error:  # too late for a status
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


class _Stream(StreamingResponse):
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


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response of ``work``, which is cancelled when the client leaves."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, left = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=CLIENT_GONE)
    finally:
        for some in (task, left):
            some.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await some


def _set_error_shape(app: FastAPI) -> None:
    @app.exception_handler(WireError)
    async def _wire_error(_: Request, error: WireError) -> JSONResponse:
        return JSONResponse(error.body(), error.code)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {HTTPStatus(error.status_code).phrase.lower()}"
        wire = WireError(error.status_code, message, STATUSES.get(error.status_code, "INVALID_ARGUMENT"))
        return JSONResponse(wire.body(), wire.code)

    @app.exception_handler(ClientDisconnect)
    async def _client_gone(*_: Any) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(Exception)
    async def _internal_error(*_: Any) -> JSONResponse:
        return JSONResponse(WireError(500, "internal error", "INTERNAL").body(), 500)


def create_app(engine: Engine, name: str, hosts: Hosts = Hosts(), most_running: int = MOST_RUNNING) -> FastAPI:
    """The application that serves one model under one name."""
    calls = _Calls(engine, name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        calls.scheduler.start()
        yield
        await asyncio.to_thread(calls.stop)

    app = FastAPI(title="Alhena", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, hosts=hosts, most=most_running)  # type: ignore[arg-type]
    _set_error_shape(app)

    def check(version: str, model: str) -> None:
        if version not in ("v1", "v1beta"):
            raise WireError(404, f"there is no API version {version}; there are v1 and v1beta", "NOT_FOUND")
        if model != name:
            raise WireError(404, f"models/{model} is not found; this server has models/{name}", "NOT_FOUND")

    @app.get("/{version}/models")
    async def models(version: str) -> dict[str, Any]:
        check(version, name)
        return {"models": [_card(name)]}

    @app.get("/{version}/models/{model}")
    async def model_card(version: str, model: str) -> dict[str, Any]:
        check(version, model)
        return _card(name)

    @app.post("/{version}/models/{call}", response_model=None)
    async def call(version: str, call: str, request: Request) -> Response:
        model, _, method = call.partition(":")
        check(version, model)
        alt = request.query_params.get("alt", "json")
        if alt not in ("json", "sse"):
            raise WireError(400, f"alt is {alt[:20]!r}; it must be json or sse")
        if method not in METHODS:
            raise WireError(404, f"models/{model} has no method {method!r}; it has {', '.join(METHODS)}", "NOT_FOUND")
        data = await calls.bodies.read(request)
        if method == "generateContent":
            return await _unless_gone(request, calls.generate(data))
        if method == "countTokens":
            return await _unless_gone(request, calls.count(data))
        return await _unless_gone(request, calls.stream(data, alt == "sse"))

    return app


@dataclass(frozen=True)
class Listening:
    """Where to serve, and for whom."""

    host: str = "127.0.0.1"
    port: int = 8000
    allow_hosts: tuple[str, ...] = ()
    limit_concurrency: int = MOST_RUNNING


def _listen(host: str, port: int) -> socket.socket:
    """Raises ValueError when the port is in use or the host is not of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"cannot listen on {host} port {port}: {why}; choose another --port or --host") from None
    return listener


def make_server(app: FastAPI, log_level: str = "warning") -> uvicorn.Server:
    """uvicorn with this server's limits."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http=Protocol, ws="none", log_level=log_level, access_log=False, proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )  # fmt: skip


def serve(folder: Path, where: Listening = Listening()) -> None:
    """Serves the model of a folder until interrupted."""
    with _listen(where.host, where.port) as listener:
        engine = Engine.load(folder)
        shown = f"[{where.host}]" if ":" in where.host else where.host
        base = f"http://{shown}:{listener.getsockname()[1]}"
        print(
            f"{engine.name} answers at {base}\n"
            "  from google import genai\n"
            f'  client = genai.Client(api_key="any", http_options={{"base_url": "{base}"}})\n'
            f'  client.models.generate_content(model="{engine.name}", contents="Draw a red circle.")',
            flush=True,
        )
        hosts = Hosts.serving(where.host, where.allow_hosts)
        try:
            make_server(create_app(engine, engine.name, hosts, where.limit_concurrency)).run([listener])
        finally:
            _leave()


def _leave() -> None:
    """Ends the process where a thread does not end: the interpreter would wait for one that decodes, and crash in one that compiles."""
    for thread in threading.enumerate():
        if thread.name.startswith("alhena-"):
            thread.join(1)
            if thread.is_alive():
                os._exit(130)
