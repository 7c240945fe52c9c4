"""batches: create (batchGenerateContent, asyncBatchEmbedContent), get, list, cancel, delete.

Requests come in line or as lines of an uploaded file, and are answered in the background, one after the other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request

from alhena.serve.gemini import embeddings
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.pages import read_page
from alhena.serve.gemini.resources.batch_store import CANCELLED, ENDED, SUCCEEDED, BatchStore
from alhena.serve.gemini.resources.batch_worker import BatchWorker
from alhena.serve.gemini.wire.fields import (
    Fields,
    WireError,
    not_offered,
    parse_json,
    read_integer,
    read_list,
    read_object,
    read_string,
)
from alhena.serve.store import Record

GENERATE, EMBED = "batchGenerateContent", "asyncBatchEmbedContent"
METHODS = (GENERATE, EMBED)
MAX_INLINE = 10_000
TYPES = {GENERATE: "GenerateContentBatch", EMBED: "EmbedContentBatch"}
FIELDS = ("displayName", "inputConfig", "model", "priority", "webhookConfig", "name")


def _lines(requests: Fields) -> list[bytes]:
    """Requests in line as lines of JSON. Raises WireError."""
    where = "batch.inputConfig.requests"
    inner = read_object(requests, where, ("requests",))
    items = read_list(inner.get("requests", []), f"{where}.requests", MAX_INLINE)
    if not items:
        raise WireError(400, f"{where}.requests is empty")
    for i, item in enumerate(items):
        fields = read_object(item, f"{where}.requests[{i}]", ("request", "metadata"))
        if not isinstance(fields.get("request"), dict):
            raise WireError(400, f"{where}.requests[{i}].request is missing")
    return [json.dumps(item).encode() + b"\n" for item in items]


def _create(calls: Calls, batches: BatchStore, model: str, method: str, data: bytearray) -> Record:
    """Stores a batch. Raises WireError."""
    body = read_object(parse_json(data), "", ("batch",))
    batch = read_object(body.get("batch", {}), "batch", FIELDS)
    if "webhookConfig" in batch:
        raise not_offered("batch.webhookConfig", ": it sends nothing to addresses that a request names; poll the batch")
    read_integer(batch, "batch", "priority", 0)
    named = read_string(batch.get("model", model), "batch.model", 256)
    if named.removeprefix("models/") != model:
        raise WireError(400, f"batch.model is {named!r}, but the URL names models/{model}")
    source = read_object(batch.get("inputConfig", {}), "batch.inputConfig", ("fileName", "requests"))
    if len(source) != 1:
        raise WireError(400, "batch.inputConfig must have either requests or fileName")
    is_file = "fileName" in source
    value = {
        "method": method,
        "asked": model,
        "displayName": read_string(batch.get("displayName", ""), "batch.displayName", 512),
        "fromFile": is_file,
        "inputConfig": {"fileName": source["fileName"]} if is_file else {},
    }
    if is_file:
        file = calls.files.get(read_string(source["fileName"], "batch.inputConfig.fileName", 256))
        assert file.blob is not None
        return batches.create(value, file.blob)
    return batches.create(value, _lines(source["requests"]))


def _output(record: Record, output: Any) -> dict[str, Any]:
    if record.value.get("responsesFile"):
        return {"responsesFile": record.value["responsesFile"]}
    name = "inlinedResponses" if record.value["method"] == GENERATE else "inlinedEmbedContentResponses"
    return {name: {"inlinedResponses": output or []}}


def _operation(batches: BatchStore, record: Record, whole: bool = True) -> dict[str, Any]:
    """A batch as an operation; its output only where ``whole``."""
    value = record.value
    done = value["state"] in ENDED
    counts = {"request": value["count"], "failedRequest": value["failed"]}
    counts["successfulRequest"] = value["finished"] - value["failed"]
    counts["pendingRequest"] = value["count"] - value["finished"]
    succeeded = value["state"] == SUCCEEDED
    output = _output(record, batches.output(record)) if succeeded and (whole or value["fromFile"]) else {}
    named = f"type.googleapis.com/google.ai.generativelanguage.v1main.{TYPES[value['method']]}"
    metadata = {
        "@type": named,
        "model": f"models/{value['asked']}",
        **{
            name: value[name]
            for name in ("name", "displayName", "state", "createTime", "updateTime", "endTime", "inputConfig")
            if value.get(name)
        },
        "batchStats": {f"{name}Count": str(count) for name, count in counts.items() if count},
        **({"output": output} if output else {}),
    }
    result = {"response": {"@type": named + "Output", **output}} if output else {}
    error = {"error": value["error"]} if "error" in value else {}
    return {"name": value["name"], "metadata": metadata, **({"done": True} if done else {}), **result, **error}


def _cancel(batches: BatchStore, worker: BatchWorker, name: str) -> dict[str, Any]:
    record = batches.get(name)
    batches.finish(record, CANCELLED)
    worker.cancel(record.id)
    return {}


def router(calls: Calls) -> APIRouter:
    """Routes of batches, and their worker."""
    batches = BatchStore(calls.store)
    methods = {GENERATE: calls.answer, EMBED: lambda body, model: embeddings.respond(calls, body, model)}
    worker = BatchWorker(batches, calls.files, methods, lambda: calls.scheduler.waiting > 0)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.stop()

    routes = APIRouter(lifespan=lifespan)
    for method in METHODS:
        _add_create(routes, calls, batches, worker, method)

    @routes.get("/{version}/batches")
    async def list_batches(version: str, request: Request) -> dict[str, Any]:
        calls.check_version(version)
        page = read_page(request, 50, 1000)
        found = batches.page(page.size + 1, page.number)
        return page.write("operations", found, lambda record: _operation(batches, record, whole=False))

    @routes.get("/{version}/batches/{name}")
    async def get(version: str, name: str) -> dict[str, Any]:
        calls.check_version(version)
        return await asyncio.to_thread(lambda: _operation(batches, batches.get(name)))

    @routes.post("/{version}/batches/{call}")
    async def cancel(version: str, call: str) -> dict[str, Any]:
        calls.check_version(version)
        name, _, method = call.partition(":")
        if method != "cancel":
            raise WireError(404, f"batches/{name[:80]} has no method {method[:40]!r}; it has cancel", "NOT_FOUND")
        return _cancel(batches, worker, name)

    @routes.delete("/{version}/batches/{name}")
    async def delete(version: str, name: str) -> dict[str, Any]:
        calls.check_version(version)
        record = batches.get(name)
        await asyncio.to_thread(batches.delete, name)
        worker.cancel(record.id)
        return {}

    return routes


def _add_create(routes: APIRouter, calls: Calls, batches: BatchStore, worker: BatchWorker, method: str) -> None:
    """The route that creates a batch of a method; before that of all methods of models."""

    @routes.post(f"/{{version}}/models/{{model}}:{method}")
    async def create(version: str, model: str, request: Request) -> dict[str, Any]:
        calls.check(version, model)
        data = await calls.bodies.read(request)
        record = await asyncio.to_thread(_create, calls, batches, model, method, data)
        worker.wake()
        return _operation(batches, record)
