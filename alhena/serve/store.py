"""Persistent state of a server: JSON records in SQLite, large bytes in files beside it.

    DIR/state.sqlite      records: kind, id, JSON, expiry
    DIR/blobs/ID          bytes that records name, written by atomic rename

A killed process loses nothing that was stored: a blob has its final name only when it is complete, and only then is its record
written. Blobs without a record (of a process killed between the two) are deleted at the start. One process owns a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alhena.files import LOCK, make_folder, write_atomically

DATABASE, BLOBS = "state.sqlite", "blobs"
# Letters and digits of an id: 100 bits that nobody guesses.
ID_ALPHABET, ID_LENGTH = "abcdefghijklmnopqrstuvwxyz0123456789", 20
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, id TEXT NOT NULL, value TEXT NOT NULL, blob TEXT, expires REAL,
    UNIQUE (kind, id)
);
CREATE INDEX IF NOT EXISTS by_expiry ON records (expires) WHERE expires IS NOT NULL;
"""
COLUMNS = "number, id, value, blob, expires"


def new_id() -> str:
    """A random id: no name that a client gives is ever part of a path."""
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH))


@dataclass(frozen=True)
class Record:
    """A stored JSON object. ``blob`` names the file with its bytes; ``expires`` is in seconds since 1970, None: never."""

    id: str
    value: dict[str, Any]
    blob: str | None = None
    expires: float | None = None
    # Order of creation.
    number: int = 0


class Store:
    """Records of several kinds, and blobs, in one folder. Its methods may be called on any thread.

    Without a folder it lives in a temporary one, which ``close`` deletes.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Raises ValueError when the folder cannot be written, or another process uses it."""
        self._temporary = tempfile.TemporaryDirectory(prefix="alhena-serve-") if folder is None else None
        self.folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self._mutex = threading.RLock()
        try:
            make_folder(self.folder / BLOBS)
            self.folder.chmod(0o700)
            self._lock = open(self.folder / LOCK, "w")  # noqa: SIM115
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.folder}: another server keeps its state there; choose another --state") from None
        except OSError as error:
            raise ValueError(
                f"{self.folder}: cannot keep state there ({error.strerror}); choose another --state"
            ) from None
        self._database = self._open()
        self._delete_orphans()

    def _open(self) -> sqlite3.Connection:
        path = self.folder / DATABASE
        try:
            database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not a database of this server ({error}); move the folder away") from None
        return database

    def close(self) -> None:
        with self._mutex:
            self._database.close()
            self._lock.close()
        if self._temporary:
            self._temporary.cleanup()

    # ── Records ───────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, kind: str, record: Record) -> None:
        """Stores a record, in place of one with the same id."""
        row = (kind, record.id, json.dumps(record.value, ensure_ascii=False), record.blob, record.expires)
        with self._mutex:
            self._database.execute(
                "INSERT INTO records (kind, id, value, blob, expires) VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, id) DO UPDATE "
                "SET value = excluded.value, blob = excluded.blob, expires = excluded.expires",
                row,
            )

    def get(self, kind: str, identity: str) -> Record | None:
        """The record, unless there is none or it has expired."""
        found = self._select("kind = ? AND id = ?", (kind, identity), "number", 1)
        return found[0] if found else None

    def page(self, kind: str, size: int, before: int | None = None) -> list[Record]:
        """Records of a kind, newest first, created before the record of number ``before``."""
        bound = before if before is not None else 1 << 62
        return self._select("kind = ? AND number < ?", (kind, bound), "number DESC", size)

    def all(self, kind: str) -> list[Record]:
        """Every record of a kind, oldest first."""
        return self._select("kind = ?", (kind,), "number", -1)

    def count(self, kind: str) -> int:
        with self._mutex:
            return int(self._database.execute("SELECT count(*) FROM records WHERE kind = ?", (kind,)).fetchone()[0])

    def _select(self, where: str, values: tuple[Any, ...], order: str, limit: int) -> list[Record]:
        """``where`` and ``order`` are texts of this module."""
        sql = (
            f"SELECT {COLUMNS} FROM records WHERE {where} AND (expires IS NULL OR expires > ?) ORDER BY {order} LIMIT ?"
        )
        with self._mutex:
            rows = self._database.execute(sql, (*values, time.time(), limit)).fetchall()
        return [Record(id_, json.loads(value), blob, expires, number) for number, id_, value, blob, expires in rows]

    def delete(self, kind: str, identity: str) -> bool:
        """Deletes a record and its blob; False when there is none."""
        with self._mutex:
            found = self._database.execute(
                "DELETE FROM records WHERE kind = ? AND id = ? RETURNING blob", (kind, identity)
            ).fetchall()
            self._delete_blobs(blob for (blob,) in found)
        return bool(found)

    def delete_kind(self, kind: str) -> None:
        """Deletes all records of a kind, and their blobs."""
        with self._mutex:
            found = self._database.execute("DELETE FROM records WHERE kind = ? RETURNING blob", (kind,)).fetchall()
            self._delete_blobs(blob for (blob,) in found)

    def delete_expired(self) -> int:
        """Deletes what has expired; returns the number of records."""
        with self._mutex:
            found = self._database.execute(
                "DELETE FROM records WHERE expires <= ? RETURNING blob", (time.time(),)
            ).fetchall()
            self._delete_blobs(blob for (blob,) in found)
        return len(found)

    # ── Blobs ─────────────────────────────────────────────────────────────────────────────────────────────────

    def write_blob(self, data: bytes | Iterable[bytes]) -> str:
        """Writes bytes to a file of a new random name, complete or not at all; a record must name it."""
        blob = new_id()
        write_atomically(self.blob_path(blob), data)
        return blob

    def copy_blob(self, blob: str) -> str:
        """The same bytes under a new name, for a record that may outlive the first one."""
        copy = new_id()
        os.link(self.blob_path(blob), self.blob_path(copy))
        return copy

    def replace_blob(self, kind: str, record: Record, blob: str | None) -> None:
        """Stores a record with another blob than it has, which is deleted."""
        with self._mutex:
            self.put(kind, replace(record, blob=blob))
            self._delete_blobs([record.blob])

    def blob_path(self, blob: str) -> Path:
        return self.folder / BLOBS / blob

    def read_blob(self, blob: str) -> bytes:
        """Raises FileNotFoundError when the record has been deleted meanwhile."""
        return self.blob_path(blob).read_bytes()

    def used_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(path.stat().st_size for path in (self.folder / BLOBS).iterdir() if path.is_file())

    def _delete_blobs(self, blobs: Iterable[str | None]) -> None:
        for blob in blobs:
            if blob is not None:
                self.blob_path(blob).unlink(missing_ok=True)

    def _delete_orphans(self) -> None:
        named = {blob for (blob,) in self._database.execute("SELECT blob FROM records WHERE blob IS NOT NULL")}
        for path in (self.folder / BLOBS).iterdir():
            if path.name not in named:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
