"""Our training step beside PyTorch's: the same decoder, batch, optimizer and precision, eager and compiled.

    python benchmarks/bench_step.py --torch PYTHON       PYTHON: an interpreter that has torch 2.13 (never the package's own)

Both begin with the same weights and see the same batch, so their losses can be compared. Each contender lives in a process of its own,
all with large pages (alhena/large_pages.py), and waits while another works; a round gives each a few steps in turn, the order turned round
every second time, and one more before them that is not counted. What counts is the median over rounds. The share of the machine is
6·N·tokens and the attention's products over the float32 rate of a large matrix product, measured in the same rounds. Writes
benchmarks/results/step.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

SIZES = {
    "10M": {"width": 320, "layers": 6, "heads": 5, "head_dim": 64, "hidden": 1024, "vocabulary": 8192},
    "30M": {"width": 512, "layers": 8, "heads": 8, "head_dim": 64, "hidden": 1664, "vocabulary": 8192},
}
TOKENS = 4096  # a batch: 8 rows of 512, 4 of 1,024
RATE = 1e-3
Engine = Literal["alhena", "eager", "compile", "matmul"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Bench:
    torch: Path = Path(sys.executable)
    sizes: tuple[str, ...] = tuple(SIZES)
    lengths: tuple[int, ...] = (512, 1024)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    engines: tuple[Engine, ...] = ("alhena", "eager", "compile")
    rounds: int = 8
    steps: int = 2  # of each contender in a round
    out: Path = Path(__file__).parent / "results" / "step.json"
    worker: Annotated[str, tyro.conf.arg(help="internal: engine, size, length and precision of one contender")] = ""


def batch_of(size: str, length: int) -> np.ndarray:
    """Token ids [rows, length + 1]."""
    shape = (TOKENS // length, length + 1)
    return np.random.default_rng(0).integers(0, SIZES[size]["vocabulary"], shape).astype(np.int32)


def weights_of(size: str) -> dict[str, np.ndarray]:
    """Where both begin: matrices ``[layers, in, out]`` and the embedding; norms are ones."""
    shape, rng = SIZES[size], np.random.default_rng(1)
    n, D, F = shape["layers"], shape["width"], shape["hidden"]
    heads, H = shape["heads"] * shape["head_dim"], shape["head_dim"]
    sides = {
        "query": (D, heads), "key": (D, H), "value": (D, H), "output": (heads, D), "gate": (D, F), "up": (D, F), "down": (F, D)
    }  # fmt: skip
    drawn = {k: rng.standard_normal((n, *s), np.float32) / np.float32(s[0] ** 0.5) for k, s in sides.items()}
    return drawn | {"embedding": rng.standard_normal((shape["vocabulary"], D), np.float32) / np.float32(D**0.5)}


def alhena_step(size: str, length: int, precision: Precision):
    import jax
    import jax.numpy as jnp
    import optax

    from alhena.batch import Batch
    from alhena.model import config, model
    from alhena.train.step import initial_state, train_step

    shape = dict(SIZES[size])
    vocabulary = shape.pop("vocabulary")
    c = config.Model(vocabulary, 0, 0, config.Decoder(**shape), None, None, compute_dtype=precision)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, 0.9, 0.95, weight_decay=0.1))
    drawn = weights_of(size)
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), c))
    layers = {k: jnp.asarray(v) for k, v in drawn.items() if k != "embedding"}
    params = replace(params, embedding=jnp.asarray(drawn["embedding"]), layers=replace(params.layers, **layers))
    state = initial_state(params, c, transform)
    ids = batch_of(size, length)
    B, L = ids.shape[0], length
    ones, none = jnp.ones((B, L), jnp.int32), jnp.zeros
    batch = Batch(
        tokens=jnp.asarray(ids[:, :-1]), targets=jnp.asarray(ids[:, 1:]), weights=jnp.ones((B, L)), modality=0 * ones,
        segments=ones, positions=jnp.broadcast_to(jnp.arange(L), (B, L)),
        patches=none((B, 0, 0), jnp.uint8), patch_positions=none((B, 0, 2), jnp.int32), patch_images=none((B, 0), jnp.int32),
        frames=none((B, 0, 0, 0)), frame_lengths=none((B, 0), jnp.int32),
    )  # fmt: skip
    parameters = model.count(state.params)

    def step() -> float:
        nonlocal state
        state, measured = train_step(state, batch, c, transform)
        return float(measured.loss)

    return step, parameters


def torch_step(size: str, length: int, precision: Precision, compiled: bool):
    import torch
    import torch.nn.functional as F
    from torch import nn

    shape = SIZES[size]
    D, H, N, V = shape["width"], shape["head_dim"], shape["heads"], shape["vocabulary"]

    def turned(x, cos, sin):
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            make = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
            self.qkv, self.output = make(D, (N + 2) * H), make(N * H, D)
            self.gate_up, self.down = make(D, 2 * shape["hidden"]), make(shape["hidden"], D)
            self.norms = nn.ModuleList([nn.RMSNorm(D, eps=1e-6) for _ in range(4)])
            self.query_norm, self.key_norm = nn.RMSNorm(H, eps=1e-6), nn.RMSNorm(H, eps=1e-6)

        def forward(self, x, cos, sin):
            B, L, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(B, L, N + 2, H).transpose(1, 2).split([N, 1, 1], 1)
            q, k = self.query_norm(q), self.key_norm(k)
            q, k = (turned(a, cos, sin).to(v.dtype) for a in (q, k))
            heads = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
            x = x + self.norms[1](self.output(heads.transpose(1, 2).reshape(B, L, N * H)))
            gate, up = self.gate_up(self.norms[2](x)).chunk(2, -1)
            return x + self.norms[3](self.down(F.gelu(gate, approximate="tanh") * up))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(V, D)
            self.layers = nn.ModuleList([Layer() for _ in range(shape["layers"])])
            self.norm = nn.RMSNorm(D, eps=1e-6)
            angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, H, 2) / H)
            self.cos, self.sin = angle.cos(), angle.sin()

        def forward(self, tokens, targets):
            x = self.embedding(tokens) * D**0.5
            for layer in self.layers:
                x = layer(x, self.cos, self.sin)
            logits = F.linear(self.norm(x), self.embedding.weight).float().view(-1, V)
            return F.cross_entropy(logits, targets.reshape(-1)) + 1e-4 * logits.logsumexp(-1).square().mean()

    net, drawn = Decoder(), {k: torch.from_numpy(v) for k, v in weights_of(size).items()}
    with torch.no_grad():
        net.embedding.weight.copy_(drawn["embedding"])
        for i, layer in enumerate(net.layers):
            layer.qkv.weight.copy_(torch.cat([drawn[k][i] for k in ("query", "key", "value")], 1).T)
            layer.gate_up.weight.copy_(torch.cat([drawn["gate"][i], drawn["up"][i]], 1).T)
            layer.output.weight.copy_(drawn["output"][i].T)
            layer.down.weight.copy_(drawn["down"][i].T)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, (0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.from_numpy(batch_of(size, length)).long()
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    loss_of = torch.compile(net) if compiled else net

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step, sum(p.numel() for p in net.parameters())


def matmul_step():
    """A large float32 product by XLA: the machine's own rate."""
    import jax
    import jax.numpy as jnp

    x, y = (jnp.asarray(np.random.default_rng(0).standard_normal(s, np.float32)) for s in ((2048, 4096), (4096, 2048)))
    product = jax.jit(jnp.matmul)  # rows by columns, the fastest of its forms
    return (lambda: float(product(x, y)[0, 0])), 0


