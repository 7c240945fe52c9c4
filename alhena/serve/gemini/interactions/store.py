"""Interactions of a server: those that run, and those that are stored, each with its input and its events."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from alhena.serve.gemini.interactions.events import fold
from alhena.serve.gemini.interactions.steps import Json
from alhena.serve.gemini.server.connections import MAX_BODY_BYTES
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.store import Record, Store, new_id

KIND = "interaction"
# As long as Google keeps them.
LIFETIME_SECONDS = 55 * 24 * 3600.0
# Left free on the disk.
MIN_FREE_BYTES = 1 << 30
# Interactions that a conversation is followed back through.
MAX_HISTORY = 256
ENDED = ("completed", "requires_action", "incomplete")
log = logging.getLogger("alhena.serve")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Interaction:
    """One interaction. ``resource`` is what the API shows of it, without its steps; ``events`` grow while it runs."""

    resource: Json
    input: list[Json]
    previous: str | None = None
    store: bool = True
    background: bool = False
    events: list[Json] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    # The HTTP code of an engine that failed.
    code: int | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def new(cls, model: str, shown: Json, input: list[Json]) -> Interaction:
        time = now()
        head = {"id": f"v1_{new_id()}", "object": "interaction", "status": "in_progress", "model": model}
        return cls({**head, "created": time, "updated": time, **shown}, input)

    @property
    def id(self) -> str:
        return str(self.resource["id"])

    @property
    def status(self) -> str:
        return str(self.resource["status"])

    @property
    def runs(self) -> bool:
        return self.status == "in_progress"

    def add(self, event: Json) -> None:
        """Appends an event; its id is its number."""
        self.events.append({**event, "event_id": str(len(self.events) + 1)})
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, after: int) -> AsyncIterator[Json]:
        """The events after a number of them, until the interaction has ended."""
        while True:
            while after < len(self.events):
                after += 1
                yield self.events[after - 1]
            if not self.runs:
                return
            await self._changed.wait()

    def head(self) -> Json:
        """What events say of the interaction."""
        names = ("id", "object", "status", "model", "created", "updated", "usage")
        return {name: self.resource[name] for name in names if name in self.resource}

    def shown(self, with_input: bool = False, whole: bool = False) -> Json:
        """The resource: ``whole`` with the steps of the input before those of the model, as ``get`` returns it."""
        steps = [*(self.input if whole else ()), *fold(self.events)]
        return {**self.resource, "steps": steps, **({"input": self.input} if with_input else {})}

    def end(self, status: str, usage: Json, error: Json) -> None:
        """Sets how the interaction ended, and adds the last events."""
        more = {"usage": usage} if usage else {}
        self.resource |= {"status": status, "updated": now(), **more, **({"errors": [error]} if error else {})}
        if error:
            self.add({"event_type": "error", "error": error})
        self.add({"event_type": "interaction.completed", "interaction": self.head()})

    def cancel(self) -> None:
        if self.task:
            self.task.cancel()


class Interactions:
    """All interactions of a server. Those that a former process left running have failed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[str, Interaction] = {}
        for record in store.all(KIND):
            if record.value["resource"]["status"] == "in_progress":
                error = {"code": "unavailable", "message": "the server was stopped"}
                resource = {**record.value["resource"], "status": "failed", "errors": [error]}
                store.put(KIND, Record(record.id, {**record.value, "resource": resource}, record.blob, record.expires))

    async def begin(self, interaction: Interaction) -> None:
        """Makes an interaction that is to be stored known while it runs. Raises WireError when the disk is full."""
        if not interaction.store:
            return
        if shutil.disk_usage(self._store.folder).free < MIN_FREE_BYTES:
            raise WireError(429, "the server's disk is full: set store to false", "RESOURCE_EXHAUSTED")
        self._running[interaction.id] = interaction
        if interaction.background:
            await asyncio.to_thread(self._write, interaction)

    async def discard(self, interaction: Interaction) -> None:
        """Forgets an interaction that has not begun."""
        self._running.pop(interaction.id, None)
        if interaction.store and interaction.background:
            await asyncio.to_thread(self._store.delete, KIND, interaction.id)

    async def end(self, interaction: Interaction) -> None:
        """Stores an interaction that has ended."""
        if self._running.get(interaction.id) is not interaction:
            return
        try:
            await asyncio.to_thread(self._write, interaction)
        except Exception:
            log.exception("an interaction was not stored")
        self._running.pop(interaction.id, None)

    def _write(self, interaction: Interaction) -> None:
        data = json.dumps({"input": interaction.input, "events": interaction.events}).encode()
        value = {"resource": interaction.resource, "previous": interaction.previous}
        expires = time.time() + LIFETIME_SECONDS
        self._store.put(KIND, Record(interaction.id, value, self._store.write_blob(data), expires))

    def get(self, identity: str) -> Interaction:
        """Raises WireError 404. Called on any thread."""
        running = self._running.get(identity)
        if running:
            return running
        record = self._store.get(KIND, identity)
        try:
            data: dict[str, Any] = json.loads(self._store.read_blob(record.blob)) if record and record.blob else {}
        except FileNotFoundError:
            record = None
        if record is None:
            raise WireError(
                404, f"there is no interaction {identity[:60]!r}: it is not stored, or it has expired", "NOT_FOUND"
            )
        return Interaction(record.value["resource"], data["input"], record.value["previous"], events=data["events"])

    async def delete(self, identity: str) -> None:
        """Deletes an interaction; one that runs is cancelled. Raises WireError 404."""
        running = self._running.pop(identity, None)
        if running:
            running.cancel()
        deleted = await asyncio.to_thread(self._store.delete, KIND, identity)
        if not (deleted or running):
            raise WireError(404, f"there is no interaction {identity[:60]!r}", "NOT_FOUND")

    def history(self, identity: str | None) -> list[Json]:
        """The steps of an interaction and of those before it, oldest first. Raises WireError; called on the parser's thread."""
        where, found, size = "previous_interaction_id", list[list[Json]](), 0
        while identity is not None:
            interaction = self.get(identity)
            if interaction.status not in ENDED:
                message = f"{where}: the interaction {identity} has the status {interaction.status}"
                raise WireError(400, f"{message}; it must be one of {', '.join(ENDED)}", "FAILED_PRECONDITION")
            steps = interaction.shown(whole=True)["steps"]
            size += _size(steps)
            if len(found) >= MAX_HISTORY or size > MAX_BODY_BYTES:
                raise WireError(
                    400,
                    f"{where}: the conversation is longer than {MAX_HISTORY} interactions or {MAX_BODY_BYTES:,} bytes",
                )
            found.append(steps)
            identity = interaction.previous
        return [step for steps in reversed(found) for step in steps]


def _size(value: Any) -> int:
    """Characters of all texts of a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    return sum(map(_size, value.values())) if isinstance(value, dict) else 0
