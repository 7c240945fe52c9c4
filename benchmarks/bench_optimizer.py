"""Muon against Adam on one skill: reading handwritten numbers, from nothing, the same data and steps for both.

    python benchmarks/bench_optimizer.py [runs/starter] --steps 160      needs the run's encoded corpus (alhena tokenize)

Prints nats per weighted token in windows of 20 steps; writes benchmarks/results/optimizer.json.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import optax
import tyro

from alhena.files import write_json
from alhena.model import config, model
from alhena.tokens.encode import Encoder
from alhena.tokens.loader import Batches, BatchShape
from alhena.tokens.store import Examples
from alhena.train.optimizer import Optimizer, optimizer, schedule
from alhena.train.step import initial_state, train_step
from recipes import starter

WINDOW = 20


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")
    source: str = "digits"
    steps: int = 160
    rates: tuple[float, ...] = (1e-3, 3e-3)


def _config(bench: Bench) -> config.Model:
    return starter.run().model(Encoder.load(bench.folder / "tokens").vocabulary)


def curve(bench: Bench, transform: optax.GradientTransformation) -> list[float]:
    """Mean loss of each window of steps."""
    tokens, c = bench.folder / "tokens", _config(bench)
    sources = {bench.source: Examples(tokens / "train" / f"{bench.source}.arrow")}
    batches = Batches(sources, {bench.source: 1.0}, BatchShape(4, 256, 320, 0), seed=0)
    state, losses = initial_state(model.init(jax.random.key(0), c), c, transform), []
    for _ in range(bench.steps):
        state, measured = train_step(state, next(batches), c, transform)
        losses.append(float(measured.sums.nats.sum() / measured.sums.weight.sum()))
    return [round(float(np.mean(losses[i : i + WINDOW])), 3) for i in range(0, bench.steps, WINDOW)]


def main(bench: Bench) -> None:
    results, specs = {}, model.weights(_config(bench))
    for rate in bench.rates:
        settings = Optimizer(learning_rate=rate, warmup=40, decay_fraction=1e-6)
        adam = partial(optax.adamw, b2=settings.adam_betas[1], weight_decay=settings.weight_decay)
        plain = optax.chain(optax.clip_by_global_norm(settings.clip), adam(schedule(settings, bench.steps)))
        for name, transform in (("adam", plain), ("muon", optimizer(settings, bench.steps, specs))):
            results[f"{name} {rate:g}"] = curve(bench, transform)
            print(f"{name} {rate:g}: {results[f'{name} {rate:g}']}", flush=True)
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    write_json(
        Path(__file__).parent / "results" / "optimizer.json",
        {"source": bench.source, "nats": results, "device": device},
    )


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
