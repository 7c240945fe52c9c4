"""Uploaded files: their bytes in the server's folder, their metadata in its database, for 48 hours.

An upload is written to a file of its own, chunk by chunk, and becomes a file of the API in one step when it is complete: a killed
server loses an incomplete upload and no complete one. Clients name files; on the disk they have random names.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alhena.files import flush
from alhena.media import sniff
from alhena.serve.gemini.wire.fields import WireError, overloaded
from alhena.serve.gemini.wire.times import timestamp
from alhena.serve.store import Record, Store, new_id

KIND = "file"
LIFETIME_SECONDS = 48 * 3600.0
# Those of Google's API: of one file, of all files of a project.
MAX_FILE_BYTES, MAX_STORED_BYTES = 2 << 30, 20 << 30
# Of an upload that does not announce its size.
MAX_UNANNOUNCED_BYTES = 64 << 20
# Left free on the disk.
MIN_FREE_BYTES = 1 << 30
# Bytes of a file that is read into memory for a prompt.
MAX_READ_BYTES = 64 << 20
MAX_UPLOADS, UPLOAD_SECONDS = 64, 3600.0
SNIFFED_BYTES = 2 << 20
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
# A URI of a file of this server: its address may differ behind a proxy, so only the path counts.
URI_PATH = re.compile(r"/(?:v1|v1beta|v1alpha)/files/([a-z0-9-]{1,40})")
MIME = re.compile(r"(?:application|audio|image|text|video)/[a-z0-9.+-]{1,100}")


def no_file(name: str) -> WireError:
    """403, as Google's API answers for a file that does not exist."""
    message = f"You do not have permission to access the File {name[:60]} or it may not exist."
    return WireError(403, message, "PERMISSION_DENIED")


def file_id(name: str) -> str:
    """The id in ``files/ID``, in a URI of this server, or the id itself. Raises WireError."""
    match = URI_PATH.fullmatch(urlsplit(name).path) if "://" in name[:16] else None
    identity = match[1] if match else name.removeprefix("files/")
    if not NAME.fullmatch(identity):
        raise WireError(400, f"{name[:100]!r} is no file of this server: upload it first; URLs are never fetched")
    return identity


