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

from alhena.serve import logs
from alhena.serve.gemini.app import create_app, listen, make_server
from alhena.serve.gemini.settings import Settings
from alhena.testing.script import Script
from alhena.testing.server import make_app
from tests.serve.test_server import Endless, body

ROOT = Path(__file__).parent.parent.parent
# A server with scripted answers on the main thread, where signals arrive.
SERVER = """
from alhena.serve import logs
from alhena.serve.gemini.app import listen, make_server
from alhena.serve.gemini.settings import Settings
from alhena.testing.script import Script
from alhena.testing.server import make_app
logs.configure("json")
script = Script()
script.otherwise("one two three")
script.reply("one two three four five", when="slow", delay=0.2)
script.reply("one two three four five", when="endless", delay=60)
with listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    make_server(make_app(None, script, Settings(drain_seconds=3.0, any_model=True))).run([listener])
print("ended")
"""


def value(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


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

    def __enter__(self) -> Process:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
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
        time.sleep(0.4)
        return thread, out


def test_sigterm_lets_running_requests_end_and_refuses_new_ones():
    with Process() as server:
        assert httpx.get(f"{server.url}/healthz").json()["status"] == "ready"
        thread, answers = server.ask_behind("slow SECRET")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        health = httpx.get(f"{server.url}/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = server.ask("another")
        assert (refused.status_code, refused.json()["error"]["status"]) == (503, "UNAVAILABLE")
        assert "retry-after" in refused.headers
        thread.join(20)
        assert answers[0].json()["candidates"][0]["content"]["parts"][0]["text"] == "one two three four five"
        out, err = server.process.communicate(timeout=20)
        assert (server.process.returncode, out) == (0, "ended\n")
    lines = [json.loads(line) for line in err.splitlines()]
    seen = [(line["call"], line["status"]) for line in lines if line["logger"] == "alhena.access"]
    assert sorted(seen) == [("generateContent", 200), ("generateContent", 503), ("healthz", 200), ("healthz", 503)]
    assert "SECRET" not in err


def test_sigterm_ends_at_a_bound_and_a_second_one_sooner():
    with Process() as server:
        thread, answers = server.ask_behind("endless")
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        thread.join(20)
        assert server.process.wait(20) is not None
        assert time.monotonic() - began < 15
        assert not isinstance(answers[0], httpx.Response) or answers[0].status_code != 200


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
