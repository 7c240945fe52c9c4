"""What the methods of the API share: the engine, its scheduler, and one thread that parses requests and encodes their media."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, TypeVar

from fastapi import Response
from fastapi.responses import JSONResponse

from alhena.batch import Example
from alhena.serve.embeddings import Embedder
from alhena.serve.engine import Engine
from alhena.serve.gemini.generate import Candidates, stream_events, write_answers
from alhena.serve.gemini.resources.cache_store import CacheStore
from alhena.serve.gemini.resources.file_store import FileStore
from alhena.serve.gemini.server.connections import Bodies
from alhena.serve.gemini.server.settings import MODEL_NAME, Settings
from alhena.serve.gemini.streams import EventStream, WriteEvents, write_array, write_sse
from alhena.serve.gemini.wire.fields import WireError, overloaded, parse_json
from alhena.serve.gemini.wire.request import GenerateRequest, Served, read_count_request, read_request
from alhena.serve.gemini.wire.responses import Context
from alhena.serve.monitoring.health import Health
from alhena.serve.monitoring.metrics import Metrics
from alhena.serve.safety import Classify
from alhena.serve.scheduler import STRIDE, Scheduler, StreamingEngine
from alhena.serve.store import Store
from alhena.serve.token_text import token_text
from alhena.serve.usage import count_modalities

# Requests that wait to be parsed and encoded.
MAX_PARSING = 64
VERSIONS = ("v1", "v1beta", "v1alpha")
# JSON text, or its value.
Body = bytearray | Mapping[str, Any]
T = TypeVar("T")
Parse = Callable[[Any, str, Served], GenerateRequest]


class Calls:
    """State shared by the API's methods: one parser thread (media are decoded one at a time), one scheduler, one store."""

    def __init__(self, engine: StreamingEngine, name: str, settings: Settings = Settings()) -> None:
        self.engine, self.name, self.settings, self.bodies = engine, name, settings, Bodies()
        self.store = Store(settings.state)
        self.files, self.caches = FileStore(self.store), CacheStore(self.store)
        self.scheduler = Scheduler(engine)
        # None: nothing is rated, and nothing can be blocked.
        self.classify: Classify | None = settings.classify
        self.health, self.metrics = Health(), Metrics()
        self._parser, self._parsing = ThreadPoolExecutor(1, "alhena-parser"), 0

    async def read(self, data: Body, parse: Parse, model: str = "") -> tuple[GenerateRequest, Example]:
        """The parsed body and its encoded prompt; ``model`` is the name in the URL. Raises WireError."""
        return await self.on_parser(self._read, data, parse, model)

    async def on_parser(self, work: Callable[..., T], *values: Any) -> T:
        """Runs ``work`` on the thread that parses requests and encodes media. Raises WireError 429 when too many wait for it."""
        if self._parsing >= MAX_PARSING:
            raise overloaded(f"{MAX_PARSING} requests wait to be parsed")
        self._parsing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._parser, work, *values)
        finally:
            self._parsing -= 1

    @cached_property
    def embedder(self) -> Embedder:
        """Vectors of contents. Raises WireError where the engine has no model of its own."""
        if not isinstance(self.engine, Engine):
            raise WireError(501, "embeddings are not offered by this server", "UNIMPLEMENTED")
        return Embedder(self.engine)

    def parse(self, data: Body, parse: Parse, model: str = "") -> GenerateRequest:
        """The parsed body, as the model can answer it; on the parser's thread."""
        body = parse_json(data) if isinstance(data, bytearray) else data
        served = Served(self.engine.default_sampling, self.files, self.caches)
        return parse(body, model or self.name, served).for_model(self.engine.encoder.thinks, self.classify)

    def _read(self, data: Body, parse: Parse, model: str) -> tuple[GenerateRequest, Example]:
        request = self.parse(data, parse, model)
        try:
            return request, self.engine.encode(request.prompt, request.sampling)
        except ValueError as error:
            raise request.locate_error(error) from None

    async def count(self, data: bytearray, model: str = "") -> Response:
        return JSONResponse(self.context(*await self.read(data, read_count_request, model)).count())

    def modalities(self, example: Example) -> dict[str, int]:
        return count_modalities(example.tokens, self.engine.encoder)

    async def generate(self, data: bytearray, model: str = "") -> Response:
        return JSONResponse(await self.answer(data, model))

    async def answer(self, data: Body, model: str = "") -> dict[str, Any]:
        """The body of the response of generateContent. Raises WireError."""
        request, example = await self.read(data, read_request, model)
        return await self.respond(request, example)

    def context(self, request: GenerateRequest, example: Example) -> Context:
        """What the responses to a request have in common."""
        encoder = self.engine.encoder
        return Context(request, self.name, self.modalities(example), partial(token_text, encoder), self.classify)

    async def respond(self, request: GenerateRequest, example: Example) -> dict[str, Any]:
        """The complete response."""
        candidates = Candidates(self.scheduler.submit, request, example, STRIDE)
        return write_answers(self.context(request, example), await candidates.answers())

    async def stream(self, data: bytearray, sse: bool, model: str = "") -> Response:
        """Parses and queues before the stream begins, so that a refused request gets an HTTP status of its own."""
        request, example = await self.read(data, read_request, model)
        return self.stream_response(request, example, write_sse if sse else write_array, sse)

    def stream_response(
        self, request: GenerateRequest, example: Example, write: WriteEvents, sse: bool = True
    ) -> Response:
        """A stream of responses in the format of ``write``."""
        candidates, events = self.events(request, example)
        return EventStream(candidates.cancel, write(events), "text/event-stream" if sse else "application/json")

    def events(
        self, request: GenerateRequest, example: Example, stride: int = 1
    ) -> tuple[Candidates, AsyncIterator[dict[str, Any]]]:
        """The queued candidates of a request, and its responses."""
        candidates = Candidates(self.scheduler.submit, request, example, stride)
        return candidates, stream_events(self.context(request, example), candidates)

    @property
    def names(self) -> list[str]:
        """The name of the model and its aliases."""
        return [self.name, *(alias for alias in self.settings.aliases if alias != self.name)]

    def check(self, version: str, model: str) -> None:
        """Raises WireError 404 for a version of the API, or for a model that this server does not have."""
        self.check_version(version)
        self.resolve(model)

    def check_version(self, version: str) -> None:
        """Raises WireError 404 for a version of the API that this server does not have."""
        if version not in VERSIONS:
            raise WireError(
                404, f"there is no API version {version[:20]}; there are {', '.join(VERSIONS)}", "NOT_FOUND"
            )

    def resolve(self, model: str) -> str:
        """The name of the model that answers to ``model``, ``models/`` in front or not. Raises WireError 404."""
        asked = model.removeprefix("models/")
        known = asked == self.name or asked in self.settings.aliases
        if known or (self.settings.any_model and MODEL_NAME.fullmatch(asked)):
            return self.name
        message = f"models/{asked[:200]} is not found; this server has models/{self.name}"
        raise WireError(404, f"{message} (alhena serve --alias or --any-model adds names)", "NOT_FOUND")

    def stop(self) -> None:
        self._parser.shutdown(wait=False, cancel_futures=True)
        self.scheduler.stop()
        if "embedder" in vars(self):
            self.embedder.stop()
        self.store.close()
