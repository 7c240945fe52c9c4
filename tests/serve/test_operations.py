"""Operations: health, metrics, logs, and a server process that drains on SIGTERM."""

from __future__ import annotations

import io
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from alhena.content import Content, Text
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import _LocalJob
from alhena.serve.gemini.app import create_app, listen, make_server
from alhena.serve.gemini.server.settings import Settings
from alhena.serve.monitoring import logs
from alhena.testing.script import Script
from alhena.testing.server import make_app
from tests.serve.test_server import Endless, body
from tests.serve.waiting import wait_for

ROOT = Path(__file__).parent.parent.parent
# A server with scripted answers on the main thread, where signals arrive; with "busy" a thread of it does not end, as one that compiles.
SERVER = """
import sys
import threading
import time
from alhena.cli.interrupts import handle_signals
from alhena.serve.monitoring import logs
from alhena.serve.gemini.app import listen, make_server, run
from alhena.serve.gemini.server.settings import Settings
from alhena.testing.script import Script
from alhena.testing.server import make_app
logs.configure("json")
script = Script()
script.otherwise("one two three")
script.reply("one two three four five", when="slow", delay=0.6)
script.reply("one two three four five", when="endless", delay=6000)
with listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    server = make_server(make_app(None, script, Settings(drain_seconds=float(sys.argv[1]), any_model=True)))
    if sys.argv[2:] == ["busy"]:
        threading.Thread(target=time.sleep, args=(6000,), name="alhena-busy").start()
        handle_signals()
    run(server, listener, threading.Event())
print("ended")
"""


def value(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_metrics_of_the_slots_of_a_model(tiny_engine):
    """In use while an answer is generated, free after it."""
    client, batch = TestClient(create_app(tiny_engine, "tiny"), base_url="http://localhost"), tiny_engine.batch
    prompt = tiny_engine.encode([Content("user", (Text("x 12 y 34"),))])
    job = _LocalJob(prompt, Sampling(max_tokens=64), stride=1)

    def scrape(name: str) -> float:
        return value(client.get("/metrics").text, f"{name} ")

    assert (scrape("alhena_slots"), scrape("alhena_slots_in_use")) == (tiny_engine.slots, 0)
    batch.add(job)
    batch.step()
    assert scrape("alhena_slots_in_use") == 1
    job.cancelled = True
    batch.step()
    assert scrape("alhena_slots_in_use") == 0


def test_metrics_count_requests_and_tokens(gemini_server):
    def scrape() -> str:
        return httpx.get(f"{gemini_server.url}/metrics").text

    before = scrape()
    gemini_server.reply("one two three")
    assert httpx.post(f"{gemini_server.url}/v1/models/m:generateContent", json=body()).status_code == 200
    assert httpx.post(f"{gemini_server.url}/v1/models/m:generateContent", json={}).status_code == 400
    assert httpx.get(f"{gemini_server.url}/x{time.time()}:y").status_code == 404
    after = scrape()
    expected = {
        'alhena_requests_total{call="generateContent",code="200"}': 1,
        'alhena_requests_total{call="generateContent",code="400"}': 1,
        'alhena_requests_total{call="other",code="404"}': 1,
        "alhena_prompt_tokens_total": len("Hello"),
        "alhena_answer_tokens_total": len("one two three"),
        'alhena_answers_total{finish="stop"}': 1,
        "alhena_first_token_seconds_count": 1,
        "alhena_inter_token_seconds_count": 1,
    }
    assert {name: value(after, name) - value(before, name) for name in expected} == expected


def test_an_unexpected_error_is_counted_as_500(monkeypatch):
    async def fail(*_: object) -> None:
        raise RuntimeError("unexpected")

    app = make_app(None, Script())
    monkeypatch.setattr(app.state.calls, "read", fail)
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    assert client.post("/v1/models/m:generateContent", json=body()).status_code == 500
    text = app.state.calls.metrics.text().decode()
    assert value(text, 'alhena_requests_total{call="generateContent",code="500"}') == 1


class Process:
    """A real server process and its address."""

    def __init__(self, drain_seconds: float = 600, *flags: str) -> None:
        self.arguments = [str(drain_seconds), *flags]

    def __enter__(self) -> Process:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *self.arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, text: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/models/m:generateContent", json=body(text=text), timeout=60)

    def ask_behind(self, text: str) -> tuple[threading.Thread, list[httpx.Response | Exception]]:
        out: list[httpx.Response | Exception] = []

        def work() -> None:
            try:
                out.append(self.ask(text))
            except httpx.HTTPError as error:
                out.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: "alhena_running_requests 1.0" in httpx.get(f"{self.url}/metrics").text)
        return thread, out

    def drain(self) -> httpx.Response:
        """Sends SIGTERM; returns what /healthz then says."""
        self.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{self.url}/healthz").status_code == 503)
        return httpx.get(f"{self.url}/healthz")


def test_sigterm_lets_running_requests_end_and_refuses_new_ones():
    with Process() as server:
        assert httpx.get(f"{server.url}/healthz").json()["status"] == "ready"
        thread, answers = server.ask_behind("slow SECRET")
        health = server.drain()
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = server.ask("another")
        assert (refused.status_code, refused.json()["error"]["status"]) == (503, "UNAVAILABLE")
        assert "retry-after" in refused.headers
        thread.join()
        assert answers[0].json()["candidates"][0]["content"]["parts"][0]["text"] == "one two three four five"
        out, err = server.process.communicate(timeout=60)
        assert (server.process.returncode, out) == (0, "ended\n")
    lines = [json.loads(line) for line in err.splitlines()]
    seen = [(line["call"], line["status"]) for line in lines if line["logger"] == "alhena.access"]
    assert sorted(pair for pair in seen if pair[0] == "generateContent") == [("generateContent", 200), ("generateContent", 503)]  # fmt: skip
    assert {("healthz", 200), ("healthz", 503)} <= set(seen)
    assert "SECRET" not in err


@pytest.mark.parametrize(("drain_seconds", "signals"), [(0.1, 1), (600, 2)])
def test_sigterm_ends_at_a_bound_and_a_second_one_sooner(drain_seconds, signals):
    with Process(drain_seconds) as server:
        thread, answers = server.ask_behind("endless")
        if signals == 2:
            server.drain()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) is not None
        thread.join()
        assert not isinstance(answers[0], httpx.Response) or answers[0].status_code != 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_thread_that_still_runs_changes_no_code(number, code):
    """A service manager takes a code other than 0 after SIGTERM for a failure."""
    with Process(600, "busy") as server:
        assert server.ask("Hello").status_code == 200
        server.process.send_signal(number)
        assert server.process.wait(60) == code


@pytest.mark.parametrize("contents", [False, True])
def test_contents_are_logged_only_when_asked_for(tiny_engine, contents, monkeypatch):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    monkeypatch.setattr(logs.access, "handlers", [handler])
    monkeypatch.setattr(logs.access, "propagate", False)
    monkeypatch.setattr(logs.access, "level", logging.INFO)
    with listen("127.0.0.1", 0) as listener:
        server = make_server(create_app(Endless(tiny_engine), "tiny", Settings(log_contents=contents)), "error")
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models/tiny:generateContent?key=PASSWORD"
        assert httpx.post(url, json=body(text="SECRET")).status_code == 200
        server.should_exit = True
        thread.join(20)
    line = json.loads(stream.getvalue())
    assert ("SECRET" in stream.getvalue()) == contents and "PASSWORD" not in stream.getvalue()
    assert (line["call"], line["status"], line["path"]) == ("generateContent", 200, "/v1/models/tiny:generateContent")
