"""Speed of a decoder with the shapes of Gemma 4 E2B (random bfloat16 weights, 4.6 billion of them): prefill and decoding.

    python benchmarks/bench_large_decoder.py                        takes 12 GB of memory
    python benchmarks/bench_large_decoder.py --layers 5 --vocabulary 8192        a small one, to try it

The programs are those of the server: chunks of prompts, then steps of all slots at once. Writes benchmarks/results/large_decoder.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from bench_import import e2b

from alhena.model import model
from alhena.model.attention import paged_cache
from alhena.model.attention.paged_cache import PAGE, Tokens


@dataclass(frozen=True)
class Bench:
    layers: int = 35
    vocabulary: int = 262_144
    slots: int = 4  # sequences that take a token in one step
    rounds: int = 5
    out: Path = Path(__file__).parent / "results" / "large_decoder.json"


def main(bench: Bench) -> None:
    c = replace(e2b(bench.layers, bench.vocabulary), vision=None, audio=None, compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda key: model.init(key, c), jax.random.key(0))
    # Of one value: the time does not depend on the values.
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, jnp.bfloat16), shapes)
    print(f"{model.count(params):,} parameters", flush=True)
    pages = 2 * bench.slots + 1
    kinds = len(paged_cache.kinds(c.decoder))
    cache = paged_cache.empty(c.decoder, (pages,) * kinds, c.compute_dtype)

    def step(cache: paged_cache.PagedCache, slots: int, length: int) -> paged_cache.PagedCache:
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (slots, length))
        table = 1 + jnp.arange(2 * slots, dtype=jnp.int32).reshape(slots, 2)
        at = Tokens((table,) * kinds, positions, positions, jnp.ones((slots, length), bool))
        hidden, cache = extend(params, jnp.ones((slots, length), jnp.int32), at, cache)
        jnp.argmax(logits(params, hidden[:, -1]), -1).block_until_ready()
        return cache

    extend = jax.jit(lambda p, tokens, at, cache: model.extend(p, c, tokens, at, cache, None), donate_argnums=3)
    logits = jax.jit(lambda p, hidden: model.logits(p, c, hidden))
    found = {}
    for name, slots, length in (("prefill", 1, PAGE), ("decode", bench.slots, 1)):
        cache, seconds = step(cache, slots, length), []
        for _ in range(bench.rounds):
            start = time.perf_counter()
            cache = step(cache, slots, length)
            seconds.append(time.perf_counter() - start)
        rate = slots * length / statistics.median(seconds)
        found[name] = {"sequences": slots, "tokens": length, "tokens_per_second": round(rate, 2), "seconds": seconds}
        print(name, found[name], flush=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()}
    bench.out.write_text(json.dumps({"parameters": model.count(params), **machine, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
