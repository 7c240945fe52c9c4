"""The Gemini API over HTTP, at the paths that the official SDK uses (``/v1`` and ``/v1beta``).

models.py       /v1beta/models, their methods that generate, count and embed
vertex.py       the same at the paths of Vertex AI
resources/      /upload/v1beta/files, /v1beta/files, /v1beta/cachedContents, /v1beta/batches
interactions/   /v1beta/interactions
../openai       /v1/chat/completions, /v1/embeddings, and the same under /v1beta/openai
../page         /, the chat page

The event loop receives a request, one thread parses it and encodes its media, and the scheduler's thread generates, so that no
stage blocks the others. A client that disconnects cancels its request in each of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect

from alhena.media import limit_memory, machine_memory
from alhena.serve.decoding.warm_up import keep_compiled, warm_up
from alhena.serve.engine import Engine
from alhena.serve.gemini import models, vertex
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.interactions import routes as interactions
from alhena.serve.gemini.resources import batches, caches, files
from alhena.serve.gemini.server import description, operations
from alhena.serve.gemini.server.connections import Guard, Hosts, Protocol
from alhena.serve.gemini.server.settings import Settings, check_public
from alhena.serve.gemini.streams import CLIENT_CLOSED_REQUEST
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.monitoring.health import DrainingServer
from alhena.serve.openai import chat
from alhena.serve.openai import embeddings as openai_embeddings
from alhena.serve.openai import models as openai_models
from alhena.serve.page import page
from alhena.serve.scheduler import StreamingEngine
from alhena.serve.store import Store

# Time that running requests have to end when the server is interrupted, or has drained for as long as it may.
DRAIN_SECONDS = 5
SWEEP_SECONDS = 600
STATUSES = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 500: "INTERNAL"}
# Each makes the routes of one part of the API.
# Those of batches stand before those of models, whose last route takes any method.
ROUTERS = (
    page.router,
    operations.router,
    batches.router,
    models.router,
    # Before those of Vertex AI, whose last route takes any path.
    interactions.router,
    vertex.router,
    files.router,
    caches.router,
    chat.router,
    openai_embeddings.router,
    openai_models.router,
    description.router,
)


def _set_error_shape(app: FastAPI) -> None:
    @app.exception_handler(WireError)
    async def _wire_error(_: Request, error: WireError) -> JSONResponse:
        return JSONResponse(error.body(), error.code, error.headers)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {HTTPStatus(error.status_code).phrase.lower()}"
        # As in Google's API, a method that a path does not have is not found.
        code = 404 if error.status_code == 405 else error.status_code
        wire = WireError(code, message, STATUSES.get(code, "INVALID_ARGUMENT"))
        return JSONResponse(wire.body(), wire.code)

    @app.exception_handler(ClientDisconnect)
    async def _client_disconnected(*_: Any) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def _internal_error(*_: Any) -> JSONResponse:
        return JSONResponse(WireError(500, "internal error", "INTERNAL").body(), 500)


async def _delete_expired(store: Store) -> None:
    """Deletes what has expired from the disk, now and then: until then it is only out of reach."""
    while True:
        await asyncio.to_thread(store.delete_expired)
        await asyncio.sleep(SWEEP_SECONDS)


def create_app(engine: StreamingEngine, name: str, settings: Settings = Settings()) -> FastAPI:
    """The application that serves one model."""
    calls = Calls(engine, name, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        calls.scheduler.start()
        sweeper = asyncio.create_task(_delete_expired(calls.store))
        yield
        sweeper.cancel()
        await asyncio.to_thread(calls.stop)

    app = FastAPI(title="Alhena", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, access=settings.access)  # type: ignore[arg-type]
    # As Google's API does; streams of events are left as they are.
    app.add_middleware(GZipMiddleware, minimum_size=0, compresslevel=4)
    if settings.cors:
        # Outside of the guard, so that a page can read its refusals.
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
        )
    operations.observe(app, calls, settings.log_contents)
    _set_error_shape(app)
    app.state.calls = calls
    for router in ROUTERS:
        app.include_router(router(calls))
    return app


@dataclass(frozen=True)
class Listening:
    """Address to listen on, and further allowed hosts."""

    host: str = "127.0.0.1"
    port: int = 8000
    allow_hosts: tuple[str, ...] = ()


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
    config = uvicorn.Config(
        app, http=Protocol, ws="none", log_level=log_level, access_log=False, proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS, log_config=None,
    )  # fmt: skip
    calls: Calls = app.state.calls
    return DrainingServer(config, calls.health, calls.settings.drain_seconds)


def serve(
    folder: Path, where: Listening, settings: Settings, aliases: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Serves the model of a folder until interrupted; ``aliases`` maps further names to the name of the model."""
    check_public(where.host, settings.keys)
    with listen(where.host, where.port) as listener:
        _limit_process_memory()
        keep_compiled()
        engine = Engine.load(folder, cache_dtype=settings.cache_dtype, draft=settings.draft)
        for alias, model in aliases.items():
            if model != engine.name:
                raise ValueError(f"--alias {alias}={model}: this server has one model, {engine.name}")
        warming = warm_up(engine)
        url_host = f"[{where.host}]" if ":" in where.host else where.host
        url = f"http://{url_host}:{listener.getsockname()[1]}"
        print(
            f"{engine.name} answers at {url}\n"
            "  from google import genai\n"
            f'  client = genai.Client(api_key="any", http_options={{"base_url": "{url}"}})\n'
            f'  client.models.generate_content(model="{engine.name}", contents="{example_request(engine)}")',
            flush=True,
        )
        settings = replace(settings, aliases=tuple(aliases), hosts=Hosts.serving(where.host, where.allow_hosts))
        run(make_server(create_app(engine, engine.name, settings)), listener, warming.stop)


def run(server: uvicorn.Server, listener: socket.socket, stop: threading.Event) -> None:
    """Runs the server until a signal ends it, then sets ``stop``. A thread that still runs ends with the process."""
    code = None
    try:
        server.run([listener])
        code = 0
    except KeyboardInterrupt as interrupt:
        # The shell's code for the signal, as without such a thread.
        code = 128 + getattr(interrupt, "number", signal.SIGINT)
        raise
    finally:
        stop.set()
        if code is not None:
            _end_process(code)


def example_request(engine: Engine) -> str:
    """A request that the model can answer."""
    return "Write a short poem." if engine.image_decoder is None else "Draw a red circle."


def _limit_process_memory() -> None:
    """Last line of defense: an allocation beyond the machine's memory fails, and with it one request, not the server.

    Drivers of accelerators reserve more address space than there is memory, so only a CPU backend is limited.
    """
    if jax.default_backend() == "cpu":
        limit_memory(machine_memory() * 9 // 10)


def _end_process(code: int) -> None:
    """Ends the process with this code when a thread does not end: the interpreter would wait for a decoder, and crash during a compilation."""
    for thread in threading.enumerate():
        if thread.name.startswith("alhena-"):
            thread.join(1)
            if thread.is_alive():
                os._exit(code)
