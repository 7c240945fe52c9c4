"""Time from the start of a command to its first token, with a cold and a warm compilation cache, and memory of a loaded model.

    python benchmarks/bench_start.py --out benchmarks/results/start.json [--folder MODEL] [--rounds 3]

`alhena chat --ask` until the first byte of the answer; `alhena serve` until /healthz answers, and until the first token of a stream
that is requested then. Cold: the compilation cache is empty; warm: it is that of the start before. Medians of the rounds.
Memory is what /proc/PID/smaps_rollup says after a first answer: private pages are of this process alone, mapped weights are not.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from alhena.cli.arguments import PACKAGED
from alhena.files import write_json

QUESTION = "What is 2 + 3?"
BODY = b'{"contents":[{"parts":[{"text":"What is 2 + 3?"}]}],"generationConfig":{"maxOutputTokens":8}}'
START_SECONDS = 300


def chat_seconds(folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds until the first byte of an answer, and until the process has ended."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "alhena.cli", "chat", str(folder), "--ask", QUESTION]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        first = time.perf_counter() - begin
        process.stdout.read()
    return {"chat": first, "chat_end": time.perf_counter() - begin}


def _opened(url: str, body: bytes | None, end: float) -> bytes:
    """The first bytes of a response, as soon as the server answers."""
    while True:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, {"Content-Type": "application/json"})
            ) as response:
                return bytes(response.read(16))
        except OSError:
            if time.perf_counter() > end:
                raise
            time.sleep(0.01)


def serve_seconds(folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds until /healthz answers, and until the first bytes of a streamed answer; memory after it, in bytes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = time.perf_counter()
    command = [sys.executable, "-m", "alhena.cli", "serve", str(folder), "--port", str(port), "--any-model"]
    command += ["--state", str(Path(environment["XDG_CACHE_HOME"]) / "state")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        end = begin + START_SECONDS
        _opened(f"http://127.0.0.1:{port}/healthz", None, end)
        ready = time.perf_counter() - begin
        _opened(f"http://127.0.0.1:{port}/v1beta/models/any:streamGenerateContent?alt=sse", BODY, end)
        first = time.perf_counter() - begin
        memory = memory_of(process.pid)
        process.terminate()
    return {"serve_ready": ready, "serve": first, **memory}


def memory_of(pid: int) -> dict[str, float]:
    """Bytes of a process: resident, private and written to, and of the mapped file of the weights."""
    fields = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {name.rstrip(":"): 1024 * int(size) for name, size, *_ in fields}
    return {
        "resident": sizes["Rss"],
        "private_dirty": sizes["Private_Dirty"],
        "weights": _mapped(pid, "weights.safetensors"),
    }


def _mapped(pid: int, name: str) -> int:
    """Resident bytes of the mappings of a file."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            inside = bool(rest) and rest[-1].endswith(name)
        elif inside and first == "Rss:":
            total += 1024 * int(rest[0])
    return total


def measure(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds, each with a cache of its own."""
    out: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        for kind in (chat_seconds, serve_seconds):
            with tempfile.TemporaryDirectory() as cache:
                environment = os.environ | {"XDG_CACHE_HOME": cache}
                for state in ("cold", "warm"):
                    out[state].append(kind(folder, environment))
                    print(state, out[state][-1], flush=True)
    names = {state: sorted({name for one in values for name in one}) for state, values in out.items()}
    return {
        state: {name: statistics.median(one[name] for one in values if name in one) for name in names[state]}
        for state, values in out.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=PACKAGED)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = measure(arguments.folder, arguments.rounds)
    bytes_of_file = (arguments.folder / "weights.safetensors").stat().st_size
    write_json(arguments.out, {"model": arguments.folder.name, "file_bytes": bytes_of_file, **result})


if __name__ == "__main__":
    main()
