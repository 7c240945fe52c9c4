"""Speed of the matmul by quantized weights: share of the read bandwidth at one row, operations per second at more.

    python benchmarks/bench_quantized_matmul.py

Each measurement is one jitted scan over a stack of weights larger than the caches, as a decoder runs it. Rounds of all measurements and of
the read bandwidth (two threads add 512 MB of integers) are interleaved; medians. Beside the kernel the same matmul by bfloat16
weights. Writes benchmarks/results/quantized_matmul.json.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alhena.files import write_json
from alhena.model.linear import einsum, slice_stack
from alhena.model.quantized import native
from alhena.model.quantized.layout import Int4, Int8, packed_shapes

# Inputs and outputs of the largest matrices of decoders of 30 M, 300 M and 1 B parameters.
SHAPES = {"30 M": (512, 2048), "300 M": (1024, 4096), "1 B": (2048, 8192)}


@dataclass(frozen=True)
class Bench:
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 128)
    rounds: int = 9
    megabytes: int = 64  # of the weights of a measurement in 4 bits, at least
    instructions: str | None = None  # implementation of the kernel; the fastest when left out
    out: Path = Path(__file__).parent / "results" / "quantized_matmul.json"


def stack(bits: int, layers: int, inputs: int, outputs: int) -> Any:
    """Random weights."""
    rng = np.random.default_rng(0)
    if bits == 16:
        return jnp.asarray(rng.normal(size=(layers, inputs, outputs)), jnp.bfloat16)
    packed, scales = packed_shapes(bits, inputs, outputs)
    values = rng.integers(0, 256, (layers, *packed), np.uint8)
    kind, scale = {4: (Int4, np.uint8), 8: (Int8, np.int8)}[bits], rng.normal(size=(layers, *scales))
    return kind[0](jnp.asarray(values.view(kind[1])), jnp.asarray(scale / 100, jnp.float16), outputs)


@jax.jit
def run(x: jax.Array, weights: Any) -> jax.Array:
    """``x`` through all weights in turn."""
    width, layers = x.shape[1], len(jax.tree.leaves(weights)[0])

    def layer(x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        return x + 1e-3 * einsum("...i,io->...o", x, slice_stack(weights, index), "bfloat16")[:, :width], None

    return jax.lax.scan(layer, x, jnp.arange(layers))[0]


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def read(parts: list[np.ndarray], pool: ThreadPoolExecutor) -> int:
    return sum(pool.map(np.max, parts))


Key = tuple[str, int, int]


def measurements(b: Bench) -> dict[Key, tuple[Callable[[], Any], Any]]:
    """What is measured, by shape, bits and rows: a function, and its weights."""
    out = {}
    for name, (inputs, outputs) in SHAPES.items():
        layers = -(-b.megabytes * 2**21 // (inputs * outputs))
        for bits in (4, 8, 16):
            weights = stack(bits, layers, inputs, outputs)
            for rows in b.rows:
                x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, inputs)), jnp.float32)
                out[name, bits, rows] = partial(run, x, weights), weights
    return out


def row(key: Key, elapsed: float, weights: Any, bandwidth: float) -> dict[str, Any]:
    name, bits, rows = key
    (inputs, outputs), leaves = SHAPES[name], jax.tree.leaves(weights)
    layers, nbytes = len(leaves[0]), sum(leaf.nbytes for leaf in leaves)
    return {
        "shape": [inputs, outputs],
        "bits": bits,
        "rows": rows,
        "microseconds": round(elapsed / layers * 1e6, 1),
        "bandwidth_share": round(nbytes / elapsed / bandwidth, 3),
        "gigaops": round(2 * rows * layers * inputs * outputs / elapsed / 1e9, 1),
    }


def main(b: Bench) -> None:
    if b.instructions:
        os.environ["ALHENA_INSTRUCTIONS"] = b.instructions
    threads = os.cpu_count() or 1
    memory, pool, functions = np.ones(2**26, np.int64), ThreadPoolExecutor(threads), measurements(b)
    for function, _ in functions.values():
        jax.block_until_ready(function())
    times: dict[Any, list[float]] = {key: [] for key in (*functions, "read")}
    for _ in range(b.rounds):
        for key, (function, _) in functions.items():
            times[key].append(seconds(function))
        times["read"] += [seconds(lambda: read(np.array_split(memory, threads), pool)) for _ in range(3)]
    bandwidth = memory.nbytes / statistics.median(times["read"])
    measured = [row(key, statistics.median(times[key]), w, bandwidth) for key, (_, w) in functions.items()]
    for line in measured:
        print(line)
    write_json(b.out, {"instructions": native.chosen(), "read_gb_s": round(bandwidth / 1e9, 1), "measured": measured})


if __name__ == "__main__":
    main(tyro.cli(Bench))
