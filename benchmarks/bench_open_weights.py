"""A real GGUF file here and in llama.cpp: the same tokens, log-likelihoods, greedy continuations and perplexity, and the speed of both.

    python benchmarks/bench_open_weights.py --gguf FILE --data FOLDER --llama PYTHON

FOLDER has the texts (a book, sentences in 112 languages, Python code); PYTHON is an interpreter that has ``xllamacpp``.

llama.cpp multiplies quantized weights by activations that it rounds to 8 bits; we multiply dequantized weights by float32. So it runs
twice: on the file, and on a copy of it with the dequantized values in float32, where only its float16 cache rounds. Engines are
processes that wait while another works; rounds of the speed reverse the order. Writes benchmarks/results/open_weights.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

BOS = 2
CONTEXT = 1024


@dataclass(frozen=True)
class Bench:
    gguf: Path = Path("model.gguf")  # the model, a Gemma 3
    data: Path = Path("text")  # se_moby-dick.txt, tatoeba_112langs.tar.xz, thealgorithms_py.tar.xz
    llama: Path | None = None  # a Python interpreter that has xllamacpp
    lines: int = 6000  # texts whose tokens are compared
    windows: int = 16  # of the book, for perplexity
    length: int = 512  # tokens of a window
    prompts: int = 20  # greedy continuations
    new_tokens: int = 32
    rounds: int = 5  # of the speed; 0: not measured
    out: Path = Path(__file__).parent / "results" / "open_weights.json"
    worker: Annotated[str, "internal: engine and file of one worker"] = ""


class LlamaEngine:
    """llama.cpp, by its C functions."""

    def __init__(self, path: Path) -> None:
        from llama_cpp import LlamaCpp

        self._model = LlamaCpp(path, CONTEXT)
        self.name = self._model.version

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [list(self._model.tokenize(text)) for text in texts]

    def score(self, tokens: list[int]) -> list[float]:
        """Log-probabilities of all tokens but the first."""
        self._model.clear()
        logits = self._model.feed(tokens[:-1], 0, every=True)
        return [
            float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))
            for row, token in zip(logits, tokens[1:], strict=True)
        ]

    def greedy(self, tokens: list[int], count: int) -> dict[str, list[float]]:
        """The most probable tokens, and by how much the logit of each is above the second."""
        self._model.clear()
        logits, out, gaps = self._model.feed(tokens, 0), [], []
        for i in range(count):
            best = int(logits.argmax())
            out.append(best)
            gaps.append(float(logits[best] - np.partition(logits, -2)[-2]))
            logits = self._model.feed([best], len(tokens) + i)
        return {"tokens": out, "gaps": gaps}

    def speed(self, tokens: list[int], count: int) -> list[float]:
        """Seconds of a prompt, and of new tokens after it, on all cores."""
        self._model.clear()
        self._model.use_threads(os.cpu_count() or 1)
        times = [time.perf_counter()]
        logits = self._model.feed(tokens, 0)
        times.append(time.perf_counter())
        for i in range(count):
            logits = self._model.feed([int(logits.argmax())], len(tokens) + i)
        times.append(time.perf_counter())
        return np.diff(times).tolist()


class AlhenaEngine:
    """Ours, with weights and matmul operands of one dtype."""

    def __init__(self, path: Path, dtype: str) -> None:
        from dataclasses import replace

        import jax
        import jax.numpy as jnp

        from alhena.model import model
        from alhena.model.attention import paged_cache
        from alhena.model.families import open_weights
        from alhena.model.families.gguf import file, reader, tokenizer
        from alhena.tokens.text.hf_tokenizer import HfTokenizer

        self.name = f"alhena, {dtype}"
        self._tokenizer = HfTokenizer.from_bytes(tokenizer.tokenizer_json(file.open_gguf(path)))
        params, c = open_weights.read_all(reader.open_file(path))
        self._params = jax.tree.map(lambda w: w.astype(dtype) if w.ndim > 1 and w.shape[-2] > 64 else w, params)
        c = replace(c, compute_dtype=dtype)

        def score(params: Any, batch: Any) -> Any:
            hidden = model.forward(params, c, batch)[0, :-1]
            blocks = hidden.reshape(-1, 73 if len(hidden) % 73 == 0 else 1, hidden.shape[-1])
            targets = batch.tokens[0, 1:].reshape(blocks.shape[:2])

            def block(x: Any) -> Any:
                logits = model.logits(params, c, x[0]).astype(jnp.float32)
                return jnp.take_along_axis(jax.nn.log_softmax(logits), x[1][:, None], 1)[:, 0]

            return jax.lax.map(block, (blocks, targets)).reshape(-1)

        kinds, pages = len(paged_cache.kinds(c.decoder)), CONTEXT // paged_cache.PAGE

        def extend(params: Any, tokens: Any, start: Any, cache: Any) -> Any:
            positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
            table = jnp.arange(pages, dtype=jnp.int32)[None]
            at = paged_cache.Tokens((table,) * kinds, positions, positions, jnp.ones(tokens.shape, bool))
            hidden, cache = model.extend(params, c, tokens, at, cache)
            return hidden[:, -1], cache

        def continued(params: Any, start: Any, count: int) -> Any:
            def step(state: Any, _: Any) -> Any:
                hidden, cache, position = state
                top, ids = jax.lax.top_k(model.logits(params, c, hidden).astype(jnp.float32), 2)
                hidden, cache = extend(params, ids[:, :1], position, cache)
                return (hidden, cache, position + 1), (ids[0, 0], top[0, 0] - top[0, 1])

            return jax.lax.scan(step, start, length=count)[1]

        self._empty = lambda: paged_cache.empty(c.decoder, (pages,) * kinds, dtype)
        self._score, self._extend = jax.jit(score), jax.jit(extend, donate_argnums=3)
        self._continued = jax.jit(continued, static_argnums=2)

    def _prefill(self, tokens: list[int]) -> Any:
        """Reads a prompt in the pieces in which the server does: hidden state, cache and number of its tokens."""
        from alhena.model.attention.paged_cache import PAGE

        cache = self._empty()
        for start in range(0, len(tokens), PAGE):
            piece = np.array([tokens[start : start + PAGE]], np.int32)
            hidden, cache = self._extend(self._params, piece, start, cache)
        return hidden, cache, len(tokens)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text) for text in texts]

    def score(self, tokens: list[int]) -> list[float]:
        return np.asarray(self._score(self._params, _batch(tokens))).tolist()

    def greedy(self, tokens: list[int], count: int) -> dict[str, list[float]]:
        ids, gaps = self._continued(self._params, self._prefill(tokens), count)
        return {"tokens": np.asarray(ids).tolist(), "gaps": np.asarray(gaps).tolist()}

    def speed(self, tokens: list[int], count: int) -> list[float]:
        times = [time.perf_counter()]
        start = self._prefill(tokens)
        start[0].block_until_ready()
        times.append(time.perf_counter())
        np.asarray(self._continued(self._params, start, count)[0])
        times.append(time.perf_counter())
        return np.diff(times).tolist()


def _batch(tokens: Sequence[int]) -> Any:
    from alhena.batch import Batch

    ids = np.asarray(tokens, np.int32)[None]
    none, zeros = np.zeros((1, 0), np.int32), np.zeros_like(ids)
    return Batch(
        tokens=ids, targets=zeros, weights=np.zeros(ids.shape, np.float32), modality=zeros, segments=zeros + 1,
        positions=np.arange(ids.size, dtype=np.int32)[None], patches=np.zeros((1, 0, 192), np.uint8),
        patch_positions=np.zeros((1, 0, 2), np.int32), patch_images=none, frames=np.zeros((1, 0, 128, 128), np.float32),
        frame_lengths=none,
    )  # fmt: skip


def work(name: str) -> None:
    """A worker: each line of standard input is a method of its engine and the arguments; prints the result."""
    engine, path = name.split(",", 1)
    made = LlamaEngine(Path(path)) if engine == "llama" else AlhenaEngine(Path(path), engine)
    print(json.dumps(made.name), flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(made, method)(*arguments)), flush=True)


class Worker:
    """A process with one engine."""

    def __init__(self, python: Path, name: str) -> None:
        command = [str(python), __file__, "--worker", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self._read()

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended without an answer (its error is above)")
        return json.loads(line)

    def __call__(self, method: str, *arguments: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def float32_copy(path: Path, out: Path) -> None:
    """The same model with all values dequantized to float32."""
    import gguf

    from alhena.model.families.gguf.file import open_gguf

    reader, file = gguf.GGUFReader(path), open_gguf(path)
    writer = gguf.GGUFWriter(out, file.architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            of = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], of)
    for name, tensor in file.tensors.items():
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), 4 * int(np.prod(tensor.shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in file.tensors.values():
        writer.write_tensor_data(tensor.map().astype(np.float32))
    writer.close()


def texts(data: Path, count: int) -> Iterator[str]:
    """Sentences in 112 languages, files of Python code, paragraphs of a book."""
    rng = np.random.default_rng(0)
    with tarfile.open(data / "tatoeba_112langs.tar.xz") as archive:
        members = [m for m in archive if m.isfile() and not m.name.endswith((".eng", ".md"))]
        for member in members:
            lines = archive.extractfile(member).read().decode(errors="ignore").splitlines()
            yield from (lines[i] for i in rng.permutation(len(lines))[: count // len(members)])
    with tarfile.open(data / "thealgorithms_py.tar.xz") as archive:
        members = [m for m in archive if m.name.endswith(".py")]
        yield from (archive.extractfile(m).read().decode(errors="ignore") for m in members[:: len(members) // 100 + 1])
    yield from (data / "se_moby-dick.txt").read_text().split("\n\n")[:500]


def compare_tokens(bench: Bench, ours: Worker, theirs: Worker) -> dict[str, Any]:
    given = [text for text in texts(bench.data, bench.lines) if text]
    a, b = ours("tokenize", given), theirs("tokenize", given)
    different = [text for text, x, y in zip(given, a, b, strict=True) if x != y]
    return {"texts": len(given), "tokens": sum(map(len, a)), "different": len(different), "examples": different[:3]}


def compare_scores(ours: list[list[float]], theirs: list[list[float]]) -> dict[str, Any]:
    a, b = np.array(ours), np.array(theirs)
    perplexity = [float(np.exp(-x.mean())) for x in (a, b)]
    return {
        "perplexity_ours": round(perplexity[0], 4), "perplexity_theirs": round(perplexity[1], 4),
        "ratio": round(perplexity[0] / perplexity[1], 5), "mean_difference": round(float(np.abs(a - b).mean()), 5),
        "largest_difference": round(float(np.abs(a - b).max()), 4),
        "correlation": round(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), 6),
    }  # fmt: skip


def compare_greedy(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """How many continuations are equal, and for the others the lead of llama.cpp's token where they part."""
    leads = []
    for a, b in zip(ours, theirs, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a["tokens"], b["tokens"], strict=True)) if x != y), None)
        if at is not None:
            leads.append({"at": at, "lead_ours": round(a["gaps"][at], 3), "lead_theirs": round(b["gaps"][at], 3)})
    return {"continuations": len(ours), "equal": len(ours) - len(leads), "parted": leads}


