"""The Gemini API over HTTP, at the paths that the official SDK uses (``/v1`` and ``/v1beta``).

POST /v1beta/models/NAME:generateContent          one answer
POST /v1beta/models/NAME:streamGenerateContent    the same as a stream of events (?alt=sse, or a JSON array)
POST /v1beta/models/NAME:countTokens
GET  /v1beta/models   GET /v1beta/models/NAME

The event loop receives a request, one thread parses it and encodes its media, and the scheduler's thread generates, so that no
stage blocks the others. A client that disconnects cancels its request in each of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jax
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from alhena.batch import Example
from alhena.content import Part, Thought
from alhena.media import limit_memory, machine_memory
from alhena.serve.buckets import MAX_OUTPUT_TOKENS
from alhena.serve.engine import Answer, Engine
from alhena.serve.gemini.connections import Bodies, Guard, Hosts, Protocol
from alhena.serve.gemini.fields import WireError, not_offered, overloaded, parse_json
from alhena.serve.gemini.generation_config import Thinking
from alhena.serve.gemini.wire import GenerateRequest, read_count_request, read_request, write_response
from alhena.serve.sampler import Sampling
from alhena.serve.scheduler import STRIDE, Generation, Scheduler, StreamingEngine
from alhena.serve.usage import count_modalities

METHODS = ("generateContent", "streamGenerateContent", "countTokens")
# Requests that wait to be parsed and encoded.
MAX_PARSING = 64
MAX_RUNNING = 256
# Time that running requests have to end when the server shuts down.
DRAIN_SECONDS = 5
CLIENT_CLOSED_REQUEST = 499
STATUSES = {404: "NOT_FOUND", 405: "UNIMPLEMENTED", 500: "INTERNAL"}
Parse = Callable[[Any, str, Sampling], GenerateRequest]


def _model_info(name: str, engine: StreamingEngine) -> dict[str, Any]:
    default = engine.default_sampling
    return {
        "name": f"models/{name}",
        "displayName": f"Alhena {name}",
        "version": "1",
        "supportedGenerationMethods": list(METHODS),
        "inputTokenLimit": engine.max_prompt_tokens,
        "outputTokenLimit": MAX_OUTPUT_TOKENS,
        "temperature": default.temperature,
        "topP": default.top_p,
        "topK": default.top_k,
        "thinking": engine.encoder.thinks,
    }


def _visible(parts: Sequence[Part], request: GenerateRequest) -> tuple[Part, ...]:
    """The parts that a response has: thoughts only where they are requested."""
    is_included = request.thinking in (Thinking.INCLUDED, Thinking.IF_ANY)
    return tuple(p for p in parts if is_included or not isinstance(p, Thought))


class _Calls:
    """State shared by the API's methods: one parser thread (media are decoded one at a time) and one scheduler."""

    def __init__(self, engine: StreamingEngine, name: str) -> None:
        self.engine, self.name, self.bodies = engine, name, Bodies()
        self.scheduler = Scheduler(engine)
        self._parser, self._parsing = ThreadPoolExecutor(1, "alhena-parser"), 0

    async def read(self, data: bytearray, parse: Parse) -> tuple[GenerateRequest, Example]:
        """The parsed body and its encoded prompt. Raises WireError."""
        if self._parsing >= MAX_PARSING:
            raise overloaded(f"{MAX_PARSING} requests wait to be parsed")
        self._parsing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._parser, self._read, data, parse)
        finally:
            self._parsing -= 1

    def _read(self, data: bytearray, parse: Parse) -> tuple[GenerateRequest, Example]:
        request, thinks = parse(parse_json(data), self.name, self.engine.default_sampling), self.engine.encoder.thinks
        if request.thinking is Thinking.IF_ANY and not thinks:
            request = replace(request, prompt=replace(request.prompt, thinking=False))
        if request.thinking is Thinking.LIMITED and thinks:
            raise not_offered("generationConfig.thinkingConfig.thinkingBudget", " but as 0 (off) or -1 (unlimited)")
        try:
            return request, self.engine.encode(request.prompt, request.sampling)
        except ValueError as error:
            raise request.locate_error(error) from None

    async def count(self, data: bytearray) -> Response:
        _, example = await self.read(data, read_count_request)
        return JSONResponse({"totalTokens": len(example.tokens)})

    def modalities(self, example: Example) -> dict[str, int]:
        return count_modalities(example.tokens, self.engine.encoder)

    async def generate(self, data: bytearray) -> Response:
        request, example = await self.read(data, read_request)
        generation = self.scheduler.submit(example, request.sampling, STRIDE)
        try:
            answer = await generation.answer()
        finally:
            generation.cancel()
        parts = _visible(answer.content.parts, request)
        return JSONResponse(write_response(parts, self.name, answer, self.modalities(example)))

    async def stream(self, data: bytearray, sse: bool) -> Response:
        """Parses and queues before the stream begins, so that a refused request gets an HTTP status of its own."""
        request, example = await self.read(data, read_request)
        generation = self.scheduler.submit(example, request.sampling)
        return _Stream(generation, _events(generation, request, self.name, self.modalities(example)), sse)

    def stop(self) -> None:
        self._parser.shutdown(wait=False, cancel_futures=True)
        self.scheduler.stop()


