"""Batches: requests that wait in the database, and their results; both outlive the server.

batch            metadata; its blob holds the requests, one a line, and once it has ended the output
batch-result/ID  the result of each finished request, until the output is written
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.gemini.wire.times import timestamp
from alhena.serve.store import Record, Store, new_id

KIND = "batch"
LIFETIME_SECONDS = 30 * 24 * 3600.0
MAX_BATCHES = 1_000
PENDING, RUNNING = "BATCH_STATE_PENDING", "BATCH_STATE_RUNNING"
SUCCEEDED, FAILED, CANCELLED = "BATCH_STATE_SUCCEEDED", "BATCH_STATE_FAILED", "BATCH_STATE_CANCELLED"
ENDED = (SUCCEEDED, FAILED, CANCELLED)
# The numbers of google.rpc.Code.
RPC_CODES = {
    "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
}  # fmt: skip


def rpc_error(error: WireError) -> dict[str, Any]:
    """An error of one request of a batch, in the format of google.rpc.Status."""
    return {"code": RPC_CODES.get(error.status, 2), "message": error.message}


def batch_id(name: str) -> str:
    return name.removeprefix("batches/")


class BatchStore:
    """The batches of a server. Its methods may be called on any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # A batch may end (by its client) while a result is stored.
        self._mutex = threading.RLock()

    def create(self, value: Mapping[str, Any], lines: Iterable[bytes] | str) -> Record:
        """Stores a batch: its requests are lines of JSON, or those of the blob of that name. Raises WireError when there are too many."""
        if self._store.count(KIND) >= MAX_BATCHES:
            raise WireError(429, f"there are {MAX_BATCHES:,} batches; delete some", "RESOURCE_EXHAUSTED")
        identity, now = new_id(), time.time()
        blob = self._store.copy_blob(lines) if isinstance(lines, str) else self._store.write_blob(lines)
        with open(self._store.blob_path(blob), "rb") as file:
            count = sum(1 for line in file if line.strip())
        times = {"createTime": timestamp(now), "updateTime": timestamp(now)}
        fixed = {"name": f"batches/{identity}", "state": PENDING, "count": count, "failed": 0, "finished": 0}
        record = Record(identity, {**value, **fixed, **times}, blob, now + LIFETIME_SECONDS)
        self._store.put(KIND, record)
        return record

    def get(self, name: str) -> Record:
        """Raises WireError 404."""
        record = self._store.get(KIND, batch_id(name))
        if record is None:
            raise WireError(404, f"batches/{batch_id(name)[:80]} is not found", "NOT_FOUND")
        return record

    def page(self, size: int, before: int | None) -> list[Record]:
        return self._store.page(KIND, size, before)

    def next(self) -> Record | None:
        """The oldest batch that has not ended."""
        return next((record for record in self._store.all(KIND) if record.value["state"] not in ENDED), None)

    def update(self, name: str, **changes: Any) -> Record | None:
        """Changes the metadata of a batch that has not ended; None when it has, or is deleted."""
        with self._mutex:
            changed = self._changed(name, changes)
            if changed is not None:
                self._store.put(KIND, changed)
            return changed

    def _changed(self, name: str, changes: Mapping[str, Any]) -> Record | None:
        record = self._store.get(KIND, batch_id(name))
        if record is None or record.value["state"] in ENDED:
            return None
        now = timestamp(time.time())
        ended = {"endTime": now} if changes.get("state") in ENDED else {}
        return replace(record, value={**record.value, **changes, **ended, "updateTime": now})

    def requests(self, record: Record) -> Iterator[tuple[int, bytes]]:
        """Number and line of each request that has no result yet."""
        finished = {int(result.id) for result in self._store.all(self._results(record))}
        assert record.blob is not None
        with open(self._store.blob_path(record.blob), "rb") as file:
            lines = (line for line in file if line.strip())
            yield from ((number, line) for number, line in enumerate(lines) if number not in finished)

    def add_result(self, record: Record, number: int, result: Mapping[str, Any]) -> None:
        """Stores the result of one request: a killed server does not repeat it."""
        with self._mutex:
            current = self._store.get(KIND, record.id)
            if current is None or current.value["state"] in ENDED:
                return
            self._store.put(self._results(record), Record(str(number), dict(result), expires=record.expires))
            failed = current.value["failed"] + ("error" in result)
            self.update(record.id, finished=current.value["finished"] + 1, failed=failed, state=RUNNING)

    def results(self, record: Record) -> Iterator[dict[str, Any]]:
        """All results, in the order of the requests."""
        for number in range(record.value["count"]):
            result = self._store.get(self._results(record), str(number))
            if result is not None:
                yield result.value

    def finish(self, record: Record, state: str, output: Any = None, **changes: Any) -> None:
        """Ends a batch, and in the same step puts ``output`` in the place of its requests."""
        with self._mutex:
            changed = self._changed(record.id, {**changes, "state": state})
            if changed is None:
                return
            blob = None if output is None else self._store.write_blob(json.dumps(output).encode())
            self._store.replace_blob(KIND, changed, blob)
            self._store.delete_kind(self._results(record))

    def output(self, record: Record) -> Any:
        """The output of a batch that has ended; None where it has none, or it is a file. Raises WireError 404."""
        if record.value["state"] not in ENDED or record.blob is None:
            return None
        try:
            return json.loads(self._store.read_blob(record.blob))
        except FileNotFoundError:
            # Deleted meanwhile.
            self.get(record.id)
            raise

    def delete(self, name: str) -> None:
        """Raises WireError 404."""
        record = self.get(name)
        self._store.delete(KIND, record.id)
        self._store.delete_kind(self._results(record))

    def _results(self, record: Record) -> str:
        return f"batch-result/{record.id}"
