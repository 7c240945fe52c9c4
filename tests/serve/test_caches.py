"""Cached contents, with the real SDK over loopback: create, use, list, patch, delete, expiry."""

from __future__ import annotations

import asyncio
import datetime
import io
import time

import httpx
import pytest
from google import genai
from google.genai import errors, types

from alhena.serve.gemini.resources.cache_store import CacheStore
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.store import Store
from tests.conftest import random_image


@pytest.fixture
def client(tiny_address):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))


CONTENTS = [types.UserContent("The lighthouse is red.")]


def test_the_sdk_creates_lists_extends_and_deletes(client):
    config = {"contents": CONTENTS, "system_instruction": "Be brief.", "display_name": "a cache", "ttl": "600s"}
    cache = client.caches.create(model="tiny", config=config)
    count = client.models.count_tokens(model="tiny", contents=CONTENTS).total_tokens
    assert cache.model == "models/tiny" and cache.usage_metadata.total_token_count > count
    lifetime = (cache.expire_time - cache.create_time).total_seconds()
    assert 595 < lifetime <= 601
    other = client.caches.create(model="models/tiny", config={"contents": CONTENTS})
    assert {cache.name, other.name} <= {c.name for c in client.caches.list(config={"page_size": 1})}
    longer = client.caches.update(name=cache.name, config={"ttl": "7200s"})
    assert longer.expire_time > cache.expire_time and longer.display_name == "a cache"
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    assert client.caches.update(name=cache.name, config={"expire_time": moment}).expire_time == moment
    client.caches.delete(name=cache.name)
    with pytest.raises(errors.ClientError) as error:
        client.caches.get(name=cache.name)
    assert (error.value.code, error.value.status) == (403, "PERMISSION_DENIED")


def test_the_async_sdk_creates_and_gets(client):
    async def run():
        cache = await client.aio.caches.create(model="tiny", config={"system_instruction": "Be brief."})
        assert (await client.aio.caches.get(name=cache.name)).expire_time == cache.expire_time
        await client.aio.caches.delete(name=cache.name)

    asyncio.run(run())


def test_an_answer_with_cached_content_is_that_of_the_complete_prompt(client):
    config = {"max_output_tokens": 6}
    cache = client.caches.create(model="tiny", config={"contents": CONTENTS, "system_instruction": "Be brief."})
    answer = client.models.generate_content(
        model="tiny", contents="Which color?", config={**config, "cached_content": cache.name}
    )
    whole = client.models.generate_content(
        model="tiny", contents=[*CONTENTS, "Which color?"], config={**config, "system_instruction": "Be brief."}
    )
    assert answer.text == whole.text
    assert answer.usage_metadata.prompt_token_count == whole.usage_metadata.prompt_token_count
    assert answer.usage_metadata.cached_content_token_count == cache.usage_metadata.total_token_count
    with pytest.raises(errors.ClientError, match="exclude each other"):
        client.models.generate_content(
            model="tiny", contents="x", config={"cached_content": cache.name, "system_instruction": "Be verbose."}
        )
    client.caches.delete(name=cache.name)
    with pytest.raises(errors.ClientError) as error:
        client.models.generate_content(model="tiny", contents="x", config={"cached_content": cache.name})
    assert error.value.code == 403


def test_an_uploaded_file_is_read_in_a_prompt(client):
    file = client.files.upload(file=io.BytesIO(random_image(3).data), config={"mime_type": "image/png"})
    inline = types.Part.from_bytes(data=random_image(3).data, mime_type="image/png")
    config = {"max_output_tokens": 4}
    answers = [
        client.models.generate_content(model="tiny", contents=[part, "What is it?"], config=config)
        for part in (file, inline)
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].usage_metadata.prompt_token_count == answers[1].usage_metadata.prompt_token_count
    cache = client.caches.create(model="tiny", config={"contents": [file]})
    assert cache.usage_metadata.total_token_count > 4
    with pytest.raises(errors.ClientError, match="only files of this server"):
        client.models.generate_content(
            model="tiny", contents=types.Part.from_uri(file_uri="https://example.com/a.png", mime_type="image/png")
        )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "models/tiny"}, "nothing to cache"),
        ({"contents": []}, "model is missing"),
        ({"model": "models/tiny", "contents": [{"parts": [{"text": "x"}]}], "ttl": "-1s"}, "ttl is '-1s'"),
        (
            {"model": "models/tiny", "contents": [{"parts": [{"text": "x"}]}], "expireTime": "2020-01-01T00:00:00Z"},
            "future",
        ),
        (
            {"model": "models/tiny", "contents": [{"parts": [{"text": "x"}]}], "name": "cachedContents/x"},
            "name is written",
        ),
        (
            {
                "model": "models/tiny",
                "contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}],
            },
            "",
        ),
        ({"model": "models/tiny", "generationConfig": {}}, "unknown field"),
    ],
)
def test_bad_cached_content_is_refused(tiny_address, body, message):
    answer = httpx.post(f"{tiny_address}/v1beta/cachedContents", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_nothing_but_the_expiry_can_change(tiny_address, client):
    cache = client.caches.create(model="tiny", config={"contents": CONTENTS})
    for body in ({"contents": []}, {}, {"ttl": "1s", "displayName": "x"}):
        assert httpx.patch(f"{tiny_address}/v1beta/{cache.name}", json=body).status_code == 400


def test_cached_content_outlives_the_server_until_it_expires(tmp_path):
    store = Store(tmp_path)
    body = {"contents": [{"parts": [{"text": "hello"}]}]}
    record = CacheStore(store).create(body, "tiny", "", 7, time.time() + 60)
    store.close()
    caches = CacheStore(Store(tmp_path))
    assert caches.open(record.value["name"]) == (body, 7)
    caches.extend(record.id, time.time() - 1)
    with pytest.raises(WireError):
        caches.open(record.value["name"])
