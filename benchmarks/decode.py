"""Decoding and prefill of decoders with random 4-bit weights, beside llama.cpp with the very same weights as Q4_0.

    python benchmarks/decode.py --python PYTHON                        PYTHON: an interpreter that has xllamacpp
    python benchmarks/decode.py --python PYTHON --models 30M --rounds 2

Each engine is a process of its own, loaded once. In every round they take turns; reported are medians. Ours are the programs of the server
(alhena/serve/decoding/slots.py): a prompt is read in chunks of 128 tokens, then 64 tokens of each sequence are generated greedily, with all
logits computed. llama.cpp evaluates batches of as many tokens, its logits unused. The bandwidth is that of two threads that read 512 MiB
of memory in large pages; a model that is smaller than the cache may exceed it.
Writes benchmarks/results/decode.json: a list of {model, batch, ours, llama_cpp, bandwidth_share}, in tokens/s.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

RESULTS = Path(__file__).parent / "results" / "decode.json"
# Width, layers, heads, size of a head, hidden units, vocabulary; one head of keys and values.
SHAPES = {
    "30M": (384, 8, 6, 64, 1536, 32_768),
    "300M": (1024, 18, 8, 128, 4096, 32_768),
    "1B": (1152, 26, 4, 256, 6912, 262_144),
    "E2B": (1536, 35, 8, 256, 6144, 262_144),
}
PROMPT, PREFILL, NEW = 128, 512, 64
# Tokens of each sequence that warm up.
WARM = 16
SLOTS = 16
MATRICES = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
# Takes "prefill" or a batch size, and the number of tokens of each sequence; seconds.
Ask = Callable[[str, int], float]


@dataclass(frozen=True)
class Bench:
    python: Path  # an interpreter with xllamacpp
    models: tuple[str, ...] = tuple(SHAPES)
    batches: tuple[int, ...] = (1, 16)
    rounds: int = 5
    threads: int = 2  # of llama.cpp
    out: Path = RESULTS
    worker: Annotated[str, tyro.conf.arg(help="internal: alhena or llama.cpp")] = ""
    gguf: Annotated[Path, tyro.conf.arg(help="internal")] = Path()


def answer(runs: Ask) -> None:
    """A worker: for each line that it reads it prints the seconds of that run."""
    for line in sys.stdin:
        what, tokens = line.split()
        print(runs(what, int(tokens)), flush=True)


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def config_of(name: str) -> Any:
    from alhena.model import config

    width, layers, heads, head_dim, hidden, vocabulary = SHAPES[name]
    decoder = config.Decoder(width=width, layers=layers, heads=heads, head_dim=head_dim, hidden=hidden, kv_heads=1)
    return config.Model(vocabulary, -1, -1, decoder, None, None, compute_dtype="bfloat16")


def random_params(c: Any) -> Any:
    """Random 4-bit matrices, and norms of zeros."""
    import jax
    import jax.numpy as jnp

    from alhena.model import model
    from alhena.model.quantized.layout import Int4, packed_shapes

    random = np.random.default_rng(0)

    def weight(path: Any, shape: Any) -> Any:
        name = path[-1].name
        if name not in (*MATRICES, "embedding"):
            return jnp.zeros(shape.shape, jnp.float32)
        transposed = name == "embedding"
        *layers, inputs, outputs = shape.shape[::-1] if transposed else shape.shape
        packed, scales = packed_shapes(4, inputs, outputs)
        values = random.integers(0, 256, (*layers, *packed), np.uint8)
        # Values between -8 and 7 times the scale: matrices that keep the size of their inputs.
        size = np.float16(0.2 * inputs**-0.5)
        return Int4(jnp.asarray(values), jnp.full((*layers, *scales), size, jnp.float16), outputs, transposed)

    shapes = jax.eval_shape(lambda key: model.init(key, c), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(weight, shapes)


def write_gguf(params: Any, c: Any, path: Path) -> None:
    """The same weights for llama.cpp."""
    import gguf

    from alhena.model.quantized.layout import to_gguf_blocks

    d, writer = c.decoder, gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(8192)
    writer.add_embedding_length(d.width)
    writer.add_block_count(d.layers)
    writer.add_feed_forward_length(d.hidden)
    writer.add_head_count(d.heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(d.head_dim)
    writer.add_value_length(d.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(d.rope_base)
    writer.add_sliding_window(8192)
    writer.add_vocab_size(c.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    q4 = gguf.GGMLQuantizationType.Q4_0

    def add(name: str, blocks: np.ndarray) -> None:
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(blocks).reshape(len(blocks), -1), raw_dtype=q4)

    add("token_embd", to_gguf_blocks(params.embedding))
    writer.add_tensor("output_norm.weight", np.ones(d.width, np.float32))
    stacks = {name: to_gguf_blocks(getattr(params.layers, ours)) for ours, name in MATRICES.items()}
    norms = {"attn_norm": d.width, "post_attention_norm": d.width, "ffn_norm": d.width, "post_ffw_norm": d.width}
    for i in range(d.layers):
        for name, blocks in stacks.items():
            add(f"blk.{i}.{name}", blocks[i])
        for name, size in (norms | {"attn_q_norm": d.head_dim, "attn_k_norm": d.head_dim}).items():
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Programs:
    """The programs of the server, and the slots that they work on."""

    def __init__(self, params: Any, c: Any) -> None:
        from alhena.model.attention import paged_cache
        from alhena.serve.decoding import slots

        self.params, self.c, self.kinds = params, c, len(paged_cache.kinds(c.decoder))
        pages = (PREFILL + NEW) // paged_cache.PAGE + 1
        self.state, self.cache = slots.empty(c, SLOTS, (SLOTS * pages,) * self.kinds, c.compute_dtype)
        self.table = np.arange(SLOTS * pages, dtype=np.int32).reshape(SLOTS, pages)
        # The hidden states after prompts that have been read: their pages are kept from round to round.
        self.prompts: dict[int, Any] = {}

    def read(self, slot: int, length: int) -> Any:
        """The hidden state after a prompt."""
        import jax

        from alhena.model.attention.paged_cache import PAGE, Tokens
        from alhena.serve.decoding import slots

        for start in range(0, length, PAGE):
            positions = np.arange(start, start + PAGE, dtype=np.int32)[None]
            arrays = (self.table[slot : slot + 1],) * self.kinds, positions, positions, np.ones((1, PAGE), bool)
            tokens, *at = jax.device_put(((positions * 7919 + slot) % self.c.vocabulary, *arrays))
            hidden, self.cache = slots.read_chunks(self.params, self.c, self.cache, tokens, Tokens(*at), None)
        return hidden

    def decode(self, batch: int, tokens: int) -> float:
        """Seconds of so many tokens of each of the first sequences."""
        import jax
        import jax.numpy as jnp

        from alhena.serve.decoding import slots
        from alhena.serve.decoding.sampling.constraints import Constraints
        from alhena.serve.decoding.sampling.sampler import Sampling, stack

        for slot in range(batch):
            if slot not in self.prompts:
                self.prompts[slot] = self.read(slot, PROMPT)
            self.state = slots.insert(self.state, jnp.array([slot]), self.prompts[slot], jnp.array([PROMPT]))
        jax.block_until_ready(self.state)
        rows, zeros = np.arange(batch, dtype=np.int32), np.zeros(batch, np.int32)
        columns = np.ones(batch, np.float32), rows, rows, np.zeros((batch, 3), np.int32), zeros + NEW * 2, zeros > 0
        options = slots.Options(stack([Sampling()] * batch), *jax.device_put(columns), 0)
        masks = np.zeros((batch, -(-self.c.vocabulary // 32)), np.uint32)
        arrays = rows, (self.table[:batch],) * self.kinds, zeros == 0, zeros - 1, zeros > 0, masks
        inputs = slots.Inputs(*jax.device_put((*arrays, np.int32(slots.MAX_STEPS))))
        constraints, start = Constraints(0, (), ((0, self.c.vocabulary),)), time.perf_counter()
        for _ in range(tokens // slots.MAX_STEPS):
            held = self.state, self.cache
            self.state, self.cache, emitted = slots.run_steps(self.params, self.c, constraints, held, options, inputs)
            assert np.asarray(emitted.produced).tolist() == [slots.MAX_STEPS] * batch
        return time.perf_counter() - start


def run_alhena(b: Bench) -> None:
    """Writes the file of llama.cpp, then runs what it is asked for."""
    import jax

    params = random_params(c := config_of(b.models[0]))
    write_gguf(params, c, b.gguf)
    programs = Programs(params, c)

    def timed(what: str, tokens: int) -> float:
        if what != "prefill":
            return programs.decode(int(what), tokens)
        start = time.perf_counter()
        jax.block_until_ready(programs.read(0, tokens))
        return time.perf_counter() - start

    answer(timed)


# ── llama.cpp ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_llama(b: Bench) -> None:
    """llama.cpp, with as many sequences as slots."""
    from llama_cpp import LlamaCpp

    llama = LlamaCpp(b.gguf, SLOTS * (PREFILL + NEW), sequences=SLOTS)
    llama.use_threads(b.threads)

    # Sequences whose prompt has been read: it is kept from round to round.
    read: set[int] = set()

    def prefill(sequence: int, length: int) -> None:
        llama.forget(sequence, 0)
        tokens = [(i * 7919 + sequence) % llama.vocabulary for i in range(length)]
        llama.feed_batch(tokens, range(length), [sequence] * length)

    def timed(what: str, tokens: int) -> float:
        if what == "prefill":
            read.discard(0)
            start = time.perf_counter()
            prefill(0, tokens)
            return time.perf_counter() - start
        batch = int(what)
        for sequence in range(batch):
            if sequence not in read:
                prefill(sequence, PROMPT)
            llama.forget(sequence, PROMPT)
        read.update(range(batch))
        start = time.perf_counter()
        for i in range(tokens):
            llama.feed_batch(
                [(i * 31 + s) % llama.vocabulary for s in range(batch)], [PROMPT + i] * batch, range(batch)
            )
        return time.perf_counter() - start

    answer(timed)


# ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_bandwidth() -> float:
    """Bytes/s that two threads read from memory, at best."""
    parts, best = [np.ones(2**25, np.uint64) for _ in range(2)], 0.0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


def start(b: Bench, name: str, worker: str, gguf: Path) -> tuple[subprocess.Popen[str], Ask]:
    interpreter = sys.executable if worker == "alhena" else str(b.python)
    flags = ["--python", str(b.python), "--models", name, "--threads", str(b.threads), "--worker", worker]
    command = [interpreter, __file__, *flags, "--gguf", str(gguf)]
    from alhena.large_pages import environment

    # As `alhena` itself (alhena/cli/main.py); llama.cpp maps its file, whose pages the system makes large.
    pages = environment() if worker == "alhena" else None
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=pages)

    def ask(what: str, tokens: int) -> float:
        assert process.stdin and process.stdout
        print(what, tokens, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    return process, ask


def weight_bytes(name: str) -> float:
    """Bytes of the weights, all of which a token needs: 18 for 32 values."""
    width, layers, heads, head_dim, hidden, vocabulary = SHAPES[name]
    layer = width * head_dim * (2 * heads + 2) + 3 * width * hidden
    return (layers * layer + vocabulary * width) * 18 / 32


def compare(b: Bench, name: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of one model."""
    gguf, found = folder / f"{name}.gguf", dict[tuple[str, str], list[float]]()
    ours, ask_ours = start(b, name, "alhena", gguf)
    # Ours writes the file before it answers.
    ask_ours("1", WARM)
    llama, ask_llama = start(b, name, "llama.cpp", gguf)
    bandwidth = []
    for number in range(b.rounds + 1):
        bandwidth.append(read_bandwidth())
        for what in (*map(str, b.batches), "prefill"):
            sequences, tokens = (1, PREFILL) if what == "prefill" else (int(what), NEW if number else WARM)
            for engine, ask in (("ours", ask_ours), ("llama_cpp", ask_llama)):
                seconds = ask(what, tokens)
                # The first round warms up.
                if number:
                    found.setdefault((what, engine), []).append(round(sequences * tokens / seconds, 1))
    for process in (ours, llama):
        process.terminate()
    rows = []
    for what in (*map(str, b.batches), "prefill"):
        medians = {engine: statistics.median(found[what, engine]) for engine in ("ours", "llama_cpp")}
        row = {
            "model": name if what != "prefill" else f"{name} prefill",
            "batch": 1 if what == "prefill" else int(what),
        }
        share = medians["ours"] * weight_bytes(name) / statistics.median(bandwidth)
        row |= medians | {"bandwidth_share": round(share, 3) if what == "1" else None}
        row["read_gb_s"] = round(statistics.median(bandwidth) / 1e9, 1)
        rows.append(row | {"rounds": {engine: found[what, engine] for engine in medians}})
        print({key: value for key, value in row.items() if key != "rounds"}, flush=True)
    return rows


def run(b: Bench) -> None:
    rows = json.loads(b.out.read_text()) if b.out.exists() else []
    for name in b.models:
        with tempfile.TemporaryDirectory() as folder:
            new = compare(b, name, Path(folder))
        names = {row["model"] for row in new}
        rows = [row for row in rows if row["model"] not in names] + new
        b.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"load {os.getloadavg()}")


if __name__ == "__main__":
    bench = tyro.cli(Bench, description=__doc__)
    {"": run, "alhena": run_alhena, "llama.cpp": run_llama}[bench.worker](bench)
