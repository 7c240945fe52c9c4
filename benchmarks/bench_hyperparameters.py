"""Is each hyperparameter of the optimizer worth having? Short trainings of the starter, one thing changed at a time, the same documents for all.

    python benchmarks/bench_hyperparameters.py [runs/starter]          needs the run's encoded corpus (alhena tokenize); finished ones are kept

Prints and writes the validation loss (nats a weighted token, mean over sources by the mixture's weights) after the same number of token
places: benchmarks/results/hyperparameters.json, and docs/hyperparameters.png beside it. Two seeds of the recipe as it is give the noise.
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
from alhena.train.optimizer import Optimizer, optimizer, schedule
from alhena.train.step import initial_state, train_step
from alhena.train.validation import validate
from recipes import starter

EMA = 0.98  # a mean over about 50 steps
HERE = Path(__file__).parent
Make = Callable[[Optimizer, int, Any], optax.GradientTransformation]


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")
    steps: int = 240  # of 16 rows
    out: Path = HERE / "results" / "hyperparameters.json"
    plot: Path = HERE.parent / "docs" / "hyperparameters.png"


def adamw(rate: float) -> Make:
    """All weights by AdamW; decay on matrices alone."""

    def make(s: Optimizer, steps: int, specs: Any) -> optax.GradientTransformation:
        decayed = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
        how = optax.adamw(
            schedule(replace(s, learning_rate=rate), steps), *s.adam_betas, weight_decay=s.weight_decay, mask=decayed
        )
        return optax.chain(optax.clip_by_global_norm(s.gradient_clip_norm), how)

    return make


def embedding_rate(factor: float) -> Make:
    def make(s: Optimizer, steps: int, specs: Any) -> optax.GradientTransformation:
        slower = optax.stateless(lambda updates, _: replace(updates, embedding=factor * updates.embedding))
        return optax.chain(optimizer(s, steps, specs), slower)

    return make


@dataclass(frozen=True)
class Variant:
    change: dict[str, Any] = field(default_factory=dict)  # fields of Optimizer
    make: Make = optimizer
    seed: int = 0
    ramp: bool = False  # half of the rows for the first half of the token places


VARIANTS = {
    "the recipe": Variant(),
    "the recipe, another seed": Variant(seed=1),
    "AdamW, rate 1e-3": Variant(make=adamw(1e-3)),
    "AdamW, rate 3e-3": Variant(make=adamw(3e-3)),
    "cosine": Variant({"schedule": "cosine"}),
    "no weight decay": Variant({"weight_decay": 0.0}),
    "rows: 8, then 16": Variant(ramp=True),
    "embedding's rate halved": Variant(make=embedding_rate(0.5)),
    "embedding's rate doubled": Variant(make=embedding_rate(2.0)),
    "rate halved": Variant({"rate": 2.5e-3}),
    "no clipping": Variant({"clip": 1e9}),
}


def _trainings(bench: Bench, v: Variant) -> list[Training]:
    """One after the other: the recipe's phases in proportion, in one piece or, with a ramp, two."""
    t = starter.run().pretrain
    ends = np.round(np.cumsum([0] + [p.steps for p in t.phases]) / t.steps * bench.steps).astype(int)
    phases = [Phase(int(n), p.weights) for n, p in zip(np.diff(ends), t.phases, strict=True)]
    whole = replace(t, phases=tuple(phases), seed=v.seed, optimizer=replace(t.optimizer, warmup=30, **v.change))
    if not v.ramp:
        return [whole]
    half, room = bench.steps // 2, [min(p.steps, bench.steps // 2) for p in phases]
    early = [Phase(2 * n, p.weights) for n, p in zip((room[0], half - room[0]), phases, strict=True) if n]
    late = [
        Phase(p.steps - n, p.weights) for n, p in zip((room[0], half - room[0]), phases, strict=True) if p.steps > n
    ]
    small = replace(whole.shape, batch_size=whole.shape.batch_size // 2)
    return [replace(whole, phases=tuple(early), shape=small), replace(whole, phases=tuple(late), seed=v.seed + 7)]


def measure(bench: Bench, v: Variant) -> dict[str, Any]:
    tokens, trainings = bench.folder / "tokens", _trainings(bench, v)
    c = starter.run().model(Encoder.load(tokens).vocabulary)
    transform = v.make(trainings[0].optimizer, sum(t.steps for t in trainings), model.weights(c))
    state, began = initial_state(model.init(jax.random.key(v.seed), c), c, transform), time.monotonic()
    mean = jax.tree.map(lambda x: x.copy(), state.params)
    average = jax.jit(lambda mean, params: jax.tree.map(lambda m, p: EMA * m + (1 - EMA) * p, mean, params))
    for t in trainings:
        mixture = Mixture(open_examples(tokens / "train"), t)
        for _ in range(t.steps):
            state, _ = train_step(state, mixture.next(), c, transform)
            mean = average(mean, state.params)
    weights = trainings[-1].phases[-1].weights
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began)}
    for name, params in (("loss", state.params), ("loss_of_the_mean", mean)):
        nats = validate(params, c, open_examples(tokens / "validation"), starter.SHAPE)
        shares = {source: weights[source] for source in nats if weights.get(source)}
        found[name] = round(sum(w * nats[s] for s, w in shares.items()) / sum(shares.values()), 4)
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """A dot for each variant; the band is what another seed changes."""
    figure = plots.figure(7.6, 0.36 * len(found) + 1.2)
    axes, names = figure.subplots(), list(found)[::-1]
    recipe = found["the recipe"]["loss"]
    noise = abs(found.get("the recipe, another seed", found["the recipe"])["loss"] - recipe)
    axes.axvspan(recipe - noise, recipe + noise, color=plots.GREEN, alpha=0.15, linewidth=0)
    for y, name in enumerate(names):
        axes.plot(found[name]["loss"], y, "o", color=plots.BLUE if name.startswith("the recipe") else plots.SLATE)
        axes.plot(found[name]["loss_of_the_mean"], y, "o", markerfacecolor="none", color="#999999")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("validation nats a token\nhollow: of the weights' moving mean; band: another seed")
    axes.grid(axis="x", alpha=0.3)
    plots.save(figure, path)


def main(bench: Bench) -> None:
    kept: dict[str, Any] = read_json(bench.out) if bench.out.exists() else {"steps": bench.steps, "variants": {}}
    if kept["steps"] != bench.steps:
        raise SystemExit(
            f"{bench.out} has trainings of {kept['steps']} steps: delete it, or choose --steps {kept['steps']}"
        )
    kept["device"] = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    for name, variant in VARIANTS.items():
        if name not in kept["variants"]:
            kept["variants"][name] = measure(bench, variant)
            write_json(bench.out, kept)
        print(name, kept["variants"][name], flush=True)
    draw({name: kept["variants"][name] for name in VARIANTS}, bench.plot)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
