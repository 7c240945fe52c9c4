"""The scheduler: one thread owns the engine and takes jobs in order from a bounded queue; requests are async.

    request ─► submit ─► queue ─► engine thread ─► parts, then the Answer ─► async for … in Generation

A full queue refuses at once. A cancelled generation ends between two tokens, or never begins.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Protocol, runtime_checkable

from alhena.batch import Example
from alhena.content import Part
from alhena.serve.engine import Answer, Prompt
from alhena.serve.gemini.fields import WireError, overloaded
from alhena.serve.sampler import Sampling
from alhena.tokens.encoders import AnyEncoder

MAX_WAITING = 64
# Tokens generated between two checks for cancellation, where the answer is not streamed.
STRIDE = 16
STOP_SECONDS = 10.0
log = logging.getLogger("alhena.serve")
Item = Part | Answer | WireError


@runtime_checkable
class StreamingEngine(Protocol):
    """What the server needs of an engine: to encode prompts and to stream answers."""

    @property
    def encoder(self) -> AnyEncoder: ...

    @property
    def default_sampling(self) -> Sampling: ...

    @property
    def max_prompt_tokens(self) -> int: ...

    def encode(self, prompt: Prompt, sampling: Sampling) -> Example: ...

    def stream(
        self, prompt: Example, sampling: Sampling, stride: int, cancelled: Callable[[], bool]
    ) -> Iterator[Part | Answer]: ...


class Generation:
    """One answer being generated: iterate for its parts and then its Answer, or ``cancel`` it. Belongs to one event loop."""

    def __init__(self, example: Example, sampling: Sampling, stride: int) -> None:
        self.example, self.sampling, self.stride = example, sampling, stride
        self._loop, self._items = asyncio.get_running_loop(), asyncio.Queue[Item]()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def put(self, item: Item) -> None:
        """Called on the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            # The event loop is closed.
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Part | Answer]:
        """Raises WireError when the engine fails."""
        while True:
            item = await self._items.get()
            if isinstance(item, WireError):
                raise item
            yield item
            if isinstance(item, Answer):
                return

    async def answer(self) -> Answer:
        """The complete answer."""
        async for item in self:
            if isinstance(item, Answer):
                return item
        raise AssertionError("a generation ends with its answer")


class Scheduler:
    """The engine's thread and its queue. ``start`` before the first job; ``stop`` cancels running and waiting jobs."""

    def __init__(self, engine: StreamingEngine, max_waiting: int = MAX_WAITING) -> None:
        self._engine = engine
        self._jobs: queue.Queue[Generation | None] = queue.Queue(max_waiting)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alhena-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with suppress(queue.Full):
            self._jobs.put_nowait(None)
        self._thread.join(STOP_SECONDS)

    def submit(self, example: Example, sampling: Sampling, stride: int = 1) -> Generation:
        """Queues a generation. Raises WireError 503 when the queue is full or the server is shutting down."""
        if self._stopping.is_set():
            raise overloaded("the server is shutting down")
        generation = Generation(example, sampling, stride)
        try:
            self._jobs.put_nowait(generation)
        except queue.Full:
            raise overloaded(f"the model is busy: {self._jobs.maxsize} requests wait for it") from None
        return generation

    def _work(self) -> None:
        while not self._stopping.is_set():
            generation = self._jobs.get()
            if generation is not None:
                self._generate(generation)
        with suppress(queue.Empty):
            while True:
                waiting = self._jobs.get_nowait()
                if waiting is not None:
                    waiting.put(overloaded("the server is shutting down"))

    def _generate(self, generation: Generation) -> None:
        """Runs one generation; an error becomes its last item and never ends the thread."""
        cancelled = lambda: generation.is_cancelled() or self._stopping.is_set()  # noqa: E731
        last: Item | None = None
        try:
            for last in self._engine.stream(generation.example, generation.sampling, generation.stride, cancelled):
                generation.put(last)
        except ValueError as error:
            last = WireError(400, str(error))
            generation.put(last)
        except Exception:
            log.exception("a generation failed")
            last = WireError(500, "the model failed to answer", "INTERNAL")
            generation.put(last)
        if not isinstance(last, Answer | WireError):
            generation.put(overloaded("the generation was cancelled"))
