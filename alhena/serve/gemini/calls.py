"""What the methods of the API share: the engine, its scheduler, and one thread that parses requests and encodes their media."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from alhena.batch import Example
from alhena.serve.gemini.connections import Bodies
from alhena.serve.gemini.fields import WireError, not_offered, overloaded, parse_json
from alhena.serve.gemini.generation_config import Thinking
from alhena.serve.gemini.streams import EventStream, generation_events, visible
from alhena.serve.gemini.wire import GenerateRequest, read_count_request, read_request, write_response
from alhena.serve.sampler import Sampling
from alhena.serve.scheduler import STRIDE, Scheduler, StreamingEngine
from alhena.serve.usage import count_modalities

# Requests that wait to be parsed and encoded.
MAX_PARSING = 64
VERSIONS = ("v1", "v1beta")
Parse = Callable[[Any, str, Sampling], GenerateRequest]


class Calls:
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
        parts = visible(answer.content.parts, request)
        return JSONResponse(write_response(parts, self.name, answer, self.modalities(example)))

    async def stream(self, data: bytearray, sse: bool) -> Response:
        """Parses and queues before the stream begins, so that a refused request gets an HTTP status of its own."""
        request, example = await self.read(data, read_request)
        generation = self.scheduler.submit(example, request.sampling)
        return EventStream(generation, generation_events(generation, request, self.name, self.modalities(example)), sse)

    def check(self, version: str, model: str) -> None:
        """Raises WireError 404 for a version of the API or a model that this server does not have."""
        if version not in VERSIONS:
            raise WireError(404, f"there is no API version {version}; there are v1 and v1beta", "NOT_FOUND")
        if model != self.name:
            raise WireError(404, f"models/{model} is not found; this server has models/{self.name}", "NOT_FOUND")

    def stop(self) -> None:
        self._parser.shutdown(wait=False, cancel_futures=True)
        self.scheduler.stop()
