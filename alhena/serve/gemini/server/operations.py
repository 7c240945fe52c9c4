"""What an operator of a server asks for: /healthz, /metrics, a log line for each request, and that it drains before it ends."""

from __future__ import annotations

import re
import time
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from alhena.serve.decoding.speculative.batch import SpeculativeBatch
from alhena.serve.engine import Engine
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.server.connections import Application, Message
from alhena.serve.gemini.streams import CLIENT_CLOSED_REQUEST
from alhena.serve.gemini.wire.fields import unavailable
from alhena.serve.monitoring import logs
from alhena.serve.monitoring.health import PROBES, Health
from alhena.serve.monitoring.metrics import Metrics

# Names of requests in metrics and logs: any other would let clients make as many time series as they like.
METHODS = frozenset(
    """
    generateContent streamGenerateContent countTokens computeTokens embedContent batchEmbedContents batchGenerateContent
    asyncBatchEmbedContent predict cancel
    """.split()
)
RESOURCES = re.compile(
    r"/(models|tunedModels|files|cachedContents|batches|interactions|chat/completions|completions|embeddings|healthz|metrics|page)(?=/|$)"
)
# Bytes of a request that are logged, where its contents are.
MAX_LOGGED = 1 << 16


def call_name(path: str) -> str:
    """The method of the API, or the resource, that a path names.

    >>> [call_name(p) for p in ("/v1/models/x:countTokens", "/v1beta/openai/chat/completions", "/v1beta/files/a1", "/x:y", "/")]
    ['countTokens', 'chat/completions', 'files', 'other', 'page']
    """
    method = path.rpartition(":")[2]
    if method in METHODS:
        return method
    resources = RESOURCES.findall(path)
    return resources[-1] if resources else "page" if path == "/" else "other"


class Observed:
    """ASGI middleware: counts, times and logs each request, and refuses new ones while the server drains."""

    def __init__(self, app: Application, health: Health, metrics: Metrics, log_contents: bool) -> None:
        self._app, self._health, self._metrics, self._log_contents = app, health, metrics, log_contents

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_probe = scope["path"] in PROBES
        app = _Draining() if self._health.draining and not is_probe else self._app
        seen = _Seen(receive, send, MAX_LOGGED if self._log_contents else 0)
        self._health.running += not is_probe
        try:
            await app(scope, seen.receive, seen.send)
        except Exception:
            # Starlette answers it, outside of all middleware.
            seen.status = 500 if seen.status == CLIENT_CLOSED_REQUEST else seen.status
            raise
        finally:
            self._health.running -= not is_probe
            self._record(scope, seen)

    def _record(self, scope: Message, seen: _Seen) -> None:
        name, seconds = call_name(scope["path"]), time.monotonic() - seen.began
        self._metrics.requests.labels(name, str(seen.status)).inc()
        self._metrics.request_seconds.labels(name).observe(seconds)
        # The query may hold a key.
        fields: dict[str, Any] = {
            "method": scope["method"], "path": scope["path"], "call": name, "status": seen.status,
            "seconds": round(seconds, 4), "client": (scope.get("client") or ("",))[0],
        }  # fmt: skip
        if self._log_contents:
            fields["body"] = bytes(seen.body).decode("utf-8", "replace")
        logs.access.info("%s %s %s", scope["method"], scope["path"], seen.status, extra={"fields": fields})


class _Draining:
    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        error = unavailable("the server is shutting down")
        await JSONResponse(error.body(), error.code, {**error.headers, "connection": "close"})(scope, receive, send)


class _Seen:
    """What passes between a client and the application: the status, and the beginning of the body."""

    def __init__(self, receive: Any, send: Any, max_body: int) -> None:
        self._receive, self._send, self._max_body = receive, send, max_body
        # A client that disconnects before a response gets none.
        self.began, self.status, self.body = time.monotonic(), CLIENT_CLOSED_REQUEST, bytearray()

    async def receive(self) -> Message:
        message = await self._receive()
        if self._max_body > len(self.body):
            self.body += message.get("body", b"")[: self._max_body - len(self.body)]
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def observe(app: FastAPI, calls: Calls, log_contents: bool) -> None:
    """Adds the metrics and the middleware to an application; it stands outside of all others."""
    calls.scheduler.observer = calls.metrics.generation
    calls.metrics.watch("alhena_running_requests", "Requests being answered.", lambda: calls.health.running)
    calls.metrics.watch("alhena_queue_length", "Generations that wait.", lambda: calls.scheduler.waiting)
    calls.metrics.watch("alhena_draining", "1 while the server lets requests end.", lambda: calls.health.draining)
    if isinstance(engine := calls.engine, Engine):
        calls.metrics.watch("alhena_slots", "Sequences that are generated at a time.", lambda: engine.slots)
        calls.metrics.watch("alhena_slots_in_use", "Slots in use.", lambda: engine.batch.slots_in_use)
        if isinstance(batch := engine.batch, SpeculativeBatch):
            calls.metrics.count("alhena_draft_tokens", "Tokens that the draft proposed.", lambda: batch.proposed)
            calls.metrics.count(
                "alhena_accepted_draft_tokens", "Of them those that the model chose too.", lambda: batch.accepted
            )
    app.add_middleware(
        Observed, health=calls.health, metrics=calls.metrics, log_contents=log_contents  # type: ignore[arg-type]
    )  # fmt: skip


def router(calls: Calls) -> APIRouter:
    """Routes /healthz and /metrics."""
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> Response:
        """200 when ready, 503 while draining."""
        body: dict[str, object] = {"status": calls.health.status, "model": calls.name}
        if isinstance(calls.engine, Engine) and isinstance(batch := calls.engine.batch, SpeculativeBatch):
            body["draft"] = batch.acceptance()
        return JSONResponse(body, 503 if calls.health.draining else 200)

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(calls.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
