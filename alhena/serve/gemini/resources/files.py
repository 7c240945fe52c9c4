"""Files of the API: resumable upload, get, list, delete, download.

POST /upload/v1beta/files      X-Goog-Upload-Command: start           → X-Goog-Upload-URL
POST that URL                  X-Goog-Upload-Command: upload          → x-goog-upload-status: active
POST that URL                  X-Goog-Upload-Command: upload, finalize → x-goog-upload-status: final, {"file": {…}}
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.pages import read_page
from alhena.serve.gemini.resources.file_store import Upload, read_mime, with_uri
from alhena.serve.gemini.server.connections import BODY_SECONDS
from alhena.serve.gemini.wire.fields import WireError, parse_json, read_object, read_string, refuse

# Below this rate, in bytes a second, an upload is too slow.
MIN_RATE = 1 << 14
WRITTEN_BYTES = 1 << 20
FIELDS = (
    "name", "displayName", "mimeType", "sizeBytes", "createTime", "updateTime", "expirationTime", "sha256Hash", "uri", "state",
    "source", "error", "videoMetadata", "downloadUri",
)  # fmt: skip
WRITTEN_BY_SERVER = (*FIELDS[4:10], "error", "videoMetadata", "downloadUri")


def _base_url(request: Request) -> str:
    """Scheme and Host of the request, which has been checked to be an allowed one."""
    return str(request.base_url).rstrip("/")


def _integer(request: Request, name: str) -> int | None:
    text = request.headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise WireError(400, f"the header {name} is {text[:30]!r}; it must be an integer")
    return int(text)


def _begin(calls: Calls, data: bytearray, request: Request) -> str:
    """Begins an upload from the metadata of its file; returns its key."""
    body = read_object(parse_json(data) if data.strip() else {}, "", ("file",))
    file = read_object(body.get("file", {}), "file", FIELDS)
    refuse(file, "file", WRITTEN_BY_SERVER)
    name = read_string(file["name"], "file.name", 64) if file.get("name") else None
    display = read_string(file.get("displayName", ""), "file.displayName", 512) or None
    declared = file.get("mimeType") or request.headers.get("x-goog-upload-header-content-type", "")
    mime = read_mime(read_string(declared, "file.mimeType", 256))
    return calls.files.begin(name, display, mime, _integer(request, "x-goog-upload-header-content-length"))


async def _receive(upload: Upload, request: Request) -> None:
    """Appends the body of a request to an upload. Raises WireError, also when it comes too slowly."""
    offset = _integer(request, "x-goog-upload-offset")
    if upload.busy:
        raise WireError(409, "another request is sending to this upload", "ABORTED")
    if offset not in (None, upload.received):
        raise WireError(400, f"X-Goog-Upload-Offset is {offset}; {upload.received} bytes have been received")
    length = _integer(request, "content-length") or 0
    upload.busy = True
    try:
        async with asyncio.timeout(BODY_SECONDS + length / MIN_RATE):
            waiting = bytearray()
            async for chunk in request.stream():
                waiting += chunk
                if len(waiting) >= WRITTEN_BYTES:
                    await asyncio.to_thread(upload.write, bytes(waiting))
                    waiting.clear()
            await asyncio.to_thread(upload.write, bytes(waiting))
    except TimeoutError:
        raise WireError(408, "the upload is too slow", "DEADLINE_EXCEEDED") from None
    finally:
        upload.busy = False


async def _continue(calls: Calls, key: str, version: str, request: Request) -> Response:
    """One further request of an upload."""
    commands = [c.strip().lower() for c in request.headers.get("x-goog-upload-command", "upload, finalize").split(",")]
    upload = calls.files.upload(key)
    if commands == ["cancel"]:
        calls.files.cancel(key)
        return Response(headers={"x-goog-upload-status": "cancelled"})
    if not set(commands) <= {"upload", "finalize", "query"}:
        raise WireError(400, f"X-Goog-Upload-Command is {', '.join(commands)[:60]!r}")
    if "upload" in commands:
        await _receive(upload, request)
    if "finalize" not in commands:
        return Response(headers={"x-goog-upload-status": "active", "x-goog-upload-size-received": str(upload.received)})
    record = await asyncio.to_thread(calls.files.finish, key)
    return JSONResponse(
        {"file": with_uri(record.value, _base_url(request), version)}, headers={"x-goog-upload-status": "final"}
    )


async def _upload(calls: Calls, version: str, request: Request) -> Response:
    """The first or a further request of an upload."""
    key = request.query_params.get("upload_id")
    try:
        if key is not None:
            return await _continue(calls, key, version, request)
        protocol = request.headers.get("x-goog-upload-protocol", "")
        if protocol.lower() != "resumable":
            message = f"X-Goog-Upload-Protocol is {protocol[:40]!r}; resumable is the one that this server has"
            raise WireError(400, message)
        key = _begin(calls, await calls.bodies.read(request), request)
    except WireError as error:
        # A status tells the SDK that sending the same again will not help.
        return JSONResponse(error.body(), error.code, {**error.headers, "x-goog-upload-status": "final"})
    url = f"{_base_url(request)}/upload/{version}/files?upload_id={key}&upload_protocol=resumable"
    return Response(headers={"x-goog-upload-url": url, "x-goog-upload-status": "active"})


def _download(calls: Calls, name: str) -> Response:
    """The bytes of a file that the server made; those of uploaded files are not given out, as in Google's API."""
    record = calls.files.get(name)
    if record.value["source"] != "GENERATED":
        raise WireError(400, f"files/{record.id} was uploaded; only generated files can be downloaded")
    # Never shown as a page of this origin.
    headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    return FileResponse(calls.files.path(name), media_type=record.value["mimeType"], headers=headers)


def router(calls: Calls) -> APIRouter:
    """Routes under ``/upload/{version}/files`` and ``/{version}/files``."""
    routes = APIRouter()

    @routes.post("/upload/{version}/files", response_model=None)
    async def upload(version: str, request: Request) -> Response:
        calls.check_version(version)
        return await _upload(calls, version, request)

    @routes.post("/{version}/files")
    async def without_bytes(version: str) -> None:
        calls.check_version(version)
        raise WireError(400, f"upload the bytes of a file to /upload/{version}/files, with X-Goog-Upload-Protocol")

    @routes.post("/{version}/files:register")
    async def register(version: str) -> None:
        calls.check_version(version)
        raise WireError(501, "files:register is not offered: this server reads no cloud storage", "UNIMPLEMENTED")

    @routes.get("/{version}/files")
    async def list_files(version: str, request: Request) -> dict[str, Any]:
        calls.check_version(version)
        page = read_page(request, 10, 100)
        found, base = calls.files.page(page.size + 1, page.number), _base_url(request)
        return page.write("files", found, lambda record: with_uri(record.value, base, version))

    @routes.get("/{version}/files/{name}", response_model=None)
    async def get(version: str, name: str, request: Request) -> dict[str, Any] | Response:
        calls.check_version(version)
        name, _, method = name.partition(":")
        record = calls.files.get(name)
        if method == "download":
            return _download(calls, name)
        if method:
            raise WireError(404, f"files/{name} has no method {method[:40]!r}", "NOT_FOUND")
        return with_uri(record.value, _base_url(request), version)

    @routes.delete("/{version}/files/{name}")
    async def delete(version: str, name: str) -> dict[str, Any]:
        calls.check_version(version)
        await asyncio.to_thread(calls.files.delete, name)
        return {}

    return routes