def measure_speed(bench: Bench, workers: dict[str, Worker], prompt: list[int]) -> dict[str, Any]:
    times: dict[str, list[list[float]]] = {name: [] for name in workers}
    for round_ in range(-1, bench.rounds):
        for name in sorted(workers, reverse=round_ % 2 == 1):
            seconds = workers[name]("speed", prompt, 4 * bench.new_tokens)
            if round_ >= 0:
                times[name].append(seconds)
    out = {}
    for name, measured in times.items():
        prefill, decode = np.median(measured, 0)
        rates = {"prefill": round(len(prompt) / prefill, 1), "decode": round(4 * bench.new_tokens / decode, 1)}
        out[name] = {**rates, "seconds": np.round(measured, 3).tolist()}
    return out


def windows(book: list[int], count: int, length: int) -> list[list[int]]:
    """Passages of the book, evenly spaced."""
    starts = np.linspace(1000, len(book) - 1000, count, dtype=int).tolist()
    return [[BOS, *book[start : start + length - 1]] for start in starts]


def compare_models(bench: Bench, ours: Worker, theirs: dict[str, Worker], book: list[int]) -> dict[str, Any]:
    """Scores and greedy continuations beside each of the peers."""
    passages, prompts = (windows(book, n, size) for n, size in ((bench.windows, bench.length), (bench.prompts, 48)))
    scores = [ours("score", passage) for passage in passages]
    continuations = [ours("greedy", prompt, bench.new_tokens) for prompt in prompts]
    out = {}
    for name, worker in theirs.items():
        out[name] = compare_scores(scores, [worker("score", passage) for passage in passages])
        print(name, out[name], flush=True)
        greedy = [worker("greedy", prompt, bench.new_tokens) for prompt in prompts]
        out[name] |= {"greedy": compare_greedy(continuations, greedy)}
        print(name, out[name], flush=True)
    return out


