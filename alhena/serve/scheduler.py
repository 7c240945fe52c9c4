"""The scheduler: one thread owns the engine's running batch and takes jobs in order from a bounded queue; requests are async.

    request ─► submit ─► queue ─► running batch, on the engine's thread ─► parts, then the Answer ─► async for … in Generation

A full queue refuses at once. A cancelled generation leaves the batch between two tokens, or never joins it. ``stop`` lets running
answers end for some seconds.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Protocol, runtime_checkable

from alhena.batch import Example
from alhena.content import Part, Tool
from alhena.serve.answer import Answer, Failed, Overloaded, Prompt, Unavailable
from alhena.serve.decoding.batching import RunningBatch
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.tokens.encoders import AnyEncoder

MAX_WAITING = 64
# Tokens generated between two checks for cancellation, where the answer is not streamed.
STRIDE = 16
# Time that running answers have to end when the server shuts down.
DRAIN_SECONDS = 5.0
STOP_SECONDS = 10.0
log = logging.getLogger("alhena.serve")
Item = Part | Answer | Exception


@runtime_checkable
class StreamingEngine(Protocol):
    """What the server needs of an engine: to encode prompts and to stream answers. One with a ``batch`` streams many together."""

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

    def __init__(self, example: Example, sampling: Sampling, stride: int, tools: tuple[Tool, ...] = ()) -> None:
        self.example, self.sampling, self.stride, self.tools = example, sampling, stride, tools
        self._loop, self._items = asyncio.get_running_loop(), asyncio.Queue[Item]()
        self._cancelled = threading.Event()
        # Called with each item, on the engine's thread.
        self.observe: Callable[[Item], None] | None = None

    def cancel(self) -> None:
        self._cancelled.set()

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def put(self, item: Item) -> None:
        """Called on the engine's thread."""
        if self.observe:
            self.observe(item)
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            # The event loop is closed.
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Part | Answer]:
        """Raises ServingError when the engine fails, ValueError when it cannot answer the request."""
        while True:
            item = await self._items.get()
            if isinstance(item, Exception):
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


@runtime_checkable
class Batch(Protocol):
    """Jobs that advance together, a step at a time."""

    @property
    def has_free_slot(self) -> bool: ...

    @property
    def is_idle(self) -> bool: ...

    def add(self, job: Generation) -> None: ...

    def step(self) -> bool: ...

    def cancel_all(self) -> None: ...


class OneByOne:
    """A batch of one: the stream of an engine that answers one request at a time."""

    def __init__(self, engine: StreamingEngine) -> None:
        self._engine = engine
        self._stream: Iterator[Part | Answer] = iter(())
        self._job: Generation | None = None
        self._ending = False

    @property
    def has_free_slot(self) -> bool:
        return self._job is None

    @property
    def is_idle(self) -> bool:
        return self._job is None

    def add(self, job: Generation) -> None:
        cancelled = lambda: self._ending or job.is_cancelled()  # noqa: E731
        self._stream, self._job = self._engine.stream(job.example, job.sampling, job.stride, cancelled), job

    def step(self) -> bool:
        """Takes one item of the stream."""
        if self._job is None:
            return False
        job = self._job
        try:
            item: Item = next(self._stream)
        except StopIteration:
            item = Unavailable("the generation was cancelled")
        except ValueError as error:
            item = error
        except Exception as error:
            log.exception("a generation failed", exc_info=error)
            item = Failed("the model failed to answer")
        job.put(item)
        if isinstance(item, Answer | Exception):
            self._job = None
        return not self.is_idle

    def cancel_all(self) -> None:
        self._ending = True
        while self.step():
            pass
        self._ending = False


class Scheduler:
    """The engine's thread and its queue. ``start`` before the first job; ``stop`` ends running and waiting jobs."""

    def __init__(self, engine: StreamingEngine, max_waiting: int = MAX_WAITING) -> None:
        self._engine = engine
        self._jobs: queue.Queue[Generation | None] = queue.Queue(max_waiting)
        self._stopping, self._started = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="alhena-engine", daemon=True)
        # Makes the observer of a generation.
        self.observer: Callable[[], Callable[[Item], None]] | None = None

    def start(self) -> None:
        self._started = True
        self._thread.start()

    def stop(self) -> None:
        """Refuses new and waiting jobs; running ones end, or are cancelled after DRAIN_SECONDS."""
        self._stopping.set()
        if not self._started:
            return
        with suppress(queue.Full):
            self._jobs.put_nowait(None)
        self._thread.join(DRAIN_SECONDS + STOP_SECONDS)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return self._jobs.qsize()

    def submit(self, example: Example, sampling: Sampling, stride: int = 1, tools: tuple[Tool, ...] = ()) -> Generation:
        """Queues a generation. Raises Overloaded when the queue is full, Unavailable when the server is shutting down.

        ``tools`` are those that the answer may call, where ``sampling.output`` enforces its form.
        """
        if self._stopping.is_set():
            raise Unavailable("the server is shutting down")
        generation = Generation(example, sampling, stride, tools)
        generation.observe = self.observer() if self.observer else None
        try:
            self._jobs.put_nowait(generation)
        except queue.Full:
            raise Overloaded(f"the model is busy: {self._jobs.maxsize} requests wait for it") from None
        return generation

    def _work(self) -> None:
        batch: Batch = self._engine.batch if isinstance(self._engine, HasBatch) else OneByOne(self._engine)
        while not self._stopping.is_set():
            self._take_jobs(batch)
            self._step(batch)
        end = time.monotonic() + DRAIN_SECONDS
        self._refuse_waiting()
        while self._step(batch) and time.monotonic() < end:
            pass
        batch.cancel_all()

    @staticmethod
    def _step(batch: Batch) -> bool:
        """Advances the batch; an error that is not of one job ends those that run, never the thread."""
        try:
            return batch.step()
        except Exception:
            log.exception("the running batch failed")
            batch.cancel_all()
            return False

    def _take_jobs(self, batch: Batch) -> None:
        """Moves jobs from the queue to free slots; waits for one where there is nothing else to do."""
        while batch.has_free_slot:
            try:
                job = self._jobs.get(block=batch.is_idle)
            except queue.Empty:
                return
            if job is None:
                return
            try:
                batch.add(job)
            except ValueError as error:
                job.put(error)

    def _refuse_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job.put(Unavailable("the server is shutting down"))


@runtime_checkable
class HasBatch(Protocol):
    """An engine with a running batch."""

    @property
    def batch(self) -> RunningBatch: ...
