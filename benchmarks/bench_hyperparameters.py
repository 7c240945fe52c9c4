"""Ablation of the optimizer's hyperparameters: short trainings of the starter, one change at a time, on the same documents.

    python benchmarks/bench_hyperparameters.py [runs/starter]          needs the run's encoded corpus (alhena tokenize)

Prints the validation loss (nats per weighted token, mean over sources by the mixture's weights) after the same number of tokens. Writes
benchmarks/results/hyperparameters.json and docs/hyperparameters.png; variants that are in the JSON file are not measured again. Two seeds
of the unchanged recipe give the noise.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import tyro

from alhena import plots
from alhena.files import read_json, write_json
from alhena.model import model
from alhena.tokens.encode import Encoder
from alhena.train.mixture import Mixture, Phase, Training, open_examples
from alhena.train.monitoring.validation import validate
from alhena.train.optimizer import Optimizer, optimizer, schedule
from alhena.train.step import initial_state, train_step
from recipes import starter

# Decay of the moving average of the weights: over about 50 steps.
EMA = 0.98
HERE = Path(__file__).parent
Make = Callable[[Optimizer, int, Any], optax.GradientTransformation]


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")  # a run folder
    steps: int = 240  # of the recipe's batch size, 16
    out: Path = HERE / "results" / "hyperparameters.json"
    plot: Path = HERE.parent / "docs" / "hyperparameters.png"


def adamw(learning_rate: float) -> Make:
    """AdamW for all weights; weight decay on matrices only."""

    def make(s: Optimizer, steps: int, specs: Any) -> optax.GradientTransformation:
        rates = schedule(replace(s, learning_rate=learning_rate), steps)
        is_matrix = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
        transform = optax.adamw(rates, *s.adam_betas, weight_decay=s.weight_decay, mask=is_matrix)
        return optax.chain(optax.clip_by_global_norm(s.gradient_clip_norm), transform)

    return make


def scaled_embedding_updates(factor: float) -> Make:
    """The recipe's optimizer with another learning rate for the embedding."""

    def make(s: Optimizer, steps: int, specs: Any) -> optax.GradientTransformation:
        scale = optax.stateless(lambda updates, _: replace(updates, embedding=factor * updates.embedding))
        return optax.chain(optimizer(s, steps, specs), scale)

    return make


@dataclass(frozen=True)
class Variant:
    change: dict[str, Any] = field(default_factory=dict)  # fields of Optimizer
    make: Make = optimizer
    seed: int = 0
    ramp: bool = False  # half of the batch size for the first half of the tokens


VARIANTS = {
    "the recipe": Variant(),
    "the recipe, another seed": Variant(seed=1),
    "AdamW, learning rate 1e-3": Variant(make=adamw(1e-3)),
    "AdamW, learning rate 3e-3": Variant(make=adamw(3e-3)),
    "cosine schedule": Variant({"schedule": "cosine"}),
    "no weight decay": Variant({"weight_decay": 0.0}),
    "batch size 8, then 16": Variant(ramp=True),
    "learning rate of the embedding halved": Variant(make=scaled_embedding_updates(0.5)),
    "learning rate of the embedding doubled": Variant(make=scaled_embedding_updates(2.0)),
    "learning rate halved": Variant({"learning_rate": 2.5e-3}),
    "no gradient clipping": Variant({"gradient_clip_norm": 1e9}),
}


def _trainings(bench: Bench, v: Variant) -> list[Training]:
    """The recipe's phases, shortened in proportion: one training, or with a ramp two, one for each batch size."""
    t = starter.run().pretrain
    ends = np.round(np.cumsum([0] + [p.steps for p in t.phases]) / t.steps * bench.steps).astype(int)
    phases = [Phase(int(n), p.weights) for n, p in zip(np.diff(ends), t.phases, strict=True)]
    full = replace(t, phases=tuple(phases), seed=v.seed, optimizer=replace(t.optimizer, warmup=30, **v.change))
    if not v.ramp:
        return [full]
    half = bench.steps // 2
    first = min(phases[0].steps, half)
    early = [Phase(2 * n, p.weights) for n, p in zip((first, half - first), phases, strict=True) if n]
    late = [Phase(p.steps - n, p.weights) for n, p in zip((first, half - first), phases, strict=True) if p.steps > n]
    small = replace(full.shape, batch_size=full.shape.batch_size // 2)
    return [replace(full, phases=tuple(early), shape=small), replace(full, phases=tuple(late), seed=v.seed + 7)]


def measure(bench: Bench, v: Variant) -> dict[str, Any]:
    """Trains one variant; returns seconds and the losses of the last weights and of their moving average."""
    tokens, trainings = bench.folder / "tokens", _trainings(bench, v)
    c = starter.run().model(Encoder.load(tokens).vocabulary)
    transform = v.make(trainings[0].optimizer, sum(t.steps for t in trainings), model.weights(c))
    state, began = initial_state(model.init(jax.random.key(v.seed), c), c, transform), time.monotonic()
    average = jax.tree.map(lambda x: x.copy(), state.params)
    update = jax.jit(lambda average, params: jax.tree.map(lambda a, p: EMA * a + (1 - EMA) * p, average, params))
    for t in trainings:
        mixture = Mixture(open_examples(tokens / "train"), t)
        for _ in range(t.steps):
            state, _ = train_step(state, mixture.next(), c, transform)
            average = update(average, state.params)
    weights = trainings[-1].phases[-1].weights
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began)}
    for name, params in (("loss", state.params), ("loss_of_the_average", average)):
        nats = validate(params, c, open_examples(tokens / "validation"), starter.SHAPE)
        shares = {source: weights[source] for source in nats if weights.get(source)}
        result[name] = round(sum(w * nats[s] for s, w in shares.items()) / sum(shares.values()), 4)
    return result


def plot_losses(results: dict[str, Any], path: Path) -> None:
    """A dot for each variant; the band is the difference between two seeds."""
    figure = plots.figure(7.6, 0.36 * len(results) + 1.2)
    axes, names = figure.subplots(), list(results)[::-1]
    recipe = results["the recipe"]["loss"]
    noise = abs(results.get("the recipe, another seed", results["the recipe"])["loss"] - recipe)
    axes.axvspan(recipe - noise, recipe + noise, color=plots.GREEN, alpha=0.15, linewidth=0)
    for y, name in enumerate(names):
        axes.plot(results[name]["loss"], y, "o", color=plots.BLUE if name.startswith("the recipe") else plots.SLATE)
        axes.plot(results[name]["loss_of_the_average"], y, "o", markerfacecolor="none", color="#999999")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("validation loss (nats per token)\nhollow: moving average of the weights; band: another seed")
    axes.grid(axis="x", alpha=0.3)
    plots.save(figure, path)


def main(bench: Bench) -> None:
    results: dict[str, Any] = read_json(bench.out) if bench.out.exists() else {"steps": bench.steps, "variants": {}}
    if results["steps"] != bench.steps:
        raise SystemExit(
            f"{bench.out} has trainings of {results['steps']} steps: delete it, or choose --steps {results['steps']}"
        )
    results["device"] = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    variants = results["variants"]
    for name, variant in VARIANTS.items():
        if name not in variants:
            variants[name] = measure(bench, variant)
            write_json(bench.out, results)
        print(name, variants[name], flush=True)
    plot_losses({name: variants[name] for name in VARIANTS}, bench.plot)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