def main(bench: Bench) -> None:
    here, there = Path(sys.executable), bench.llama or Path(sys.executable)
    ours, file = Worker(here, f"float32,{bench.gguf}"), Worker(there, f"llama,{bench.gguf}")
    result: dict[str, Any] = {"model": bench.gguf.name, "peer": file.name, "machine": platform.machine()}
    result |= {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "tokens": compare_tokens(bench, ours, file),
    }
    print(result, flush=True)
    (book,) = ours("tokenize", [(bench.data / "se_moby-dick.txt").read_text()])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "float32.gguf"
        float32_copy(bench.gguf, copy)
        exact = Worker(there, f"llama,{copy}")
        result |= compare_models(bench, ours, {"beside_the_file": file, "beside_a_float32_copy": exact}, book)
        exact.close()
    if bench.rounds:
        workers = {"alhena float32": ours, "llama.cpp": file, "alhena bfloat16": Worker(here, f"bfloat16,{bench.gguf}")}
        rates = measure_speed(bench, workers, windows(book, 1, bench.length)[0])
        result["tokens_per_second"] = {"load": round(os.getloadavg()[0], 1), **rates}
    bench.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[sys.argv.index("--worker") + 1])
    else:
        import tyro

        main(tyro.cli(Bench, description=__doc__))
