"""Our training step beside PyTorch's: the same decoder, batch, optimizer and precision; PyTorch eager and compiled.

    python benchmarks/bench_step.py --torch PYTHON       PYTHON: an interpreter that has torch 2.13, numpy and tyro

All engines start with the same weights and train on the same batch, so their losses can be compared. Each runs in a process of its own,
with large pages (alhena/large_pages.py), and waits while another works. A round gives each a few steps in turn, after one step that is not
timed; the order is reversed every second round. Reported are medians over rounds. Utilization is 6·N·tokens plus the FLOPs of attention,
divided by the float32 rate of a large matmul measured in the same rounds. Writes benchmarks/results/step.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

SIZES = {
    "10M": {"width": 320, "layers": 6, "heads": 5, "head_dim": 64, "hidden": 1024, "vocabulary": 8192},
    "30M": {"width": 512, "layers": 8, "heads": 8, "head_dim": 64, "hidden": 1664, "vocabulary": 8192},
}
# Per batch: 8 sequences of 512, or 4 of 1,024.
BATCH_TOKENS = 4096
LEARNING_RATE = 1e-3
Engine = Literal["alhena", "eager", "compile", "matmul"]
TORCH_ENGINES = ("eager", "compile")
Precision = Literal["float32", "bfloat16"]
# A function that does one step and returns its loss, and the number of parameters.
Step = tuple[Callable[[], float], int]


@dataclass(frozen=True)
class Bench:
    torch: Path | None = None  # a Python interpreter that has PyTorch; without it only alhena is measured
    sizes: tuple[str, ...] = tuple(SIZES)
    lengths: tuple[int, ...] = (512, 1024)  # sequence lengths
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    engines: tuple[Engine, ...] = ("alhena", "eager", "compile")
    rounds: int = 8
    steps: int = 2  # timed steps of each engine in a round
    out: Path = Path(__file__).parent / "results" / "step.json"
    worker: Annotated[str, tyro.conf.arg(help="internal: engine, size, length and precision of one worker")] = ""


def make_batch(size: str, length: int) -> np.ndarray:
    """Token ids [B, length + 1]."""
    shape = (BATCH_TOKENS // length, length + 1)
    return np.random.default_rng(0).integers(0, SIZES[size]["vocabulary"], shape).astype(np.int32)


def initial_weights(size: str) -> dict[str, np.ndarray]:
    """Weights ``[layers, in, out]`` and the embedding; the scales of norms are ones."""
    shape, rng = SIZES[size], np.random.default_rng(1)
    n, D, F = shape["layers"], shape["width"], shape["hidden"]
    heads, H = shape["heads"] * shape["head_dim"], shape["head_dim"]
    sides = {
        "query": (D, heads), "key": (D, H), "value": (D, H), "output": (heads, D), "gate": (D, F), "up": (D, F), "down": (F, D)
    }  # fmt: skip
    layers = {k: rng.standard_normal((n, *s), np.float32) / np.float32(s[0] ** 0.5) for k, s in sides.items()}
    return layers | {"embedding": rng.standard_normal((shape["vocabulary"], D), np.float32) / np.float32(D**0.5)}


def alhena_step(size: str, length: int, precision: Precision) -> Step:
    # Workers under another interpreter have neither jax nor alhena.
    import jax
    import jax.numpy as jnp
    import optax

    from alhena.batch import Batch
    from alhena.model import config, model
    from alhena.train.step import initial_state, train_step

    shape = dict(SIZES[size])
    vocabulary = shape.pop("vocabulary")
    c = config.Model(vocabulary, 0, 0, config.Decoder(**shape), None, None, compute_dtype=precision)
    adamw = optax.adamw(LEARNING_RATE, 0.9, 0.95, weight_decay=0.1)
    transform = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    weights = {name: jnp.asarray(array) for name, array in initial_weights(size).items()}
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), c))
    params = replace(params, embedding=weights.pop("embedding"), layers=replace(params.layers, **weights))
    state, ids = initial_state(params, c, transform), make_batch(size, length)
    B, L = ids.shape[0], length
    ones, zeros = jnp.ones((B, L), jnp.int32), jnp.zeros
    batch = Batch(
        tokens=jnp.asarray(ids[:, :-1]), targets=jnp.asarray(ids[:, 1:]), weights=jnp.ones((B, L)), modality=0 * ones,
        segments=ones, positions=jnp.broadcast_to(jnp.arange(L), (B, L)),
        patches=zeros((B, 0, 0), jnp.uint8), patch_positions=zeros((B, 0, 2), jnp.int32), patch_images=zeros((B, 0), jnp.int32),
        frames=zeros((B, 0, 0, 0)), frame_lengths=zeros((B, 0), jnp.int32),
    )  # fmt: skip
    parameters = model.count(state.params)

    def step() -> float:
        nonlocal state
        state, measured = train_step(state, batch, c, transform)
        return float(measured.loss)

    return step, parameters


def torch_step(size: str, length: int, precision: Precision, compiled: bool) -> Step:
    from torch_decoder import Decoder, load_weights, make_step

    net = Decoder(SIZES[size], length)
    load_weights(net, initial_weights(size))
    step = make_step(net, make_batch(size, length), LEARNING_RATE, precision == "bfloat16", compiled)
    return step, sum(p.numel() for p in net.parameters())


def matmul_step() -> Step:
    """A large float32 matmul by XLA: the machine's attainable rate."""
    import jax
    import jax.numpy as jnp

    x, y = (jnp.asarray(np.random.default_rng(0).standard_normal(s, np.float32)) for s in ((2048, 4096), (4096, 2048)))
    matmul = jax.jit(jnp.matmul)
    return (lambda: float(matmul(x, y)[0, 0])), 0


