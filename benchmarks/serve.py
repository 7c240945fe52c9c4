"""Load on a running server: concurrent streaming clients with mixed requests, for a while.

    alhena serve RUN --port 8000 &
    python benchmarks/serve.py --url http://127.0.0.1:8000 --clients 1 4 16 64 --seconds 120 --pid SERVER_PID

Each client sends one request after the other: texts of several lengths, a picture, a sound, a picture to be generated, JSON. Printed,
and written to ``benchmarks/results/serve.json``: time to the first token, time between tokens, tokens/s, errors, memory over time.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from alhena.media import encode_audio, encode_png

RESULTS = Path(__file__).parent / "results"
PERCENTILES = (50, 90, 99)
TEXT = "The quick brown fox jumps over the lazy dog. "


@dataclass(frozen=True)
class Kind:
    """A kind of request: its parts, and its generation settings."""

    name: str
    parts: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)


def _media(mime: str, data: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}}


def kinds(names: list[str], tokens: int) -> list[Kind]:
    """The kinds of requests with these names."""
    rng = np.random.default_rng(0)
    image = _media("image/png", encode_png(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)))
    audio = _media("audio/flac", encode_audio(0.3 * rng.normal(size=16000).astype(np.float32)))
    schema = {"type": "OBJECT", "properties": {"count": {"type": "INTEGER"}}, "required": ["count"]}
    limit = {"maxOutputTokens": tokens}
    every = [
        Kind("text", [{"text": "What is the capital of France?"}], limit),
        Kind("long", [{"text": TEXT * 60 + "What does the fox do?"}], limit),
        Kind("picture", [image, {"text": "What shape is it?"}], limit),
        Kind("sound", [audio, {"text": "Transcribe."}], limit),
        Kind("draw", [{"text": "Draw a red circle."}], {"responseModalities": ["IMAGE"], "maxOutputTokens": 120}),
        Kind(
            "json", [{"text": "How many?"}], limit | {"responseMimeType": "application/json", "responseSchema": schema}
        ),
    ]
    return [kind for kind in every if kind.name in names]


@dataclass
class Measured:
    """What one request took, in seconds."""

    kind: str
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    error: str | None = None


def ask(client: httpx.Client, url: str, kind: Kind, seed: int) -> Measured:
    """One streamed request."""
    body = {"contents": [{"parts": kind.parts}], "generationConfig": kind.config | {"seed": seed, "temperature": 1}}
    measured, begin = Measured(kind.name), time.monotonic()
    last = begin
    try:
        with client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                response.read()
                measured.error = f"{response.status_code}: {response.text[:200]}"
                return measured
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                now = time.monotonic()
                event = json.loads(line[6:])
                if "error" in event:
                    measured.error = str(event["error"])[:200]
                if measured.first is None:
                    measured.first = now - begin
                else:
                    measured.gaps.append(now - last)
                last = now
                usage = event.get("usageMetadata", {})
                measured.tokens = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
    except httpx.HTTPError as error:
        measured.error = f"{type(error).__name__}: {error}"
    measured.seconds = time.monotonic() - begin
    return measured


@dataclass(frozen=True)
class Load:
    """What the clients send, where, and how long."""

    url: str
    kinds: list[Kind]
    seconds: float

    def client(self, number: int, out: list[Measured], end: float) -> None:
        """One client: requests of random kinds, one after the other."""
        rng = random.Random(number)
        with httpx.Client(timeout=600) as client:
            while time.monotonic() < end:
                measured = ask(client, self.url, rng.choice(self.kinds), rng.randrange(2**31))
                out.append(measured)
                if measured.error:
                    time.sleep(1)


def resident(pid: int | None) -> float | None:
    """Memory of a process in MB."""
    if pid is None:
        return None
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 4) for p in PERCENTILES} if values else {}


def summary(measured: list[Measured], seconds: float) -> dict[str, Any]:
    """Percentiles of all requests, and of each kind."""
    good = [m for m in measured if not m.error]
    errors: dict[str, int] = {}
    for m in measured:
        if m.error:
            errors[m.error] = errors.get(m.error, 0) + 1
    of_kind = {
        name: {
            "requests": len(group),
            "first_token": percentiles([m.first for m in group if m.first is not None]),
            "seconds": percentiles([m.seconds for m in group]),
        }
        for name in sorted({m.kind for m in good})
        if (group := [m for m in good if m.kind == name])
    }
    return {
        "requests": len(good),
        "errors": errors,
        "tokens_per_second": round(sum(m.tokens for m in good) / seconds, 1),
        "tokens_per_second_of_a_request": percentiles([m.tokens / m.seconds for m in good if m.tokens]),
        "first_token": percentiles([m.first for m in good if m.first is not None]),
        "between_tokens": percentiles([gap for m in good for gap in m.gaps]),
        "kinds": of_kind,
    }


def run(load: Load, clients: int, pid: int | None) -> dict[str, Any]:
    """The summary of that many clients at a time."""
    measured, begin = list[Measured](), time.monotonic()
    end, memory = begin + load.seconds, list[float]()
    threads = [threading.Thread(target=load.client, args=(n, measured, end), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        if (used := resident(pid)) is not None:
            memory.append(round(used, 1))
    out = {"clients": clients, **summary(measured, time.monotonic() - begin)}
    return out | ({"memory_mb": memory[:: max(1, len(memory) // 60)]} if memory else {})


def lines(result: dict[str, Any]) -> Iterator[str]:
    """A result as text."""
    yield f"{result['clients']} clients: {result['tokens_per_second']} tokens/s, {result['requests']} requests"
    for name in ("first_token", "between_tokens", "tokens_per_second_of_a_request"):
        yield f"  {name.replace('_', ' '):32}" + "  ".join(f"{p} {v:9.4f}" for p, v in result[name].items())
    if memory := result.get("memory_mb"):
        yield f"  memory {memory[0]:.0f} → {memory[-1]:.0f} MB, median {statistics.median(memory):.0f}"
    for error, count in result["errors"].items():
        yield f"  {count} × {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--kinds", nargs="+", default=["text", "long", "picture", "sound", "draw", "json"])
    parser.add_argument("--pid", type=int, help="of the server, whose memory is recorded")
    parser.add_argument("--note", default="", help="recorded with the results: the machine, what else ran")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    a = parser.parse_args()
    name = httpx.get(f"{a.url}/v1beta/models").json()["models"][0]["name"]
    load = Load(f"{a.url}/v1beta/{name}:streamGenerateContent?alt=sse", kinds(a.kinds, a.tokens), a.seconds)
    results = []
    for clients in a.clients:
        results.append(run(load, clients, a.pid))
        print("\n".join(lines(results[-1])), flush=True)
    settings = {"model": name, "seconds": a.seconds, "note": a.note, "kinds": [asdict(k)["name"] for k in load.kinds]}
    a.out.write_text(json.dumps(settings | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
