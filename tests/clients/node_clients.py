"""Clients from npm against a scripted server: @google/genai, openai, Gemini CLI.

    npm install --prefix DIR @google/genai @google/gemini-cli openai
    python tests/clients/node_clients.py DIR          (or NODE_CLIENTS=DIR)

Without node or the packages it says so and ends with code 0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from alhena.testing import Script, ToolCall, gemini_server

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 180
WORD = "heliotrope"
# What Gemini CLI is told once, in its folder of settings.
SETTINGS = {"security": {"auth": {"selectedType": "gemini-api-key"}}, "privacy": {"usageStatisticsEnabled": False}}


def add_answers(script: Script, notes: Path) -> None:
    """The answers that all clients get."""
    script.reply("It is 7 degrees.", when=lambda request: b"degrees" in request.data)
    script.reply(f"The word is {WORD}.", when=lambda request: WORD.encode() in request.data)
    script.reply(ToolCall("read_file", {"file_path": str(notes)}), when="word in my notes")
    script.reply(ToolCall("get_weather", {"city": "Bern"}), when="weather")
    script.otherwise("Hello, friend.")


def run(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """The output of a command. Raises RuntimeError with its errors when it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment and {**environment}, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def check_scripts(script: Script, modules: Path, folder: Path) -> None:
    """Runs the scripts of @google/genai and openai in a folder from where node finds the packages."""
    (folder / "node_modules").symlink_to(modules)
    for name in ("genai.mjs", "openai.mjs"):
        shutil.copy(HERE / name, folder / name)
        run(["node", name, script.url], folder)
        print(f"{name}: passed", flush=True)


def check_command_line(script: Script, modules: Path, home: Path) -> None:
    """Gemini CLI: a prompt, a prompt for which it calls its tool that reads a file, a streamed session."""
    (home / ".gemini").mkdir()
    (home / ".gemini" / "settings.json").write_text(json.dumps(SETTINGS))
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = {**kept, **script.environment, "HOME": str(home)}
    command = [str(modules / ".bin" / "gemini"), "--skip-trust", "--model", "scripted"]
    assert run([*command, "-p", "Say hello."], home, environment).strip() == "Hello, friend."
    assert run([*command, "-p", "What is the word in my notes?"], home, environment).strip() == f"The word is {WORD}."
    results = [request for request in script.requests if "read_file" in request.tool_results]
    assert WORD in json.dumps(results[0].tool_results["read_file"]), "the tool has read the file"
    lines = run([*command, "-p", "Say hello.", "--output-format", "stream-json"], home, environment).splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    streamed = [event["content"] for event in events if event.get("role") == "assistant"]
    assert "".join(streamed) == "Hello, friend.", streamed
    assert len(streamed) > 1, "the answer came in one event"
    assert events[-1]["status"] == "success"
    print("Gemini CLI: passed", flush=True)


def missing(modules: Path) -> str:
    """Why the clients cannot run; empty when they can."""
    if shutil.which("node") is None:
        return "node is not installed"
    needed = ("@google/genai", "openai", ".bin/gemini")
    absent = [name for name in needed if not (modules / name).exists()]
    return f"{modules} lacks {', '.join(absent)}" if absent else ""


def main() -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("NODE_CLIENTS", ".")
    modules = Path(where).resolve() / "node_modules"
    if reason := missing(modules):
        print(f"skipped: {reason} (npm install --prefix DIR @google/genai @google/gemini-cli openai)")
        return
    with tempfile.TemporaryDirectory() as temporary, gemini_server() as script:
        folder = Path(temporary).resolve()
        (folder / "notes.txt").write_text(f"The word is {WORD}.\n")
        add_answers(script, folder / "notes.txt")
        check_scripts(script, modules, folder)
        (folder / "node_modules").unlink()
        check_command_line(script, modules, folder)


if __name__ == "__main__":
    main()
