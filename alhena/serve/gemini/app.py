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
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jax
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from alhena.media import limit_memory, machine_memory
from alhena.serve.engine import Engine
from alhena.serve.gemini import models
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.connections import Guard, Hosts, Protocol
from alhena.serve.gemini.fields import WireError
from alhena.serve.gemini.streams import CLIENT_CLOSED_REQUEST
from alhena.serve.scheduler import StreamingEngine

MAX_RUNNING = 256
# Time that running requests have to end when the server shuts down.
DRAIN_SECONDS = 5
STATUSES = {404: "NOT_FOUND", 405: "UNIMPLEMENTED", 500: "INTERNAL"}
# Each makes the routes of one part of the API.
ROUTERS = (models.router,)


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
    calls = Calls(engine, name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        calls.scheduler.start()
        yield
        await asyncio.to_thread(calls.stop)

    app = FastAPI(title="Alhena", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, hosts=hosts, max_running=max_running)  # type: ignore[arg-type]
    _set_error_shape(app)
    for router in ROUTERS:
        app.include_router(router(calls))
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
