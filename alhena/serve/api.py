"""The Gemini API over HTTP: what the official SDK calls, at the paths it calls them (``/v1`` and ``/v1beta``).

POST /v1beta/models/NAME:generateContent          one answer
POST /v1beta/models/NAME:streamGenerateContent    the same in pieces (?alt=sse, or a JSON array)
POST /v1beta/models/NAME:countTokens
GET  /v1beta/models   GET /v1beta/models/NAME
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from alhena.content import Part
from alhena.serve.engine import TOKENS, Answer, Engine
from alhena.serve.sampler import Sampling
from alhena.serve.wire import WireError, read_contents, read_sampling, write_response

MOST_BYTES = 64 << 20
DEFAULT = Sampling(temperature=0.0, max_tokens=256)
METHODS = ("generateContent", "streamGenerateContent", "countTokens")


async def _body(request: Request) -> Any:
    """The JSON body, read no further than MOST_BYTES."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_BYTES:
            raise WireError(413, f"the request is larger than {MOST_BYTES:,} bytes", "INVALID_ARGUMENT")
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(400, f"the request is not JSON: {error}") from None


def _card(name: str, engine: Engine) -> dict[str, Any]:
    limits = {"inputTokenLimit": TOKENS[-1], "outputTokenLimit": DEFAULT.max_tokens}
    return {
        "name": f"models/{name}",
        "displayName": f"Alhena {name}",
        "version": "1",
        "supportedGenerationMethods": list(METHODS),
        **limits,
    }


class _Calls:
    """The engine's methods as the wire wants them; one generation at a time."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name, self.lock = engine, name, threading.Lock()

    def generate(self, body: Any) -> dict[str, Any]:
        contents, sampling = read_contents(body), read_sampling(body, DEFAULT)
        with self.lock:
            answer = self.engine.generate([contents], sampling)[0]
        return write_response(answer.content.parts, self.name, answer)

    def events(self, body: Any) -> Iterator[dict[str, Any]]:
        """Checked at once, so that a bad request fails before the stream begins."""
        contents, sampling = read_contents(body), read_sampling(body, DEFAULT)
        self.engine.encoder.prompt(contents)
        return self._events(contents, sampling)

    def _events(self, contents: list, sampling: Sampling) -> Iterator[dict[str, Any]]:
        with self.lock:
            for news in self.engine.stream(contents, sampling):
                parts: tuple[Part, ...] = () if isinstance(news, Answer) else (news,)
                yield write_response(parts, self.name, news if isinstance(news, Answer) else None)

    def count(self, body: Any) -> dict[str, Any]:
        request = body.get("generateContentRequest", body) if isinstance(body, dict) else body
        return {"totalTokens": len(self.engine.encoder.prompt(read_contents(request)).tokens)}


def _sse(events: Iterator[dict[str, Any]]) -> Iterator[str]:
    for event in events:
        yield f"data: {json.dumps(event)}\r\n\r\n"


def _array(events: Iterator[dict[str, Any]]) -> Iterator[str]:
    for i, event in enumerate(events):
        yield ("[" if i == 0 else ",\n") + json.dumps(event)
    yield "]"


def create_app(engine: Engine, name: str) -> FastAPI:
    """The application that serves one model under one name."""
    app, calls = FastAPI(title="Alhena", docs_url=None, redoc_url=None), _Calls(engine, name)

    @app.exception_handler(WireError)
    async def _wire_error(_: Request, error: WireError) -> JSONResponse:
        return JSONResponse(error.body(), error.code)

    def check(model: str) -> None:
        if model != name:
            raise WireError(404, f"models/{model} is not found; this server has models/{name}", "NOT_FOUND")

    @app.get("/{version}/models")
    async def models(version: str) -> dict[str, Any]:
        return {"models": [_card(name, engine)]}

    @app.get("/{version}/models/{model}")
    async def model_card(version: str, model: str) -> dict[str, Any]:
        check(model)
        return _card(name, engine)

    @app.post("/{version}/models/{call}", response_model=None)
    async def call(version: str, call: str, request: Request) -> JSONResponse | StreamingResponse:
        model, _, method = call.partition(":")
        check(model)
        if method not in METHODS:
            raise WireError(404, f"models/{model} has no method {method!r}; it has {', '.join(METHODS)}", "NOT_FOUND")
        body = await _body(request)
        try:
            if method == "generateContent":
                return JSONResponse(await run_in_threadpool(calls.generate, body))
            if method == "countTokens":
                return JSONResponse(await run_in_threadpool(calls.count, body))
            events = await run_in_threadpool(calls.events, body)
        except ValueError as error:  # a prompt that is too long, a medium that cannot be read
            raise WireError(400, str(error)) from None
        if request.query_params.get("alt") == "sse":
            return StreamingResponse(_sse(events), media_type="text/event-stream")
        return StreamingResponse(_array(events), media_type="application/json")

    return app


def serve(folder: Path, host: str, port: int) -> None:
    """Serves the model of a folder until interrupted."""
    engine = Engine.load(folder)
    base = f"http://{host}:{port}"
    print(
        f'{engine.name} answers at {base}\n  from google import genai\n  client = genai.Client(api_key="any", http_options={{"base_url": "{base}"}})'
    )
    print(f'  client.models.generate_content(model="{engine.name}", contents="Draw a red circle.")')
    uvicorn.run(create_app(engine, engine.name), host=host, port=port, log_level="warning")