def work(name: str) -> None:
    """A worker: each line of standard input is a number of steps; prints seconds per step and the last loss."""
    engine, size, length, precision = name.split(",")
    began = time.perf_counter()
    if engine == "matmul":
        step, parameters = matmul_step()
    elif engine == "alhena":
        step, parameters = alhena_step(size, int(length), precision)
    else:
        step, parameters = torch_step(size, int(length), precision, engine == "compile")
    first = step()
    print(json.dumps({"first": first, "ready": time.perf_counter() - began, "parameters": parameters}), flush=True)
    for line in sys.stdin:
        n = int(line)
        # Not timed: caches and pages are as the other workers left them.
        step()
        began = time.perf_counter()
        for _ in range(n):
            loss = step()
        print(json.dumps({"seconds": (time.perf_counter() - began) / n, "loss": loss}), flush=True)


class Worker:
    """A process that does training steps on request."""

    def __init__(self, python: Path, name: str) -> None:
        # Workers under another interpreter have no alhena.
        from alhena.large_pages import environment

        self.name, self.seconds = name, []
        command = [str(python), __file__, "--worker", name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment())
        self.facts = self._read()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended without an answer (its error is above)")
        return json.loads(line)

    def run(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._read()
        self.seconds.append(answer["seconds"])
        self.facts["last"] = answer["loss"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def flops(size: str, length: int, parameters: int) -> float:
    """Of a step: 6·N per token, and attention's matmuls over the positions that a causal query attends to."""
    shape = SIZES[size]
    attention = 12 * shape["layers"] * shape["heads"] * shape["head_dim"] * length / 2
    return BATCH_TOKENS * (6 * parameters + attention)


def compare(bench: Bench, size: str, length: int, precision: Precision) -> dict[str, Any]:
    """Medians of all engines for one size, length and precision."""
    setting = f"{size},{length},{precision}"
    pythons = {engine: bench.torch if engine in TORCH_ENGINES else None for engine in (*bench.engines, "matmul")}
    workers = [Worker(python or Path(sys.executable), f"{name},{setting}") for name, python in pythons.items()]
    for worker in workers:
        worker.run(1)
        worker.seconds.clear()
    for round_ in range(bench.rounds):
        for worker in workers if round_ % 2 == 0 else workers[::-1]:
            worker.run(bench.steps)
    for worker in workers:
        worker.close()
    peak = 2 * 2048 * 4096 * 2048 / float(np.median(workers[-1].seconds))
    result = {"size": size, "length": length, "precision": precision, "matmul_gflops": round(peak / 1e9)}
    for engine, worker in zip(bench.engines, workers, strict=False):
        seconds, facts = float(np.median(worker.seconds)), worker.facts
        result[engine] = {
            "tokens_per_second": round(BATCH_TOKENS / seconds),
            "share_of_matmul_rate": round(flops(size, length, facts["parameters"]) / seconds / peak, 3),
            "parameters": facts["parameters"],
            "seconds": [round(s, 4) for s in worker.seconds],
            "losses": [round(facts[k], 3) for k in ("first", "last")],
            "ready_seconds": round(facts["ready"], 1),
        }
    return result


def main(bench: Bench) -> None:
    if bench.torch is None:
        bench = replace(bench, engines=tuple(engine for engine in bench.engines if engine not in TORCH_ENGINES))
    rows, first = [], bench.engines[0]
    for precision in bench.precisions:
        for size in bench.sizes:
            for length in bench.lengths:
                row = compare(bench, size, length, precision)
                rows.append(row)
                rates = ", ".join(f"{engine} {row[engine]['tokens_per_second']:,}" for engine in bench.engines)
                share = row[first]["share_of_matmul_rate"]
                print(
                    f"{size} {length} {precision}: {rates} tokens/s; {first} at {share:.0%} of {row['matmul_gflops']} GFLOP/s",
                    flush=True,
                )
                device = {"machine": platform.machine(), "cores": os.cpu_count(), "batch_tokens": BATCH_TOKENS}
                bench.out.parent.mkdir(exist_ok=True)
                bench.out.write_text(json.dumps({"rows": rows, "device": device}, indent=1) + "\n")


if __name__ == "__main__":
    bench = tyro.cli(Bench, description=__doc__)
    work(bench.worker) if bench.worker else main(bench)