async def _events(
    generation: Generation, request: GenerateRequest, name: str, prompt: Mapping[str, int]
) -> AsyncIterator[dict[str, Any]]:
    """Events of a generation, each one behind: the last one then has a part, the finish reason and the token counts."""
    pending: Part | None = None
    try:
        async for item in generation:
            if isinstance(item, Answer):
                yield write_response((pending,) if pending else (), name, item, prompt)
                return
            if not _visible((item,), request):
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


async def _until_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
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
    async def _client_disconnected(*_: Any) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def _internal_error(*_: Any) -> JSONResponse:
        return JSONResponse(WireError(500, "internal error", "INTERNAL").body(), 500)


def create_app(engine: StreamingEngine, name: str, hosts: Hosts = Hosts(), max_running: int = MAX_RUNNING) -> FastAPI:
    """The application that serves one model under one name."""
    calls = _Calls(engine, name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        calls.scheduler.start()
        yield
        await asyncio.to_thread(calls.stop)

    app = FastAPI(title="Alhena", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, hosts=hosts, max_running=max_running)  # type: ignore[arg-type]
    _set_error_shape(app)

    def check(version: str, model: str) -> None:
        if version not in ("v1", "v1beta"):
            raise WireError(404, f"there is no API version {version}; there are v1 and v1beta", "NOT_FOUND")
        if model != name:
            raise WireError(404, f"models/{model} is not found; this server has models/{name}", "NOT_FOUND")

    @app.get("/{version}/models")
    async def models(version: str) -> dict[str, Any]:
        check(version, name)
        return {"models": [_model_info(name, engine)]}

    @app.get("/{version}/models/{model}")
    async def model_card(version: str, model: str) -> dict[str, Any]:
        check(version, model)
        return _model_info(name, engine)

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
            return await _until_disconnect(request, calls.generate(data))
        if method == "countTokens":
            return await _until_disconnect(request, calls.count(data))
        return await _until_disconnect(request, calls.stream(data, alt == "sse"))

    return app


@dataclass(frozen=True)
class Listening:
    """Address to listen on, further allowed hosts, and the maximum number of requests at a time."""

    host: str = "127.0.0.1"
    port: int = 8000
    allow_hosts: tuple[str, ...] = ()
    limit_concurrency: int = MAX_RUNNING


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError when the port is in use or the host is not an address of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from None
    return listener


def make_server(app: FastAPI, log_level: str = "warning") -> uvicorn.Server:
    """A uvicorn server with the limits of this module."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http=Protocol, ws="none", log_level=log_level, access_log=False, proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )  # fmt: skip


def serve(folder: Path, where: Listening = Listening()) -> None:
    """Serves the model of a folder until interrupted."""
    with listen(where.host, where.port) as listener:
        _limit_process_memory()
        engine = Engine.load(folder)
        url_host = f"[{where.host}]" if ":" in where.host else where.host
        url = f"http://{url_host}:{listener.getsockname()[1]}"
        print(
            f"{engine.name} answers at {url}\n"
            "  from google import genai\n"
            f'  client = genai.Client(api_key="any", http_options={{"base_url": "{url}"}})\n'
            f'  client.models.generate_content(model="{engine.name}", contents="{example_request(engine)}")',
            flush=True,
        )
        hosts = Hosts.serving(where.host, where.allow_hosts)
        try:
            make_server(create_app(engine, engine.name, hosts, where.limit_concurrency)).run([listener])
        finally:
            _end_process()


def example_request(engine: Engine) -> str:
    """A request that the model can answer."""
    return "Write a short poem." if engine.image_decoder is None else "Draw a red circle."


def _limit_process_memory() -> None:
    """Last line of defense: an allocation beyond the machine's memory fails, and with it one request, not the server.

    Drivers of accelerators reserve more address space than there is memory, so only a CPU backend is limited.
    """
    if jax.default_backend() == "cpu":
        limit_memory(machine_memory() * 9 // 10)


def _end_process() -> None:
    """Ends the process when a thread does not end: the interpreter would wait for a decoder, and crash during a compilation."""
    for thread in threading.enumerate():
        if thread.name.startswith("alhena-"):
            thread.join(1)
            if thread.is_alive():
                os._exit(130)
