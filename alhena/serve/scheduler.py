"""The scheduler: one thread owns the engine and takes jobs, in order, from a bounded queue; requests are async.

    request ─► submit ─► queue ─► engine thread ─► parts, then the Answer ─► async for … in Generation

A full queue refuses at once. A generation that nobody waits for any more is cancelled between two tokens, or never begun.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

from alhena.batch import Example
from alhena.content import Part
from alhena.serve.engine import Answer, Engine
from alhena.serve.gemini.fields import WireError, overloaded
from alhena.serve.sampler import Sampling

MOST_WAITING = 64
# Tokens between two looks at whether somebody still waits, where nobody reads along.
STRIDE = 16
STOP_SECONDS = 10.0
log = logging.getLogger("alhena.serve")
News = Part | Answer | WireError


class Generation:
    """One answer under way: iterate for its parts and then its Answer, or ``cancel`` it. Belongs to one event loop."""

    def __init__(self, example: Example, sampling: Sampling, stride: int) -> None:
        self.example, self.sampling, self.stride = example, sampling, stride
        self._loop, self._inbox = asyncio.get_running_loop(), asyncio.Queue[News]()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def put(self, news: News) -> None:
        """Called on the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, news)
        except RuntimeError:  # the loop is closed: nobody waits
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Part | Answer]:
        """Raises WireError when the engine fails."""
        while True:
            news = await self._inbox.get()
            if isinstance(news, WireError):
                raise news
            yield news
            if isinstance(news, Answer):
                return

    async def answer(self) -> Answer:
        """The whole answer."""
        async for news in self:
            if isinstance(news, Answer):
                return news
        raise AssertionError("a generation ends with its answer")


class Scheduler:
    """The thread, and its queue. ``start`` before the first job; ``stop`` cancels what runs and what waits."""

    def __init__(self, engine: Engine, most_waiting: int = MOST_WAITING) -> None:
        self._engine = engine
        self._jobs: queue.Queue[Generation | None] = queue.Queue(most_waiting)
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
        """Queues a generation. Raises WireError 503 when the queue is full or the server stops."""
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
                left = self._jobs.get_nowait()
                if left is not None:
                    left.put(overloaded("the server is shutting down"))

    def _generate(self, generation: Generation) -> None:
        """One bad request never ends the thread."""
        cancelled = lambda: generation.is_cancelled() or self._stopping.is_set()  # noqa: E731
        last: News | None = None
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