@dataclass
class Upload:
    """A file that is being received."""

    name: str
    display_name: str | None
    mime: str
    size: int
    is_announced: bool
    path: Path
    blob: str
    source: str = "UPLOADED"
    received: int = 0
    began: float = field(default_factory=time.monotonic)
    # A request is writing to it.
    busy: bool = False
    sha256: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes) -> None:
        """Appends bytes. Raises WireError when there are more than declared or allowed."""
        if self.received + len(data) > self.size:
            what = "its" if self.is_announced else "X-Goog-Upload-Header-Content-Length announces none, so at most"
            raise WireError(400, f"the upload has more than {what} {self.size:,} bytes")
        with open(self.path, "ab") as file:
            file.write(data)
        self.sha256.update(data)
        self.received += len(data)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class FileStore:
    """The files of a server, and its uploads in progress. Its methods may be called on any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uploads: dict[str, Upload] = {}

    # ── Uploads ───────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, name: str | None, display_name: str | None, mime: str, size: int | None) -> str:
        """Begins an upload and returns its id. Raises WireError."""
        self._drop_old_uploads()
        identity = new_id()[:12] if name is None else name.removeprefix("files/")
        if not NAME.fullmatch(identity):
            raise WireError(
                400, f"file.name is {identity[:60]!r}; lower-case letters, digits and - form it, 40 at most"
            )
        if self._store.get(KIND, identity) is not None:
            raise WireError(409, f"files/{identity} already exists", "ALREADY_EXISTS")
        if size is not None and size > MAX_FILE_BYTES:
            raise WireError(400, f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are stored")
        if len(self._uploads) >= MAX_UPLOADS:
            raise overloaded(f"{MAX_UPLOADS} files are being uploaded")
        limit = MAX_UNANNOUNCED_BYTES if size is None else size
        self._check_space(limit)
        blob, key = new_id(), new_id()
        path = self._store.blob_path(blob).with_suffix(".partial")
        self._uploads[key] = Upload(identity, display_name, mime, limit, size is not None, path, blob)
        return key

    def _check_space(self, size: int) -> None:
        expected = size + sum(upload.size - upload.received for upload in self._uploads.values())
        if self._store.used_bytes() + expected > MAX_STORED_BYTES:
            message = f"files hold {MAX_STORED_BYTES:,} bytes at most; delete some"
            raise WireError(429, message, "RESOURCE_EXHAUSTED")
        if shutil.disk_usage(self._store.folder).free - expected < MIN_FREE_BYTES:
            raise WireError(429, "the server's disk is full; delete some files", "RESOURCE_EXHAUSTED")

    def _drop_old_uploads(self) -> None:
        limit = time.monotonic() - UPLOAD_SECONDS
        for key in [key for key, upload in self._uploads.items() if upload.began < limit and not upload.busy]:
            self.cancel(key)

    def upload(self, key: str) -> Upload:
        """An upload in progress. Raises WireError 404."""
        if key not in self._uploads:
            raise WireError(404, "there is no such upload: it has ended, or the server was started again", "NOT_FOUND")
        return self._uploads[key]

    def cancel(self, key: str) -> None:
        upload = self._uploads.pop(key, None)
        if upload:
            upload.discard()

    def finish(self, key: str) -> Record:
        """The complete upload as a file of the API. Raises WireError when bytes are missing."""
        upload = self.upload(key)
        if upload.is_announced and upload.received != upload.size:
            self.cancel(key)
            raise WireError(400, f"the upload has {upload.received:,} bytes; {upload.size:,} were announced")
        upload.path.touch()
        flush(upload.path)
        upload.path.replace(self._store.blob_path(upload.blob))
        flush(self._store.folder / "blobs")
        del self._uploads[key]
        return self._record(upload)

    def _record(self, upload: Upload) -> Record:
        now = time.time()
        with open(self._store.blob_path(upload.blob), "rb") as file:
            actual = sniff(file.read(SNIFFED_BYTES))
        digest = base64.b64encode(upload.sha256.hexdigest().encode()).decode()
        value = {
            "name": f"files/{upload.name}",
            **({"displayName": upload.display_name} if upload.display_name else {}),
            "mimeType": actual or upload.mime,
            "sizeBytes": str(upload.received),
            "createTime": timestamp(now),
            "updateTime": timestamp(now),
            "expirationTime": timestamp(now + LIFETIME_SECONDS),
            "sha256Hash": digest,
            "state": "ACTIVE",
            "source": upload.source,
        }
        record = Record(upload.name, value, upload.blob, now + LIFETIME_SECONDS)
        self._store.put(KIND, record)
        return record

    def add(self, data: bytes, mime: str, display_name: str) -> Record:
        """Stores a file that the server made itself; it can be downloaded."""
        self._check_space(len(data))
        blob = new_id()
        upload = Upload(
            new_id()[:12], display_name, mime, len(data), True, self._store.blob_path(blob), blob, "GENERATED"
        )
        upload.write(data)
        flush(upload.path)
        return self._record(upload)

    # ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, name: str) -> Record:
        """Raises WireError 403 when there is no such file."""
        record = self._store.get(KIND, file_id(name))
        if record is None:
            raise no_file(name.removeprefix("files/"))
        return record

    def page(self, size: int, before: int | None) -> list[Record]:
        return self._store.page(KIND, size, before)

    def delete(self, name: str) -> None:
        if not self._store.delete(KIND, file_id(name)):
            raise no_file(name.removeprefix("files/"))

    def path(self, name: str) -> Path:
        """Where the bytes of a file are."""
        record = self.get(name)
        assert record.blob is not None
        return self._store.blob_path(record.blob)

    def open(self, name: str) -> tuple[bytes, str]:
        """The bytes and the MIME type of ``files/ID`` or of a file's URI. Raises WireError; never opens anything else."""
        record = self.get(name)
        if int(record.value["sizeBytes"]) > MAX_READ_BYTES:
            size = int(record.value["sizeBytes"])
            raise WireError(400, f"{record.value['name']} has {size:,} bytes; prompts have at most {MAX_READ_BYTES:,}")
        try:
            return self.path(name).read_bytes(), record.value["mimeType"]
        except FileNotFoundError:
            raise no_file(record.id) from None


def read_mime(text: str) -> str:
    """A declared MIME type without its parameters; a name without a slash, as in ``jsonl``, is one of application. Raises WireError.

    >>> read_mime("Text/Plain; charset=utf-8"), read_mime("jsonl"), read_mime("")
    ('text/plain', 'application/jsonl', 'application/octet-stream')
    """
    mime = text.split(";")[0].strip().lower() or "octet-stream"
    mime = mime if "/" in mime else f"application/{mime}"
    if not MIME.fullmatch(mime):
        raise WireError(400, f"Unsupported MIME type: {text[:100]}")
    return mime


def with_uri(value: Mapping[str, Any], base_url: str, version: str) -> dict[str, Any]:
    """The metadata of a file as a response has it: with its URI, and where it can be downloaded, that address."""
    uri = f"{base_url}/{version}/{value['name']}"
    download = {"downloadUri": f"{uri}:download?alt=media"} if value["source"] == "GENERATED" else {}
    return {**value, "uri": uri, **download}
