"""The worker of batches: one request after the other, beside those of clients that wait, until no batch is left."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from alhena.serve.gemini.resources.batch_store import FAILED, SUCCEEDED, BatchStore, rpc_error
from alhena.serve.gemini.resources.file_store import FileStore
from alhena.serve.gemini.wire.fields import WireError, parse_json, read_object
from alhena.serve.store import Record

# While clients that wait fill the queue, a batch waits that long before it asks again.
RETRY_SECONDS = 1.0
MAX_LINE_BYTES = 64 << 20
MAX_INLINE_BYTES = 64 << 20
JSONL = "application/jsonl"
log = logging.getLogger("alhena.serve")
# From the body of a request and the name of the model to the body of the response.
Respond = Callable[[Mapping[str, Any], str], Awaitable[dict[str, Any]]]


class BatchWorker:
    """Works off the batches of a store. ``methods`` answer the requests, by the method of the batch."""

    def __init__(
        self, batches: BatchStore, files: FileStore, methods: Mapping[str, Respond], is_busy: Callable[[], bool]
    ) -> None:
        """``is_busy`` says whether requests of clients wait: those of batches then wait longer."""
        self._batches, self._files, self._methods, self._is_busy = batches, files, methods, is_busy
        self._wake, self._task, self._current = asyncio.Event(), None, ""
        self._worker: asyncio.Task[None] | None = None
        self._request: asyncio.Task[dict[str, Any]] | None = None

    def start(self) -> None:
        """Begins with the batches of an earlier run."""
        self._worker = asyncio.create_task(self._work())

    def wake(self) -> None:
        """There is a new batch."""
        self._wake.set()

    async def stop(self) -> None:
        """What is not finished is done after the next start."""
        if self._worker:
            self._worker.cancel()
            await asyncio.wait({self._worker})

    def cancel(self, identity: str) -> None:
        """Ends the running request of a batch that has been cancelled or deleted."""
        if self._current == identity and self._request:
            self._request.cancel()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            record = await asyncio.to_thread(self._batches.next)
            if record is None:
                await self._wake.wait()
                continue
            try:
                await self._run(record)
            except WireError as error:
                self._batches.finish(record, FAILED, error=rpc_error(error))
            except Exception:
                log.exception("a batch failed")
                internal = WireError(500, "the batch failed", "INTERNAL")
                self._batches.finish(record, FAILED, error=rpc_error(internal))

    async def _run(self, record: Record) -> None:
        self._current = record.id
        respond = self._methods[record.value["method"]]
        for number, line in self._batches.requests(record):
            if len(line) > MAX_LINE_BYTES:
                result: dict[str, Any] | None = {"error": rpc_error(WireError(400, f"a line has {len(line):,} bytes"))}
            else:
                result = await self._answer(line, record.value["asked"], respond)
            if self._batches.update(record.id) is None:
                # Cancelled or deleted.
                return
            if result is not None:
                await asyncio.to_thread(self._batches.add_result, record, number, result)
        await asyncio.to_thread(self._finish, record)

    async def _answer(self, line: bytes, model: str, respond: Respond) -> dict[str, Any] | None:
        """The result of one request, or its error; None when it has been cancelled."""
        kept: dict[str, Any] = {}
        try:
            item = read_object(parse_json(bytearray(line)), "the line", ("key", "request", "metadata"))
            kept = {name: item[name] for name in ("key", "metadata") if name in item}
            if not isinstance(item.get("request"), Mapping):
                raise WireError(400, "a line must be an object with a request")
            return {**kept, "response": await self._patiently(item["request"], model, respond)}
        except WireError as error:
            return {**kept, "error": rpc_error(error)}
        except asyncio.CancelledError:
            if self._request and self._request.cancelled() and not _is_cancelling():
                return None
            raise

    async def _patiently(self, request: Mapping[str, Any], model: str, respond: Respond) -> dict[str, Any]:
        """The response; while the server is overloaded or stops, the batch waits."""
        while True:
            while self._is_busy():
                await asyncio.sleep(RETRY_SECONDS / 10)
            self._request = asyncio.ensure_future(respond(request, model))
            try:
                return await self._request
            except WireError as error:
                if error.code not in (429, 503):
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    def _finish(self, record: Record) -> None:
        """Writes the output: results in line, or where the requests came in a file, a file."""
        results = list(self._batches.results(record))
        if not record.value["fromFile"]:
            size = sum(len(json.dumps(result)) for result in results)
            if size > MAX_INLINE_BYTES:
                raise WireError(
                    400, f"the responses have {size:,} bytes: send requests as a file, then they come as a file"
                )
            self._batches.finish(record, SUCCEEDED, results)
            return
        data = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results).encode()
        file = self._files.add(data, JSONL, f"responses of {record.value['name']}")
        self._batches.finish(record, SUCCEEDED, responsesFile=file.value["name"])


def _is_cancelling() -> bool:
    """Whether the worker itself is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
