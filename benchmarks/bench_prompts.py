"""Reading long prompts in chunks of a page: attention to the pages by the compiled kernel and by XLA, in interleaved rounds.

    python benchmarks/bench_prompts.py [--lengths 2048 8192 32768] [--rounds 3]

Writes benchmarks/results/prompts.json: tokens/s of the starter's decoder with random weights, medians of the rounds.
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alhena.files import write_json
from alhena.model import config, model
from alhena.model.attention import native, paged_cache
from alhena.model.attention.paged_cache import PAGE, Tokens
from recipes import starter

RESULTS = Path(__file__).parent / "results" / "prompts.json"
WAYS = ("kernel", "xla")


@dataclass(frozen=True)
class Bench:
    lengths: tuple[int, ...] = (2048, 8192, 32768)  # tokens of a prompt
    rounds: int = 3


def chunk(start: int, tables: tuple[jax.Array, ...]) -> Tokens:
    positions = jnp.arange(start, start + PAGE, dtype=jnp.int32)[None]
    return Tokens(tables, positions, positions, jnp.ones((1, PAGE), bool))


def measure(decoder: config.Decoder, length: int, rounds: int) -> dict[str, float]:
    """Tokens/s of one prompt, read as the engine reads it."""
    c = config.Model(2048, 1, 2, decoder, None, None)
    params = model.init(jax.random.key(0), c)
    pages, kinds = length // PAGE, paged_cache.kinds(decoder)
    tables = tuple(jnp.arange(pages, dtype=jnp.int32)[None] for _ in kinds)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 2048, (1, length), dtype=np.int32))

    def empty() -> paged_cache.PagedCache:
        return paged_cache.empty(decoder, (pages,) * len(kinds), c.compute_dtype)

    def compiled(way: str) -> jax.stages.Compiled:
        with patch.object(native, "attends", native.attends if way == "kernel" else lambda size: False):
            extend = jax.jit(lambda p, t, at, cache: model.extend(p, c, t, at, cache), donate_argnums=3)
            return extend.lower(params, tokens[:, :PAGE], chunk(0, tables), empty()).compile()

    programs, seconds = {way: compiled(way) for way in WAYS}, {way: list[float]() for way in WAYS}
    for _ in range(rounds):
        for way, program in programs.items():
            cache, begin = jax.block_until_ready(empty()), time.perf_counter()
            for start in range(0, length, PAGE):
                hidden, cache = program(params, tokens[:, start : start + PAGE], chunk(start, tables), cache)
            hidden.block_until_ready()
            seconds[way].append(time.perf_counter() - begin)
    return {way: round(length / statistics.median(taken), 1) for way, taken in seconds.items()}


def main(bench: Bench) -> None:
    results = []
    for length in bench.lengths:
        found = measure(starter.run().decoder, length, bench.rounds)
        ratio = round(found["kernel"] / found["xla"], 2)
        results.append({"tokens": length, "tokens_per_second": found, "ratio": ratio})
        print(results[-1], flush=True)
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    write_json(RESULTS, {"rounds": bench.rounds, "prompts": results, "device": device})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
