"""Batches, with the real SDK over loopback: requests in line and in a file, states, results, and a server that is started again."""

from __future__ import annotations

import asyncio
import io
import json
import time

import httpx
import pytest
from google import genai
from google.genai import errors, types

from alhena.serve.gemini.resources.batch_store import SUCCEEDED, BatchStore
from alhena.serve.gemini.server.settings import Settings
from alhena.serve.store import Store
from tests.serve.conftest import running
from tests.serve.test_server import Endless


@pytest.fixture
def client(tiny_address):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))


def request(text="Hello", **config):
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "config": {"max_output_tokens": 3, **config}}


def wait(client, name):
    for _ in range(1000):
        job = client.batches.get(name=name)
        if job.done:
            return job
        time.sleep(0.02)
    raise AssertionError(f"the batch is {job.state}")


def test_requests_in_line(client):
    requests = [{**request(), "metadata": {"key": "a"}}, request(temperature=9), request(seed=1)]
    job = client.batches.create(model="tiny", src=requests, config={"display_name": "three"})
    assert job.name.startswith("batches/") and job.model == "models/tiny" and job.display_name == "three"
    job = wait(client, job.name)
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED and job.end_time >= job.create_time
    first, second, third = job.dest.inlined_responses
    alone = client.models.generate_content(
        model="tiny", contents="Hello", config=types.GenerateContentConfig(max_output_tokens=3)
    )
    assert first.response.text == alone.text and third.response.usage_metadata.candidates_token_count == 3
    assert second.error.code == 3 and "temperature" in second.error.message and second.response is None
    assert job.name in {other.name for other in client.batches.list(config={"page_size": 2})}
    client.batches.delete(name=job.name)
    with pytest.raises(errors.ClientError) as error:
        client.batches.get(name=job.name)
    assert error.value.code == 404


def test_requests_in_a_file_are_answered_in_a_file(client):
    body = {"contents": [{"parts": [{"text": "Hello"}]}], "generation_config": {"maxOutputTokens": 3}}
    lines = [json.dumps({"key": f"k{i}", "request": body}) for i in range(2)] + ["", "no JSON", '{"key": "empty"}']
    source = client.files.upload(file=io.BytesIO("\n".join(lines).encode()), config={"mime_type": "jsonl"})
    job = client.batches.create(model="tiny", src=source.name)
    # The batch has the requests of its own.
    client.files.delete(name=source.name)
    job = wait(client, job.name)
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED
    results = [json.loads(line) for line in client.files.download(file=job.dest.file_name).splitlines()]
    assert [result.get("key") for result in results] == ["k0", "k1", None, "empty"]
    assert [("response" in result, "error" in result) for result in results] == [(True, False)] * 2 + [
        (False, True)
    ] * 2


def test_embeddings_in_a_batch(client):
    job = client.batches.create_embeddings(
        model="tiny",
        src={"inlined_requests": {"contents": ["one", "two"], "config": {"output_dimensionality": 8}}},
    )
    job = wait(client, job.name)
    vectors = [r.response.embedding.values for r in job.dest.inlined_embed_content_responses]
    assert [len(vector) for vector in vectors] == [8, 8]
    alone = client.models.embed_content(model="tiny", contents="one", config={"output_dimensionality": 8})
    assert vectors[0] == pytest.approx(alone.embeddings[0].values, abs=1e-5)


def test_a_cancelled_batch_frees_the_engine(tiny_engine):
    engine = Endless(tiny_engine)
    with running(engine, "tiny") as address:
        client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=address))

        async def run():
            job = await client.aio.batches.create(model="tiny", src=[request(max_output_tokens=100)])
            while not engine.begun:
                await asyncio.sleep(0.01)
            await client.aio.batches.cancel(name=job.name)
            assert (await client.aio.batches.get(name=job.name)).state == types.JobState.JOB_STATE_CANCELLED
            # The next one is answered.
            job = await client.aio.batches.create(model="tiny", src=[request(max_output_tokens=3)])
            while not (await client.aio.batches.get(name=job.name)).done:
                await asyncio.sleep(0.01)

        asyncio.run(run())
        assert engine.cancelled == 1


def test_a_batch_is_resumed_after_a_restart_without_repeating_what_is_done(tiny_engine, tmp_path):
    store = Store(tmp_path)
    batches = BatchStore(store)
    body = {"contents": [{"parts": [{"text": "Hello"}]}], "generationConfig": {"maxOutputTokens": 3}}
    value = {"method": "batchGenerateContent", "asked": "tiny", "fromFile": False, "displayName": ""}
    record = batches.create(value, [json.dumps({"request": body}).encode() + b"\n" for _ in range(3)])
    done = {"response": {"candidates": [], "modelVersion": "before the restart"}}
    batches.add_result(record, 0, done)
    store.close()
    engine = Endless(tiny_engine)
    with running(engine, "tiny", Settings(state=tmp_path)) as address:
        url = f"{address}/v1beta/batches/{record.id}"
        while not (job := httpx.get(url).json()).get("done"):
            time.sleep(0.02)
    assert job["metadata"]["state"] == SUCCEEDED and engine.begun == 2
    results = job["response"]["inlinedResponses"]["inlinedResponses"]
    assert len(results) == 3 and results[0] == done
    assert job["metadata"]["batchStats"] == {"requestCount": "3", "successfulRequestCount": "3"}


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        ({"inputConfig": {}}, 400),
        ({"inputConfig": {"requests": {"requests": []}}}, 400),
        ({"inputConfig": {"requests": {"requests": [{"no": "request"}]}}}, 400),
        ({"inputConfig": {"fileName": "files/none"}}, 403),
        ({"inputConfig": {"fileName": "../../state.sqlite"}}, 400),
        ({"inputConfig": {"requests": {"requests": [{"request": {}}]}}, "webhookConfig": {"uris": ["http://x"]}}, 400),
    ],
)
def test_bad_batches_are_refused(tiny_address, batch, code):
    answer = httpx.post(f"{tiny_address}/v1beta/models/tiny:batchGenerateContent", json={"batch": batch})
    assert answer.status_code == code, answer.text
