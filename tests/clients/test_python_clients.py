"""Real clients from PyPI against a scripted server, each in a process of its own.

They need not be in this environment: CLIENT_PYTHON names the interpreters (separated by colons) of environments that have them.
A client that no interpreter has is skipped, with its name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alhena.testing import Script, ToolCall, gemini_server

HERE = Path(__file__).parent
INTERPRETERS = [sys.executable, *filter(None, os.environ.get("CLIENT_PYTHON", "").split(":"))]
# The script of a client and the module that it needs.
CLIENTS = {
    "genai_client.py": "google.genai",
    "openai_client.py": "openai",
    "langchain_client.py": "langchain_google_genai",
    "litellm_client.py": "litellm",
}


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with gemini_server() as script:
        script.reply("It is 7 degrees.", when=lambda request: b"degrees" in request.data)
        script.reply(ToolCall("get_weather", {"city": "Bern"}), when="weather")
        script.reply('{"name": "Bern", "people": 134000}', when="city")
        script.otherwise("Hello, friend.")
        yield script


def has(interpreter: str, module: str) -> bool:
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    return subprocess.run([interpreter, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_client_works_against_the_server(script, client, interpreter):
    if not has(interpreter, CLIENTS[client]):
        pytest.skip(f"{CLIENTS[client]} is not installed for {interpreter}; CLIENT_PYTHON can name one that has it")
    done = subprocess.run([interpreter, HERE / client, script.url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_schemathesis_finds_no_error_of_the_server(script, interpreter):
    """Generated bodies by the server's own description; the scripted server has no vectors."""
    if not has(interpreter, "schemathesis"):
        pytest.skip(f"schemathesis is not installed for {interpreter}; CLIENT_PYTHON can name one that has it")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    options = [
        "--checks",
        checks,
        "--max-examples",
        "15",
        "--phases",
        "fuzzing",
        "--generation-deterministic",
        "--no-color",
    ]
    command = [Path(interpreter).with_name("schemathesis"), "run", f"{script.url}/openapi.json", "--url", script.url]
    done = subprocess.run(
        [*command, *options, "--exclude-path-regex", "embed"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]
