"""Long sequences through the starter's decoder: peak memory and time of the loss and its gradient, each length in its own process.

    python benchmarks/bench_long_context.py [--lengths 2048 8192 32768]

Writes benchmarks/results/long_context.json. ``peak_rss_gb`` is the peak resident memory of the process, Python, JAX and the compiler
included; ``program_gb`` is the compiled program's temporary memory. Times are of one execution after compilation: wall-clock seconds, and CPU
seconds of all cores, which other work on the machine hardly changes.
"""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alhena.batch import Batch
from alhena.files import read_json, write_json
from alhena.model import model
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.loss import batch_loss
from recipes import starter

RESULTS = Path(__file__).parent / "results" / "long_context.json"
# Streams without content: name, inner dimensions, dtype.
NO_MEDIA = (
    ("patches", (192,), np.uint8),
    ("patch_positions", (2,), np.int32),
    ("patch_images", (), np.int32),
    ("frames", (128, 128), np.float32),
    ("frame_lengths", (), np.int32),
)


@dataclass(frozen=True)
class Bench:
    lengths: tuple[int, ...] = (2048, 8192, 32768)  # sequence lengths, in tokens
    worker: Path | None = None  # internal: measure the first length in this process and write it to this file


def random_batch(length: int, vocabulary: int) -> Batch:
    """One sequence: a document of random tokens, each of them a target."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (1, length), dtype=np.int32)
    ones = np.ones((1, length), np.int32)
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, 1),
        weights=ones.astype(np.float32),
        modality=0 * ones,
        segments=ones,
        positions=np.arange(length, dtype=np.int32)[None],
        **{name: np.zeros((1, 0, *inner), dtype) for name, inner, dtype in NO_MEDIA},
    )


def measure(length: int) -> dict[str, float]:
    """Compiles and runs the loss and its gradient for one sequence length."""
    run = starter.run()
    v = Vocabulary(run.text_vocabulary_size, run.image_tokenizer.num_codes)
    c = replace(run.model(v), vision=None, audio=None)
    params, batch = model.init(jax.random.key(0), c), jax.tree.map(jnp.asarray, random_batch(length, v.size))
    start = time.perf_counter()
    program = jax.jit(jax.value_and_grad(lambda p, b: batch_loss(p, c, b)[0])).lower(params, batch).compile()
    compiled, cpu = time.perf_counter(), time.process_time()
    loss, _ = jax.block_until_ready(program(params, batch))
    return {
        "tokens": length,
        "loss": round(float(loss), 4),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "program_gb": round(program.memory_analysis().temp_size_in_bytes / 1e9, 3),
        "compile_seconds": round(compiled - start, 1),
        "seconds": round(time.perf_counter() - compiled, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def main(bench: Bench) -> None:
    if bench.worker:
        write_json(bench.worker, measure(bench.lengths[0]))
        return
    results, part = [], RESULTS.with_suffix(".part.json")
    for length in bench.lengths:
        subprocess.run([sys.executable, __file__, "--lengths", str(length), "--worker", str(part)], check=True)
        results.append(read_json(part))
        print(results[-1], flush=True)
    part.unlink()
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    write_json(RESULTS, {"lengths": results, "device": device})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
