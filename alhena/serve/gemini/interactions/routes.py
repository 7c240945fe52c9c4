"""The Interactions API: conversations whose history the server keeps, and answers that are made in the background.

POST   /v1beta/interactions              one interaction, or the stream of its events
GET    /v1beta/interactions/ID           the interaction, or (?stream=true&last_event_id=N) the rest of its events
POST   /v1beta/interactions/ID/cancel    of one in the background
DELETE /v1beta/interactions/ID

As in Google's API, an interaction inherits the contents of the previous one, and not its tools, instruction or settings.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from alhena.serve.gemini import vertex
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.generate import Candidates
from alhena.serve.gemini.interactions.events import StepWriter
from alhena.serve.gemini.interactions.request import InteractionRequest, read_interaction, translate
from alhena.serve.gemini.interactions.steps import Json
from alhena.serve.gemini.interactions.store import Interaction, Interactions
from alhena.serve.gemini.streams import EventStream, until_disconnect
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.gemini.wire.request import GenerateRequest, Served
from alhena.serve.gemini.wire.translation import Translation, error_route
from alhena.serve.scheduler import STRIDE

VERTEX = "/{version}/projects/{project}/locations/{location}"
log = logging.getLogger("alhena.serve")


def _error_body(error: WireError) -> Json:
    return {"error": {"code": error.status.lower(), "message": error.message}}


class _Create:
    """The creation of one interaction, from its body to its response."""

    def __init__(self, calls: Calls, interactions: Interactions) -> None:
        self._calls, self._interactions = calls, interactions
        self._request: InteractionRequest | None = None
        self._translation = Translation()

    def _parse(self, value: Any, _: str, served: Served) -> GenerateRequest:
        """Called on the parser's thread."""
        self._request, fields = read_interaction(value)
        name = self._calls.resolve(self._request.model)
        self._translation = translate(fields, self._interactions.history(self._request.previous), self._request.input)
        return self._translation.read(name, served)

    async def respond(self, data: bytearray) -> Response:
        try:
            generate, example = await self._calls.read(data, self._parse)
        except WireError as error:
            raise WireError(error.code, self._translation.relocate(error.message), error.status) from None
        request = self._request
        assert request is not None
        interaction = Interaction.new(request.model, request.shown, request.input)
        interaction.previous, interaction.store = request.previous, request.store
        interaction.background = request.background
        try:
            await self._interactions.begin(interaction)
            candidates, events = self._calls.events(generate, example, 1 if request.stream else STRIDE)
        except BaseException:
            # Refused, or the client has left: nothing runs.
            await self._interactions.discard(interaction)
            raise
        interaction.add({"event_type": "interaction.created", "interaction": interaction.head()})
        interaction.task = asyncio.create_task(self._run(interaction, candidates, events))
        return await self._response(interaction, request.stream)

    async def _response(self, interaction: Interaction, stream: bool) -> Response:
        """Once the task runs, it ends in order however it ends: only one that never ran would leave its interaction as it is."""
        try:
            await asyncio.sleep(0)
            if stream:
                leave = (lambda: None) if interaction.background else interaction.cancel
                return EventStream(leave, _sse(interaction, 0), "text/event-stream")
            if not interaction.background and interaction.task:
                await interaction.task
        except asyncio.CancelledError:
            if not interaction.background:
                interaction.cancel()
            raise
        if interaction.code and not interaction.background:
            failure = interaction.resource["errors"][0]
            raise WireError(interaction.code, failure["message"], failure["code"].upper())
        return JSONResponse(interaction.shown())

    async def _run(self, interaction: Interaction, candidates: Candidates, events: AsyncIterator[Json]) -> None:
        """Generates the answer; however it ends, the interaction then has its status and is stored."""
        writer = StepWriter()
        try:
            async for response in events:
                for event in writer.write(response):
                    interaction.add(event)
        except asyncio.CancelledError:
            writer.status = "cancelled"
        except Exception:
            log.exception("an interaction failed")
            writer.fail("INTERNAL", "internal error")
        finally:
            candidates.cancel()
        interaction.code = writer.code
        interaction.end(writer.status, writer.usage, writer.error)
        await self._interactions.end(interaction)


async def _sse(interaction: Interaction, after: int) -> AsyncIterator[str]:
    """Server-sent events after a number of them."""
    async for event in interaction.follow(after):
        yield f"event: {event['event_type']}\ndata: {json.dumps(event)}\n\n"
    yield "event: done\ndata: [DONE]\n\n"


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false"):
        raise WireError(400, f"{name} is {value[:20]!r}; it must be true or false")
    return value == "true"


async def _get(request: Request, interaction: Interaction) -> Response:
    """The interaction, or the rest of its events."""
    after = request.query_params.get("last_event_id", "0") or "0"
    if not _flag(request, "stream"):
        if "last_event_id" in request.query_params:
            raise WireError(400, "last_event_id goes with stream=true")
        return JSONResponse(interaction.shown(_flag(request, "include_input"), whole=True))
    if not (after.isascii() and after.isdigit() and int(after[:9]) <= len(interaction.events)):
        raise WireError(400, f"last_event_id is {after[:40]!r}; this interaction has no such event")
    return StreamingResponse(_sse(interaction, int(after)), media_type="text/event-stream")


def router(calls: Calls) -> APIRouter:
    """Routes under ``/{version}/interactions``, and under the paths of Vertex AI."""
    routes = APIRouter(route_class=error_route(_error_body))
    interactions = Interactions(calls.store)
    _add_routes(routes, calls, interactions, "/{version}/interactions", calls.check_version)
    _add_routes(routes, calls, interactions, f"{VERTEX}/interactions", vertex.check_version)
    return routes


def _add_routes(
    routes: APIRouter, calls: Calls, interactions: Interactions, path: str, check: Callable[[str], None]
) -> None:
    @routes.post(path, response_model=None)
    async def create(version: str, request: Request) -> Response:
        check(version)
        data = await calls.bodies.read(request)
        return await until_disconnect(request, _Create(calls, interactions).respond(data))

    @routes.get(f"{path}/{{identity}}", response_model=None)
    async def get(version: str, identity: str, request: Request) -> Response:
        check(version)
        return await _get(request, await asyncio.to_thread(interactions.get, identity))

    @routes.post(f"{path}/{{identity}}/cancel", response_model=None)
    async def cancel(version: str, identity: str) -> Response:
        check(version)
        interaction = await asyncio.to_thread(interactions.get, identity)
        if not (interaction.runs and interaction.background and interaction.task):
            message = f"the interaction has the status {interaction.status}: only one that runs in the background is cancelled"
            raise WireError(400, message, "FAILED_PRECONDITION")
        interaction.cancel()
        await asyncio.wait([interaction.task])
        return JSONResponse(interaction.shown(whole=True))

    @routes.delete(f"{path}/{{identity}}")
    async def delete(version: str, identity: str) -> Json:
        check(version)
        await interactions.delete(identity)
        return {}
