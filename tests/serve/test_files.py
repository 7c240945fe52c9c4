"""Uploaded files, with the real SDK over loopback: upload, get, list, delete, expiry; and after a killed server."""

from __future__ import annotations

import asyncio
import io

import httpx
import pytest
from google import genai
from google.genai import errors, types

from alhena.serve.gemini.resources import file_store
from alhena.serve.gemini.resources.file_store import FileStore
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.store import Store
from tests.conftest import random_image


@pytest.fixture
def client(tiny_address):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))


def test_the_sdk_uploads_gets_lists_and_deletes(client, tmp_path, monkeypatch):
    monkeypatch.setattr("google.genai._api_client.CHUNK_SIZE", 1000)
    png = random_image(1, 64, 64).data
    (tmp_path / "a.png").write_bytes(png)
    assert len(png) > 3000
    names = {client.files.upload(file=tmp_path / "a.png", config={"display_name": "a picture"}).name for _ in range(3)}
    file = client.files.get(name=names.pop())
    assert (file.display_name, file.mime_type, file.size_bytes) == ("a picture", "image/png", len(png))
    assert file.state == types.FileState.ACTIVE and file.source == types.FileSource.UPLOADED
    assert 47 < (file.expiration_time - file.create_time).total_seconds() / 3600 <= 48
    assert file.uri.endswith("/" + file.name)
    listed = [f.name for f in client.files.list(config={"page_size": 1})]
    assert {file.name, *names} <= set(listed) and len(listed) == len(set(listed))
    client.files.delete(name=file.name)
    with pytest.raises(errors.ClientError) as error:
        client.files.get(name=file.name)
    assert (error.value.code, error.value.status) == (403, "PERMISSION_DENIED")


def test_the_async_sdk_uploads_bytes_of_an_unnamed_type(client):
    async def run():
        config = {"mime_type": "audio/wav", "name": "files/my-file"}
        file = await client.aio.files.upload(file=io.BytesIO(random_image(2).data), config=config)
        assert (file.name, file.mime_type) == ("files/my-file", "image/png")
        with pytest.raises(errors.ClientError, match="already exists"):
            await client.aio.files.upload(file=io.BytesIO(b"x"), config=config)
        with pytest.raises(errors.ClientError, match="only generated files"):
            await client.aio.files.download(file="files/my-file")
        await client.aio.files.delete(name=file.name)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "path", "code"),
    [
        ({"X-Goog-Upload-Protocol": "multipart"}, "", 400),
        ({"X-Goog-Upload-Header-Content-Length": str(3 << 30)}, "", 400),
        ({"X-Goog-Upload-Header-Content-Length": "-1"}, "", 400),
        ({"X-Goog-Upload-Header-Content-Type": "bad/type"}, "", 400),
        ({}, "?upload_id=../../etc/passwd", 404),
    ],
)
def test_bad_uploads_are_refused_with_a_status(tiny_address, headers, path, code):
    headers = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start", **headers}
    answer = httpx.post(f"{tiny_address}/upload/v1beta/files{path}", headers=headers, json={"file": {}})
    assert (answer.status_code, answer.headers["x-goog-upload-status"]) == (code, "final")


@pytest.mark.parametrize("name", ["..", "../x", "A", "a/b", "http://x/v1/files/..", "file:///etc/passwd"])
def test_names_like_paths_are_refused(tmp_path, name):
    files = FileStore(Store(tmp_path))
    with pytest.raises(WireError):
        files.open(name)
    with pytest.raises(WireError):
        files.begin(name, None, "text/plain", 1)


def upload(files: FileStore, data: bytes, name: str) -> None:
    key = files.begin(name, None, "text/plain", len(data))
    files.upload(key).write(data)
    files.finish(key)


def test_files_outlive_a_killed_server_and_incomplete_uploads_do_not(tmp_path):
    store = Store(tmp_path)
    files = FileStore(store)
    upload(files, b"whole", "whole")
    files.upload(files.begin("half", None, "text/plain", 10)).write(b"half")
    with pytest.raises(ValueError, match="another server keeps its state there"):
        Store(tmp_path)
    # A killed process writes nothing more; only its lock is released.
    store._lock.close()
    again = FileStore(Store(tmp_path))
    assert again.open("files/whole") == (b"whole", "text/plain")
    assert [record.id for record in again.page(10, None)] == ["whole"]
    assert len(list((tmp_path / "blobs").iterdir())) == 1


def test_a_file_expires(tmp_path, monkeypatch):
    store = Store(tmp_path)
    files = FileStore(store)
    monkeypatch.setattr(file_store, "LIFETIME_SECONDS", -1.0)
    upload(files, b"short", "short")
    with pytest.raises(WireError) as error:
        files.open("files/short")
    assert error.value.code == 403
    assert store.delete_expired() == 1
    assert not list((tmp_path / "blobs").iterdir())


def test_an_upload_has_the_bytes_that_it_announces(tmp_path):
    files = FileStore(Store(tmp_path))
    key = files.begin(None, None, "text/plain", 3)
    with pytest.raises(WireError, match="more than its 3 bytes"):
        files.upload(key).write(b"1234")
    files.upload(key).write(b"12")
    with pytest.raises(WireError, match="2 bytes; 3 were announced"):
        files.finish(key)
    assert not list((tmp_path / "blobs").iterdir())
