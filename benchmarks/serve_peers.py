"""One model behind several servers: tokens/s of Alhena, of llama.cpp's server and of transformers' ``generate``, at several concurrencies.

    alhena export models/gemma --out hf
    python benchmarks/serve_peers.py --model models/gemma --gguf 270m.gguf --hf hf --python PYTHON --quantized models/gemma-q4

PYTHON: an interpreter that has torch, transformers and xllamacpp. All stay loaded; a round asks one after the other, at every
concurrency. Each client sends one prompt and gets up to 64 greedy tokens; transformers takes all prompts as one batch, which is the best
case of a server without continuous batching. Reported are medians over rounds. Writes benchmarks/results/serve_peers.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import tyro

RESULTS = Path(__file__).parent / "results" / "serve_peers.json"
PORTS = {"alhena": 8461, "llama.cpp": 8462, "alhena, 4 bits": 8463}
TOPICS = (
    "the sea|winter in Oslo|a small garden|how bread is made|old maps|the first train|a quiet library|rivers of Europe"
)
START_SECONDS = 300
# Takes a number of clients; tokens and seconds.
Ask = Callable[[int], tuple[int, float]]


@dataclass(frozen=True)
class Bench:
    model: Path  # an imported model
    gguf: Path  # the same model for llama.cpp
    hf: Path  # the same model for transformers
    python: Path  # an interpreter with torch, transformers and xllamacpp
    quantized: Path | None = None  # the same model in 4 bits
    clients: tuple[int, ...] = (1, 4, 16)
    tokens: int = 64  # of each answer
    rounds: int = 3
    out: Path = RESULTS
    worker: Annotated[str, tyro.conf.arg(help="internal: llama.cpp or transformers")] = ""


def prompts(count: int, number: int) -> list[str]:
    """Prompts of one round; no two rounds have the same, so that no cache of prompts helps."""
    topics = TOPICS.split("|")
    return [f"Text {number}.{i}. Write a long story about {topics[i % len(topics)]}." for i in range(count)]


def wait(url: str, process: subprocess.Popen[Any]) -> None:
    """Waits until a server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{url}: the server ended with {process.returncode}")
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{url}: no answer in {START_SECONDS} seconds")


def concurrent(one: Callable[[str], int]) -> Ask:
    """Asks as many clients at a time as there are prompts."""
    number = iter(range(10**6))

    def ask(count: int) -> tuple[int, float]:
        texts = prompts(count, next(number))
        with ThreadPoolExecutor(count) as pool:
            start = time.perf_counter()
            tokens = sum(pool.map(one, texts))
            return tokens, time.perf_counter() - start

    return ask


def ask_alhena(tokens: int, engine: str = "alhena") -> Ask:
    url = f"http://127.0.0.1:{PORTS[engine]}/v1beta/models"
    name = httpx.get(url).json()["models"][0]["name"].removeprefix("models/")

    def one(text: str) -> int:
        config = {"temperature": 0, "maxOutputTokens": tokens}
        body = {"contents": [{"parts": [{"text": text}]}], "generationConfig": config}
        response = httpx.post(f"{url}/{name}:generateContent", json=body, timeout=None).raise_for_status()
        return int(response.json()["usageMetadata"]["candidatesTokenCount"])

    return concurrent(one)


def ask_llama(tokens: int) -> Ask:
    def one(text: str) -> int:
        body = {"prompt": text, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        url = f"http://127.0.0.1:{PORTS['llama.cpp']}/completion"
        return int(httpx.post(url, json=body, timeout=None).raise_for_status().json()["tokens_predicted"])

    return concurrent(one)


def ask_worker(process: subprocess.Popen[str]) -> Ask:
    assert process.stdin and process.stdout
    write, read = process.stdin, process.stdout

    def ask(count: int) -> tuple[int, float]:
        print(count, file=write, flush=True)
        found = json.loads(read.readline())
        return int(found["tokens"]), float(found["seconds"])

    return ask


def serve_llama(b: Bench) -> None:
    """llama.cpp's server, with a slot for each client; its defaults otherwise."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path, p.n_parallel, p.n_ctx, p.port = str(b.gguf), max(b.clients), 512 * max(b.clients), PORTS["llama.cpp"]
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = os.cpu_count() or 2
    server = xllamacpp.Server(p)
    print(server.listening_address, flush=True)
    threading.Event().wait()


def generate_with_transformers(b: Bench) -> None:
    """Reads numbers of prompts from standard input; generates with all of them at once."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(b.hf, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(b.hf, dtype=torch.bfloat16).eval()
    for number, line in enumerate(sys.stdin):
        inputs = tokenizer(prompts(int(line), number), return_tensors="pt", padding=True)
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=b.tokens, min_new_tokens=b.tokens, do_sample=False)
        seconds = time.perf_counter() - start
        print(json.dumps({"tokens": b.tokens * len(out), "seconds": seconds}), flush=True)


def measure(b: Bench, engines: dict[str, Ask]) -> list[dict[str, Any]]:
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(b.rounds + 1):
        for count in b.clients:
            for name, ask in engines.items():
                tokens, seconds = ask(count)
                print(f"{name:14} {count:3} clients {tokens / seconds:8.1f} tokens/s", flush=True)
                # The first round warms up.
                if number:
                    found.setdefault((name, count), []).append(tokens / seconds)
    return [
        {"engine": name, "clients": count, "tokens_per_second": round(statistics.median(rates), 1), "rounds": rates}
        for (name, count), rates in found.items()
    ]


def command(b: Bench, worker: str) -> Sequence[str]:
    flags = {"--model": b.model, "--gguf": b.gguf, "--hf": b.hf, "--python": b.python, "--tokens": b.tokens}
    named = [str(part) for pair in flags.items() for part in pair]
    return [str(b.python), __file__, *named, "--clients", *map(str, b.clients), "--worker", worker]


def served(model: Path, port: int, state: Path) -> subprocess.Popen[Any]:
    """A server of ours, ready; `state` is a folder of its own."""
    command = [sys.executable, "-m", "alhena.cli", "serve", str(model), "--port", str(port), "--state", str(state)]
    process = subprocess.Popen(command)
    wait(f"http://127.0.0.1:{port}/healthz", process)
    return process


def run(b: Bench) -> None:
    """Starts the engines, measures them, and writes the results."""
    llama = subprocess.Popen(command(b, "llama.cpp"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    torch = subprocess.Popen(command(b, "transformers"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes: list[subprocess.Popen[Any]] = [llama, torch]
    states = tempfile.TemporaryDirectory()
    try:
        models = {"alhena": b.model} | ({"alhena, 4 bits": b.quantized} if b.quantized else {})
        engines: dict[str, Ask] = {}
        for name, model in models.items():
            processes.append(served(model, PORTS[name], Path(states.name) / str(PORTS[name])))
            engines[name] = ask_alhena(b.tokens, name)
        wait(f"http://127.0.0.1:{PORTS['llama.cpp']}/health", llama)
        engines |= {"llama.cpp": ask_llama(b.tokens), "transformers": ask_worker(torch)}
        rows = measure(b, engines)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        states.cleanup()
    machine = {"cores": os.cpu_count(), "machine": platform.processor() or platform.machine(), "load": os.getloadavg()}
    b.out.write_text(json.dumps({"tokens": b.tokens, **machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    bench = tyro.cli(Bench, description=__doc__)
    {"": run, "llama.cpp": serve_llama, "transformers": generate_with_transformers}[bench.worker](bench)