def work(name: str) -> None:
    """One contender: every line read is a number of steps to do; answers with seconds a step and the last loss."""
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
        step()  # not counted: it finds caches and pages as the others left them
        began = time.perf_counter()
        for _ in range(n):
            loss = step()
        print(json.dumps({"seconds": (time.perf_counter() - began) / n, "loss": loss}), flush=True)


class Contender:
    """One process that does steps when it is told to."""

    def __init__(self, python: Path, name: str) -> None:
        from alhena.large_pages import environment  # here: workers under another interpreter have no alhena

        self.name, self.seconds = name, []
        command = [str(python), __file__, "--worker", name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment())
        self.facts = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended without an answer (its error stands above)")
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
    """6·N a token, and the attention's products over what a causal query sees."""
    shape = SIZES[size]
    attention = 12 * shape["layers"] * shape["heads"] * shape["head_dim"] * length / 2
    return TOKENS * (6 * parameters + attention)


def compare(bench: Bench, size: str, length: int, precision: Precision) -> dict:
    pythons = {"alhena": sys.executable, "matmul": sys.executable}
    some = [
        Contender(Path(pythons.get(engine, bench.torch)), f"{engine},{size},{length},{precision}")
        for engine in (*bench.engines, "matmul")
    ]
    for contender in some:
        contender.run(1)
        contender.seconds.clear()
    for round_ in range(bench.rounds):
        for contender in some if round_ % 2 == 0 else some[::-1]:
            contender.run(bench.steps)
    for contender in some:
        contender.close()
    peak = 2 * 2048 * 4096 * 2048 / float(np.median(some[-1].seconds))
    row = {"size": size, "length": length, "precision": precision, "matmul_gflops": round(peak / 1e9)}
    for engine, contender in zip(bench.engines, some, strict=False):
        seconds = float(np.median(contender.seconds))
        row[engine] = {
            "tokens_per_second": round(TOKENS / seconds),
            "share_of_matmul_rate": round(flops(size, length, contender.facts["parameters"]) / seconds / peak, 3),
            "parameters": contender.facts["parameters"],
            "seconds": [round(s, 4) for s in contender.seconds],
            "losses": [round(contender.facts[k], 3) for k in ("first", "last")],
            "ready_seconds": round(contender.facts["ready"], 1),
        }
    return row


def main(bench: Bench) -> None:
    rows = []
    for precision in bench.precisions:
        for size in bench.sizes:
            for length in bench.lengths:
                rows.append(compare(bench, size, length, precision))
                told = ", ".join(f"{e} {rows[-1][e]['tokens_per_second']:,}" for e in bench.engines)
                share = rows[-1][bench.engines[0]]["share_of_matmul_rate"]
                print(
                    f"{size} {length} {precision}: {told} tokens/s; {share:.0%} of {rows[-1]['matmul_gflops']} GFLOP/s",
                    flush=True,
                )
                device = {"machine": platform.machine(), "cores": os.cpu_count(), "batch_tokens": TOKENS}
                bench.out.parent.mkdir(exist_ok=True)
                bench.out.write_text(json.dumps({"rows": rows, "device": device}, indent=1) + "\n")


if __name__ == "__main__":
    bench = tyro.cli(Bench, description=__doc__)
    work(bench.worker) if bench.worker else main(bench)
