"""Experts by sorted blocks beside all experts on every token: time of the experts of one layer, in interleaved pairs.

    python benchmarks/bench_moe.py [--tokens 1 64 512] [--dtypes float32 bfloat16]

Writes benchmarks/results/moe.json: the median milliseconds of each, and the median over the pairs of the ratio of their times. The
shape is that of Gemma 4 26B-A4B, narrower. The gradient is that of tokens and weights.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alhena.files import write_json
from alhena.model import config, spec
from alhena.model.layers import gated, rms_norm
from alhena.model.variants import moe


@dataclass(frozen=True)
class Bench:
    tokens: tuple[int, ...] = (1, 64, 512)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # of weights and matmul operands
    width: int = 512
    hidden: int = 128
    experts: int = 128
    chosen: int = 8
    pairs: int = 15
    out: Path = Path(__file__).parent / "results" / "moe.json"


def dense(w: moe.Layer, x: jax.Array, c: config.Experts, dtype: str) -> jax.Array:
    """Every expert on every token; the output of those that are not chosen is multiplied by 0."""
    tokens = x.reshape(-1, x.shape[-1])
    chosen, factors = moe.route(w, tokens, c)
    weights = jnp.zeros((len(tokens), c.number)).at[jnp.arange(len(tokens))[:, None], chosen].set(factors)
    h = rms_norm(tokens, w.pre_norm).astype(dtype)
    gate, up = (jnp.einsum("td,xdf->xtf", h, m, preferred_element_type=jnp.float32) for m in (w.gate, w.up))
    hidden = (gated(gate, up) * weights.T[..., None]).astype(dtype)
    out = jnp.einsum("xtf,xfd->td", hidden, w.down, preferred_element_type=jnp.float32)
    return rms_norm(out, w.expert_post_norm).reshape(x.shape)


def milliseconds(f: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(f(*arguments))
    return 1000 * (time.perf_counter() - start)


def compare(bench: Bench, tokens: int, dtype: str, gradient: bool) -> dict[str, Any]:
    """Both forms on the same tokens, one after the other, ``pairs`` times."""
    c = config.Decoder(bench.width, 1, 1, 2, 2, experts=config.Experts(bench.experts, bench.chosen, bench.hidden))
    w = spec.init(jax.random.key(0), moe.weights(c))
    w = replace(w, **{name: getattr(w, name).astype(dtype) for name in ("gate", "up", "down")})
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, tokens, bench.width)), jnp.float32)

    def program(f: Callable[..., jax.Array]) -> Callable[..., Any]:
        def forward(w: moe.Layer, x: jax.Array) -> jax.Array:
            return f(w, x, c.experts, dtype)

        return jax.jit(jax.grad(lambda w, x: jnp.sum(forward(w, x) ** 3), (0, 1)) if gradient else forward)

    blocks, everything = program(moe.moe), program(dense)
    leaves = (jax.tree.leaves(f(w, x)) for f in (blocks, everything))
    difference = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(*leaves, strict=True))
    times = [(milliseconds(blocks, w, x), milliseconds(everything, w, x)) for _ in range(bench.pairs)]
    return {
        "tokens": tokens,
        "dtype": dtype,
        "computes": "gradient" if gradient else "output",
        "sorted_ms": round(median(a for a, _ in times), 3),
        "dense_ms": round(median(b for _, b in times), 3),
        "dense_by_sorted": round(median(b / a for a, b in times), 2),
        "relative_difference": float(f"{difference:.1e}"),
    }


def main(bench: Bench) -> None:
    shape = {name: getattr(bench, name) for name in ("width", "hidden", "experts", "chosen", "pairs")}
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    rows: list[dict[str, Any]] = []
    for dtype in bench.dtypes:
        for tokens, gradient in [*((n, False) for n in bench.tokens), (max(bench.tokens), True)]:
            rows.append(compare(bench, tokens, dtype, gradient))
            print(rows[-1], flush=True)
            write_json(bench.out, {"shape": shape, "device": device, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Bench))
