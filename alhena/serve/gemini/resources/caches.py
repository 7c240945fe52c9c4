"""cachedContents: create, get, list, patch (its expiry), delete."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.pages import read_page
from alhena.serve.gemini.wire.fields import WireError, parse_json, read_object, read_string
from alhena.serve.gemini.wire.request import read_count_request
from alhena.serve.gemini.wire.times import read_expiry

DEFAULT_SECONDS = 3600.0
CONTENT = ("contents", "systemInstruction", "tools", "toolConfig")
FIELDS = (*CONTENT, "model", "displayName", "ttl", "expireTime")
WRITTEN_BY_SERVER = ("name", "createTime", "updateTime", "usageMetadata")


async def _create(calls: Calls, data: bytearray) -> dict[str, Any]:
    """Stores cached content, once it is known that a prompt can begin with it."""
    fields = read_object(parse_json(data), "", (*FIELDS, *WRITTEN_BY_SERVER))
    if given := next((name for name in WRITTEN_BY_SERVER if fields.get(name)), None):
        raise WireError(400, f"{given} is written by the server")
    model = read_string(fields.get("model", ""), "model", 256)
    if not model:
        raise WireError(400, "model is missing: cached content belongs to a model")
    calls.resolve(model)
    model = model.removeprefix("models/")
    expires = read_expiry(fields, "", DEFAULT_SECONDS)
    assert expires is not None
    display_name = read_string(fields.get("displayName", ""), "displayName", 128)
    body = {name: fields[name] for name in CONTENT if name in fields}
    if not body:
        raise WireError(400, f"nothing to cache: give {', '.join(CONTENT)}")
    # Without contents there is no prompt to count: that of an empty turn has the tokens of the rest.
    counted = {"contents": [{"role": "user", "parts": [{"text": ""}]}], **body}
    _, example = await calls.read(counted, read_count_request, model)
    tokens = len(example.tokens)
    return (await asyncio.to_thread(calls.caches.create, body, model, display_name, tokens, expires)).value


def _patch(calls: Calls, name: str, data: bytearray, mask: str) -> dict[str, Any]:
    """Sets the expiry, the one thing of cached content that can change."""
    fields = read_object(parse_json(data), "", (*FIELDS, *WRITTEN_BY_SERVER))
    named = {field.strip() for field in mask.split(",") if field.strip()} or set(fields)
    fixed = (named | set(fields)) - {"ttl", "expireTime", "expire_time", "name"}
    if fixed:
        raise WireError(
            400, f"{', '.join(sorted(fixed))[:200]} of cached content cannot change; ttl and expireTime can"
        )
    expires = read_expiry(fields, "", None)
    if expires is None:
        raise WireError(400, "give ttl or expireTime, which alone can change")
    return calls.caches.extend(name, expires)


def router(calls: Calls) -> APIRouter:
    """Routes under ``/{version}/cachedContents``."""
    routes = APIRouter()

    @routes.post("/{version}/cachedContents")
    async def create(version: str, request: Request) -> dict[str, Any]:
        calls.check_version(version)
        return await _create(calls, await calls.bodies.read(request))

    @routes.get("/{version}/cachedContents")
    async def list_caches(version: str, request: Request) -> dict[str, Any]:
        calls.check_version(version)
        page = read_page(request, 50, 1000)
        return page.write("cachedContents", calls.caches.page(page.size + 1, page.number), lambda record: record.value)

    @routes.get("/{version}/cachedContents/{name}")
    async def get(version: str, name: str) -> dict[str, Any]:
        calls.check_version(version)
        return calls.caches.get(name).value

    @routes.patch("/{version}/cachedContents/{name}")
    async def patch(version: str, name: str, request: Request) -> dict[str, Any]:
        calls.check_version(version)
        mask = request.query_params.get("updateMask", "")
        return _patch(calls, name, await calls.bodies.read(request), mask)

    @routes.delete("/{version}/cachedContents/{name}")
    async def delete(version: str, name: str) -> dict[str, Any]:
        calls.check_version(version)
        await asyncio.to_thread(calls.caches.delete, name)
        return {}

    return routes
