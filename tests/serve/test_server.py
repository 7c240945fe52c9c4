"""Requests to a real server: clients that disconnect, hang or are many; streams; allowed hosts and origins."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import httpx
import pytest
from google import genai
from google.genai import types

from alhena.content import Content, Text
from alhena.serve.decoding.buckets import MAX_OUTPUT_TOKENS
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Answer, _LocalJob
from alhena.serve.gemini.app import listen
from alhena.serve.gemini.server import connections
from alhena.serve.gemini.server.connections import Hosts
from alhena.serve.scheduler import Scheduler
from tests.conftest import random_image
from tests.serve.conftest import running
from tests.serve.waiting import leave, wait_for

HELLO = [Content("user", (Text("Hello"),))]
LONG = {"maxOutputTokens": MAX_OUTPUT_TOKENS, "temperature": 1, "stopSequences": ["no such words"]}


def body(config=None, text="Hello", **more):
    return {"contents": [{"parts": [{"text": text}]}], "generationConfig": config or {"maxOutputTokens": 4}, **more}


class Endless:
    """An engine that generates until it is cancelled."""

    def __init__(self, engine) -> None:
        self.encode, self.encoder, self.begun, self.cancelled = engine.encode, engine.encoder, 0, 0
        self.default_sampling, self.max_prompt_tokens = engine.default_sampling, engine.max_prompt_tokens

    def stream(self, prompt, sampling, stride, cancelled):
        self.begun += 1
        if sampling.max_tokens < 10:
            yield Text("short")
            yield Answer(Content("model", (Text("short"),)), "stop", 1, 1)
            return
        while not cancelled():
            time.sleep(0.005)
            yield Text("on ")
        self.cancelled += 1


@pytest.fixture
def endless(tiny_engine):
    engine = Endless(tiny_engine)
    with running(engine, "tiny") as address:
        yield engine, f"{address}/v1beta/models/tiny:"


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_a_client_that_disconnects_from_a_stream_frees_the_engine(endless):
    engine, url = endless
    with httpx.stream("POST", url + "streamGenerateContent?alt=sse", json=body(LONG), timeout=60) as answer:
        next(answer.iter_lines())
    wait_for(lambda: engine.cancelled == 1)
    assert (
        httpx.post(url + "generateContent", json=body(), timeout=60).json()["candidates"][0]["finishReason"] == "STOP"
    )


def test_a_client_that_disconnects_from_a_plain_request_frees_the_engine(endless):
    engine, url = endless
    leave(url + "generateContent", body(LONG), lambda: engine.begun == 1)
    wait_for(lambda: engine.cancelled == 1)


def test_a_stream_and_many_plain_requests(endless):
    """The stream continues while 60 requests wait; when it is closed, they are answered."""
    url = endless[1]

    async def run():
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
            async with client.stream("POST", url + "streamGenerateContent?alt=sse", json=body(LONG)) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                waiting = [asyncio.create_task(client.post(url + "generateContent", json=body())) for _ in range(60)]
                await asyncio.sleep(0.3)
                assert "on" in "".join([await anext(lines) for _ in range(6)])
                assert not any(task.done() for task in waiting)
            return [answer.status_code for answer in await asyncio.gather(*waiting)]

    assert asyncio.run(run()) == [200] * 60


def test_a_full_queue_refuses_with_429(tiny_engine, monkeypatch):
    """While one answer is generated and one request waits, a third is refused."""
    monkeypatch.setattr("alhena.serve.gemini.calls.Scheduler", partial(Scheduler, max_waiting=1))
    engine = Endless(tiny_engine)
    with running(engine, "tiny") as address:
        url = f"{address}/v1beta/models/tiny:"
        with httpx.stream("POST", url + "streamGenerateContent?alt=sse", json=body(LONG), timeout=60) as answer:
            # The response is closed with the iterator.
            lines = answer.iter_lines()
            next(lines)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(httpx.post, url + "generateContent", json=body(), timeout=60)
                wait_for(lambda: "alhena_queue_length 1.0" in httpx.get(f"{address}/metrics").text)
                refused = httpx.post(url + "generateContent", json=body(), timeout=60)
                answer.close()
        assert (refused.status_code, refused.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert refused.headers["Retry-After"] == "1"
        assert waiting.result().status_code == 200


def test_an_engine_that_fails_returns_500_and_continues(tiny_engine):
    class Failing(Endless):
        def stream(self, prompt, sampling, stride, cancelled):
            if sampling.seed == 1:
                raise RuntimeError("out of something")
            yield from super().stream(prompt, sampling, stride, cancelled)

    with running(Failing(tiny_engine), "tiny") as address:
        url = f"{address}/v1/models/tiny:"
        failed = httpx.post(url + "generateContent", json=body({"seed": 1}))
        assert (failed.status_code, failed.json()["error"]["status"]) == (500, "INTERNAL")
        streamed = httpx.post(url + "streamGenerateContent?alt=sse", json=body({"seed": 1}))
        assert json.loads(streamed.text.removeprefix("data: "))["error"]["code"] == 500
        assert httpx.post(url + "generateContent", json=body()).status_code == 200


def test_the_server_ends_with_a_hung_client(tiny_engine, monkeypatch):
    monkeypatch.setattr("alhena.serve.gemini.app.DRAIN_SECONDS", 1)
    with running(Endless(tiny_engine), "tiny") as address:
        host, port = address.removeprefix("http://").split(":")
        hung = socket.create_connection((host, int(port)))
        data = json.dumps(body(LONG)).encode()
        head = f"POST /v1/models/tiny:streamGenerateContent HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
        hung.sendall(head.encode() + data)
        hung.recv(10)
    hung.close()


def test_half_open_connections_do_not_block_complete_requests(tiny_address, monkeypatch):
    monkeypatch.setattr(connections, "MAX_WAITING", 16)
    host, port = tiny_address.removeprefix("http://").split(":")
    head = b"POST /v1/models/tiny:countTokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    half_open = [socket.create_connection((host, int(port))) for _ in range(3 * 16)]
    for half in half_open[::2]:
        half.sendall(head + b"{")
    assert httpx.get(f"{tiny_address}/v1/models").status_code == 200
    assert httpx.post(f"{tiny_address}/v1/models/tiny:countTokens", json=body()).status_code == 200
    for half in half_open:
        half.close()


def test_a_slow_client_is_closed(tiny_address, monkeypatch):
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.2)
    host, port = tiny_address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as half:
        half.sendall(b"POST /v1/models/tiny:countTokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in half.recv(1000)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    with socket.create_connection((host, int(port)), timeout=20) as half:
        half.sendall(b"POST /v1/mod")
        assert closed(half)


def test_the_last_event_of_a_stream_has_a_part_and_the_reason(tiny_address):
    client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))
    chat = client.chats.create(
        model="tiny", config=types.GenerateContentConfig(max_output_tokens=6, temperature=1, seed=3)
    )
    events = list(chat.send_message_stream("Hello"))
    assert all(isinstance(event.text, str) for event in events)
    assert [event.candidates[0].finish_reason is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].usage_metadata.candidates_token_count == 6
    assert len(chat.get_history(curated=True)) >= 2
    # Turns of the same role are merged, so a history of events gives the same prompt as a complete answer.
    text = "".join(event.text for event in events)
    whole = [types.UserContent("Hello"), types.ModelContent(text), types.UserContent("Again")]
    events_ = [types.UserContent("Hello"), *chat.get_history()[1:], types.UserContent("Again")]
    counts = [client.models.count_tokens(model="tiny", contents=c).total_tokens for c in (whole, events_)]
    assert counts[0] == counts[1]


def test_a_generated_image_is_encoded_as_codes_in_the_history(tiny_address, tiny_engine):
    client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))
    config = types.GenerateContentConfig(response_modalities=["IMAGE"], max_output_tokens=80)
    chat = client.chats.create(model="tiny", config=config)
    blob = chat.send_message("Draw a red circle.").candidates[0].content.parts[0].inline_data
    assert chat.send_message("Another.").candidates[0].content.parts
    turns = [Content("user", (Text("Draw."),)), Content("model", (replace(random_image(1), data=blob.data),)), HELLO[0]]
    tokens = tiny_engine.encode(turns).tokens.tolist()
    v = tiny_engine.encoder.vocabulary
    at = tokens.index(v.control("<boi_out>"))
    count = (tokens[at + 1] - v.rows(1) + 1) * (tokens[at + 2] - v.columns(1) + 1)
    assert all(v.is_code(token) for token in tokens[at + 3 : at + 3 + count])
    assert tokens[at + 3 + count] == v.control("<eoi_out>")


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse", "countTokens"])
def test_a_prompt_that_is_too_long_is_refused_before_the_stream(tiny_address, method):
    for request in (
        body(text="word " * 40_000),
        {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}]},
    ):
        answer = httpx.post(f"{tiny_address}/v1/models/tiny:{method}", json=request, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_max_tokens_is_clamped(tiny_engine):
    job = _LocalJob(tiny_engine.encode(HELLO), Sampling(max_tokens=1 << 20))
    assert tiny_engine.batch._max_tokens(job) == MAX_OUTPUT_TOKENS


def test_images_that_take_too_much_memory_together_are_refused(tiny_engine):
    with pytest.raises(ValueError, match=r"10,240 patches; at most 4,096"):
        tiny_engine.encode(
            [Content("user", tuple(random_image(i, 128, 128) for i in range(40)))],
            Sampling(guidance=3),
        )


def test_each_media_item_is_decoded_once(tiny_address, monkeypatch):
    decoded = []
    from alhena.tokens import encode

    original = encode.decode_image
    monkeypatch.setattr(encode, "decode_image", lambda data: decoded.append(1) or original(data))
    image_part = types.Part.from_bytes(data=random_image(1).data, mime_type="image/png")
    client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))
    config = types.GenerateContentConfig(max_output_tokens=2)
    list(client.models.generate_content_stream(model="tiny", contents=[image_part, "What?"], config=config))
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
)
def test_foreign_hosts_and_cross_site_requests_are_refused(tiny_address, headers, status):
    answer = httpx.get(f"{tiny_address}/v1beta/models", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    if status != 200:
        assert answer.json()["error"]["status"] == "PERMISSION_DENIED"


def test_a_public_server_allows_addresses_and_the_given_names():
    hosts = Hosts.serving("0.0.0.0", ("Model.Example",))
    assert [hosts.allow(h) for h in ("10.0.0.7:8000", "model.example", "evil.example")] == [True, True, False]


@pytest.mark.parametrize(
    ("path", "code"), [("/", 404), ("/v1/nothing", 404), ("/v3/models", 404), ("/v1/models/tiny:x", 404)]
)
def test_unknown_paths_get_errors_in_googles_format(tiny_address, path, code):
    answer = httpx.post(tiny_address + path, json={})
    assert answer.status_code in (code, 405)
    assert set(answer.json()["error"]) == {"code", "message", "status"}


def test_a_port_in_use_is_one_clear_error(tiny_address):
    with pytest.raises(ValueError, match=r"cannot listen on 127.0.0.1 port \d+: Address already in use"):
        listen("127.0.0.1", int(tiny_address.rsplit(":", 1)[1]))
