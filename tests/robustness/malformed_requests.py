"""Malformed requests to a real server of a tiny random model: each must get a 4xx or a correct 200, and never stop the server.

    python -m tests.robustness.malformed_requests --random 200 --seed 0

Systematic ones put every odd value into every field; random ones flip, delete and duplicate bytes of valid bodies; raw ones are
not HTTP. A response of 5xx, a logged traceback, an incomplete stream, or no response within a minute is a fault.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import logging
import random
import socket
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from alhena.serve.engine import Engine
from tests.conftest import make_encoder, make_tiny, random_audio, random_image
from tests.serve.conftest import running, write_tiny
from tests.serve.pdfs import make_pdf

TIMEOUT_SECONDS = 60
METHODS = ("generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent", "countTokens")


def blob(mime: str, data: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}}


VALID: dict[str, Any] = {
    "contents": [
        {
            "role": "user",
            "parts": [
                {"text": "Hello"},
                blob("image/png", random_image(1).data) | {"mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"}},
            ],
        },
        {"role": "model", "parts": [{"text": "red"}]},
        {"role": "user", "parts": [{"text": "What?"}, blob("audio/flac", random_audio(2, 0.3).data)]},
    ],
    "systemInstruction": {"parts": [{"text": "Be brief."}]},
    "generationConfig": {
        "temperature": 0.5,
        "topK": 4,
        "topP": 0.9,
        "seed": 1,
        "maxOutputTokens": 2,
        "candidateCount": 2,
        "stopSequences": ["x"],
        "responseModalities": ["TEXT"],
        "imageConfig": {"aspectRatio": "1:1"},
        "responseMimeType": "text/x.enum",
        "responseSchema": {"type": "STRING", "enum": ["a", "b"]},
        "thinkingConfig": {"thinkingBudget": 0},
        "presencePenalty": 0.5,
        "frequencyPenalty": -0.5,
        "responseLogprobs": True,
        "logprobs": 1,
        "mediaResolution": "MEDIA_RESOLUTION_HIGH",
    },
    "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}],
    "labels": {"team": "x"},
    "serviceTier": "standard",
}
# A request that the tiny model cannot answer: it calls no tools.
WITH_TOOLS: dict[str, Any] = {
    "contents": [
        {"role": "user", "parts": [{"fileData": {"fileUri": "files/none", "mimeType": "image/png"}, "videoMetadata": {"fps": 1, "startOffset": "1s"}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}, "id": "1"}, "thoughtSignature": "eA=="}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"b": [2]}, "parts": [blob("image/png", random_image(1).data)]}}]},
    ],
    "tools": [{"functionDeclarations": [{"name": "f", "description": "d", "parameters": {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}}}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
    "cachedContent": "",
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2.5, 1e308, 2**70, "", "x", "9" * 400, "\ud800", "\x00", [], {}, [[]], [None], [{}], {"a": 1}, {"": {}}, ["x"] * 600,
)  # fmt: skip
RAW_BODIES = (
    b"", b"{", b"}", b"null", b"[]", b"0", b"\"", b"\xff\xfe", b"{}" * 2, b"NaN", b"{\"contents\": NaN}", b"{\"contents\": 1e999}",
    b"{\"contents\": " + b"[" * 200_000, b"{\"contents\":" * 50_000, b"{" + b"\"a\":1," * 100_000 + b"\"a\":1}",
    b"{" + b"\"a\":1," * 600_000 + b"\"a\":1}", b"{\"contents\": \"\\ud800\"}", b"\x00" * 1000, b"1" * 100_000, b"-", b"{\"a\"}",
)  # fmt: skip
RAW_HTTP = (
    b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b"G\x00T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/models/tiny:countTokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/models/tiny:countTokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n",
    b"POST /v1/models/tiny:countTokens HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/models/tiny:countTokens HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /v1/models HTTP/1.1\r\nHost: [::bad\r\n\r\n", b"GET /%ff%fe/models/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    name: str
    method: str
    body: bytes


def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of every field and item."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from paths(item, (*at, key))


def text(**config: Any) -> dict[str, Any]:
    return {
        "contents": [{"parts": [{"text": "x"}]}],
        "generationConfig": {"responseMimeType": "application/json", **config},
    }


def with_part(part: dict[str, Any], count: int = 1) -> dict[str, Any]:
    return {"contents": [{"parts": [part] * count}]}


def nested(depth: int, schema: dict[str, Any]) -> dict[str, Any]:
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def pdf_bomb() -> bytes:
    """A page with a picture of a billion pixels in a megabyte of compressed bytes."""
    side, drawing, compress = 1 << 15, b"q 100 0 0 100 0 0 cm /I Do Q", zlib.compressobj(9)
    packed = b"".join(compress.compress(bytes(1 << 20)) for _ in range(1 << 10)) + compress.flush()
    picture = b"/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8/Filter/FlateDecode" % (
        side,
        side,
    )
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 4 0 R/Resources<</XObject<</I 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(drawing), drawing),
        b"<</Type/XObject%s/Length %d>>stream\n%s\nendstream" % (picture, len(packed), packed),
    )
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % numbered for numbered in enumerate(objects, 1))
    return b"%PDF-1.4\n" + body + b"trailer<</Root 1 0 R>>"


def hostile() -> Iterator[Trial]:
    """Requests that are large or deep where a small part of them is enough to refuse them."""
    recursive = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    bodies: dict[str, dict[str, Any]] = {
        "10,000 parts": with_part({"text": "x"}, 10_000),
        "300 pictures": with_part(blob("image/png", random_image(1).data), 300),
        "a million characters of JSON": with_part(blob("application/json", b"1" * (5 << 20))),
        "a deep schema": text(responseJsonSchema=nested(200, {})),
        "a very deep schema": text(responseJsonSchema=nested(900, {})),
        "an endless schema": text(responseJsonSchema=recursive),
        "a schema that is itself": text(responseJsonSchema={"$ref": "#"}),
        "many choices": text(responseMimeType="text/x.enum", responseSchema={"enum": [f"v{n}" for n in range(100_000)]}),
        "many repetitions": text(responseJsonSchema={"type": "string", "minLength": 10**9}),
        "a pattern that grows": text(responseJsonSchema={"type": "string", "pattern": "(((a{1,99}){1,99}){1,99}){1,99}"}),
        "a long signature": with_part({"text": "x", "thoughtSignature": "A" * (3 << 20)}),
        "a path": with_part({"fileData": {"fileUri": "files/../../etc/passwd"}}),
        "an address": with_part({"fileData": {"fileUri": "http://169.254.169.254/latest/meta-data"}}),
        "a long PDF": with_part(blob("application/pdf", make_pdf(2000))),
        "a truncated PDF": with_part(blob("application/pdf", make_pdf(3)[:300])),
        "many pages": with_part(blob("application/pdf", make_pdf(90)), 4),
        "a PDF that grows": with_part(blob("application/pdf", pdf_bomb())),
    }  # fmt: skip
    for name, body in bodies.items():
        yield from (Trial(name, method, json.dumps(body).encode()) for method in METHODS[::3])


def systematic() -> Iterator[Trial]:
    """Every odd value in every field; every field missing; an unknown field in every object."""
    yield from (trial for valid in (VALID, WITH_TOOLS) for trial in _systematic(valid))
    for body_ in RAW_BODIES:
        yield from (Trial(f"raw {body_[:30]!r}", method, body_) for method in METHODS[:2])


def _systematic(valid: dict[str, Any]) -> Iterator[Trial]:
    number = 0
    for at in paths(valid):
        for odd in (*ODD, "missing", "unknown"):
            body = copy.deepcopy(valid)
            parent = body
            for key in at[:-1]:
                parent = parent[key]
            if odd == "missing":
                del parent[at[-1]]
            elif odd == "unknown" and isinstance(parent, dict):
                parent["unknownField"] = 1
            else:
                parent[at[-1]] = odd
            number += 1
            yield Trial(f"{'.'.join(map(str, at))} = {str(odd)[:20]!a}", METHODS[number % 4], json.dumps(body).encode())


def mutated(seed: int, count: int) -> Iterator[Trial]:
    """Bytes of valid bodies flipped, deleted, duplicated or replaced."""
    rng, valid = random.Random(seed), json.dumps(VALID).encode()
    for number in range(count):
        data = bytearray(valid)
        for _ in range(rng.randint(1, 4)):
            at, size = rng.randrange(len(data)), rng.randint(1, 30)
            change = rng.randrange(4)
            if change == 0:
                data[at] = rng.randrange(256)
            elif change == 1:
                del data[at : at + size]
            elif change == 2:
                data[at:at] = data[at : at + size]
            else:
                data[at : at + 1] = rng.choice([b'"', b"{", b"]", b",", b"null", b"-1", b"1e99", b"\\u0000"])
        yield Trial(f"mutation {number} of seed {seed}", rng.choice(METHODS), bytes(data))


def fault_of(answer: httpx.Response, method: str) -> str | None:
    """What is wrong with a response, or None."""
    if 400 <= answer.status_code < 500:
        return None if set(answer.json()["error"]) == {"code", "message", "status"} else "an error of another format"
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text[:200]}"
    if method == "countTokens":
        return None if answer.json()["totalTokens"] > 0 else "no tokens counted"
    if method.endswith("sse"):
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\r\n\r\n") if line]
    else:
        events = answer.json() if method.startswith("stream") else [answer.json()]
    if any("error" in event for event in events):
        return f"an error in the stream: {events[-1]}"
    if not all(event["candidates"][0]["content"]["parts"] for event in events):
        return "an event without parts"
    return None if "finishReason" in events[-1]["candidates"][0] else "a stream without its end"


def send_raw(address: str, data: bytes) -> str | None:
    """What is wrong with the response to bytes that are not a request, or None; a closed connection is correct."""
    at = urlsplit(address)
    try:
        connection = socket.create_connection((at.hostname or "", at.port or 0), timeout=TIMEOUT_SECONDS)
    except OSError as error:
        return f"no connection: {error}"
    with connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        except TimeoutError:
            return "no answer"
        except OSError:
            # Each of these calls finds in a way of its own that the server closed the connection before it.
            return None
    status = answer.split(b" ")[1] if answer.startswith(b"HTTP/") else b"4"
    return None if status.startswith((b"4", b"2")) else f"status {status!r}"


def attack(address: str, trials: Iterator[Trial]) -> tuple[Counter[str], list[str]]:
    """Sends all trials; returns counts of the response codes, and the faults."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with httpx.Client(base_url=address + "/v1beta/models/tiny:", timeout=TIMEOUT_SECONDS) as client:
        for trial in trials:
            try:
                answer = client.post(address + "/v1beta/models/tiny:" + trial.method, content=trial.body)
                fault = fault_of(answer, trial.method)
                counts[str(answer.status_code)] += 1
            except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError) as error:
                fault = f"{type(error).__name__}: {error}"
            if fault:
                faults.append(f"{trial.name} ({trial.method}): {fault}")
    for data in RAW_HTTP:
        fault = send_raw(address, data)
        counts["raw"] += 1
        faults += [f"raw {data[:40]!r}: {fault}"] if fault else []
    if httpx.get(address + "/v1beta/models", timeout=TIMEOUT_SECONDS).status_code != 200:
        faults.append("the server does not respond any more")
    return counts, faults


class Tracebacks(logging.Handler):
    """Collects logged errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@contextmanager
def tracebacks() -> Iterator[list[str]]:
    """The errors that a running server logs."""
    handler = Tracebacks()
    loggers = [logging.getLogger(name) for name in ("", "uvicorn.error")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handler.found
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    encoder = make_encoder()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.load(write_tiny(Path(folder) / "tiny", encoder, make_tiny(encoder)))
        with running(engine, "tiny") as address, tracebacks() as found:
            counts, faults = attack(address, iter([*systematic(), *hostile(), *mutated(options.seed, options.random)]))
    faults += [f"logged: {text}" for text in found]
    print(dict(counts), *faults, f"{len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
