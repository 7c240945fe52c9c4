"""Muon against Adam on one task, reading handwritten numbers, from random weights, with the same data and steps.

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
from alhena.tokens.examples.loader import Batches
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.train.optimizer import Optimizer, optimizer, schedule
from alhena.train.step import initial_state, train_step
from recipes import starter

WINDOW = 20


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")  # a run folder
    source: str = "digits"  # source of the documents
    steps: int = 160
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)


def _config(bench: Bench) -> config.Model:
    return starter.run().model(Encoder.load(bench.folder / "tokens").vocabulary)


def loss_curve(bench: Bench, transform: optax.GradientTransformation) -> list[float]:
    """Trains from random weights; returns the mean loss of each window of steps."""
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
    for rate in bench.learning_rates:
        settings = Optimizer(learning_rate=rate, warmup=40, decay_fraction=1e-6)
        adam = partial(optax.adamw, b2=settings.adam_betas[1], weight_decay=settings.weight_decay)
        clipped = optax.chain(
            optax.clip_by_global_norm(settings.gradient_clip_norm), adam(schedule(settings, bench.steps))
        )
        for name, transform in (("adam", clipped), ("muon", optimizer(settings, bench.steps, specs))):
            results[f"{name} {rate:g}"] = loss_curve(bench, transform)
            print(f"{name} {rate:g}: {results[f'{name} {rate:g}']}", flush=True)
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    out = Path(__file__).parent / "results" / "optimizer.json"
    write_json(out, {"source": bench.source, "nats": results, "device": device})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
