"""Cached contents: the beginning of prompts (contents, system instruction, tools), stored under a name for some time."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from alhena.serve.gemini.wire.fields import Fields, WireError, parse_json
from alhena.serve.gemini.wire.times import timestamp
from alhena.serve.store import Record, Store, new_id

KIND = "cache"
MAX_CACHES = 10_000
NAME = re.compile(r"(?:cachedContents/)?([A-Za-z0-9-]{1,128})")


def cache_id(name: str) -> str:
    """The id in ``cachedContents/ID``, or the id itself. Raises WireError 400 for anything else."""
    match = NAME.fullmatch(name)
    if match is None:
        raise WireError(400, f"{name[:100]!r} is no name of cached content; write cachedContents/ID")
    return match[1]


class CacheStore:
    """The cached contents of a server. Its methods may be called on any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, body: Fields, model: str, display_name: str, tokens: int, expires: float) -> Record:
        """Stores a body with contents, systemInstruction, tools and toolConfig. Raises WireError when there are too many."""
        if self._store.count(KIND) >= MAX_CACHES:
            raise WireError(429, f"there are {MAX_CACHES:,} cached contents; delete some", "RESOURCE_EXHAUSTED")
        identity, now = new_id(), timestamp(time.time())
        value = {
            "name": f"cachedContents/{identity}",
            "model": f"models/{model}",
            "displayName": display_name,
            "createTime": now,
            "updateTime": now,
            "expireTime": timestamp(expires),
            "usageMetadata": {"totalTokenCount": tokens},
        }
        blob = self._store.write_blob(json.dumps(body).encode())
        record = Record(identity, value, blob, expires)
        self._store.put(KIND, record)
        return record

    def get(self, name: str) -> Record:
        """Raises WireError 403, as Google's API answers, when there is none."""
        record = self._store.get(KIND, cache_id(name))
        if record is None:
            raise WireError(403, f"CachedContent {name[:80]} not found (or permission denied)", "PERMISSION_DENIED")
        return record

    def open(self, name: str) -> tuple[Fields, int]:
        """The stored body, and the number of its tokens. Raises WireError."""
        record = self.get(name)
        assert record.blob is not None
        try:
            body = parse_json(self._store.read_blob(record.blob))
        except FileNotFoundError:
            # Deleted meanwhile.
            self.get(name)
            raise
        return body, int(record.value["usageMetadata"]["totalTokenCount"])

    def page(self, size: int, before: int | None) -> list[Record]:
        return self._store.page(KIND, size, before)

    def extend(self, name: str, expires: float) -> dict[str, Any]:
        """Sets when it expires; returns the changed metadata."""
        record = self.get(name)
        value = {**record.value, "updateTime": timestamp(time.time()), "expireTime": timestamp(expires)}
        self._store.put(KIND, Record(record.id, value, record.blob, expires))
        return value

    def delete(self, name: str) -> None:
        self.get(name)
        self._store.delete(KIND, cache_id(name))
