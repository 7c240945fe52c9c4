"""Scaling ladder: small models of several sizes, each trained with several budgets on a run's tokens, to fit a scaling law.

             N₁   N₂   N₃   N₄
    C₁       ●────●────●────●        one row has equal FLOPs (IsoFLOP): larger models train on fewer tokens
    C₂       ●────●────●────●        ─► RUN/scaling/: one folder per rung, law.json, scaling.png

A rung is the recipe's model with all widths scaled, trained in the recipe's phases in proportion, with the learning rate schedule
fitted to its length (Hoffmann et al. 2022: otherwise shorter runs look worse than they are). N counts all parameters, D all token
positions, 6·N·D the FLOPs. The loss is that of the validation split in nats per weighted token, averaged over sources by the mixture's
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from rich.table import Table

from alhena import plots
from alhena.files import read_json, write_json
from alhena.model import config, model
from alhena.scaling.laws import BESIROGLU, HOFFMANN, Rung, ScalingLaw, bootstrap, fit
from alhena.shapes import Float
from alhena.train.mixture import Phase, Training, open_examples
from alhena.train.monitoring.validation import validate
from alhena.train.trainer import Folders, fingerprint_of, train

LAW, RUNG = "law.json", "rung.json"
_MIN_STEPS = 20


def scaled(c: config.Model, factor: float) -> config.Model:
    """The configuration with all widths times ``factor``, rounded to valid multiples; layers and heads unchanged."""

    def scaled_to(size: int, multiple: int) -> int:
        return max(round(size * factor / multiple), 1) * multiple

    d = c.decoder
    head_dim = scaled_to(d.head_dim, 2)
    decoder = replace(d, head_dim=head_dim, width=scaled_to(d.width, 2 * d.heads), hidden=scaled_to(d.hidden, 8))
    encoders: dict[str, Any] = {
        name: replace(e, width=scaled_to(e.width, 4 * e.heads), hidden=scaled_to(e.hidden, 8))
        for name, e in (("vision", c.vision), ("audio", c.audio))
        if isinstance(e, config.Vision | config.Conformer)
    }
    return replace(c, decoder=decoder, **encoders)


def with_steps(t: Training, steps: int) -> Training:
    """The training in ``steps`` steps, phases in proportion; only the last step is saved."""
    if steps < _MIN_STEPS:
        raise ValueError(
            f"a rung of {steps} steps of {t.shape.batch_size} × {t.shape.tokens} tokens is too short to measure "
            f"(at least {_MIN_STEPS}): raise --flops or leave out the largest of --factors"
        )
    ends = np.round(np.cumsum([phase.steps for phase in t.phases]) / t.steps * steps).astype(int)
    phases = [Phase(int(n), p.weights) for n, p in zip(np.diff(ends, prepend=0), t.phases, strict=True) if n]
    optimizer = replace(t.optimizer, warmup=min(t.optimizer.warmup, steps // 5))
    return replace(t, phases=tuple(phases), optimizer=optimizer, save_every=steps, evaluate_every=steps + 1)


@dataclass(frozen=True)
class Grid:
    """The rungs: one for each budget, in training FLOPs, and each factor of the recipe's widths."""

    budgets: Sequence[float]
    factors: Sequence[float]


def train_ladder(c: config.Model, t: Training, folders: Folders, grid: Grid) -> list[Rung]:
    """Trains every rung, or reads the result of one that is finished."""
    plans = []
    for factor in grid.factors:
        rung_config = scaled(c, factor)
        n = model.count(model.weights(rung_config))
        steps = {budget: round(budget / (6 * n * t.shape.batch_size * t.shape.tokens)) for budget in grid.budgets}
        plans += [(budget, n, rung_config, with_steps(t, steps[budget])) for budget in grid.budgets]
    rungs = []
    for budget, n, rung_config, training in sorted(plans, key=lambda plan: plan[:2]):
        rung_folders = replace(folders, out=folders.out / f"{budget:.2e}-{n}-{t.shape.batch_size}x{t.shape.tokens}")
        fingerprint = fingerprint_of(rung_config, training, rung_folders)
        if not _is_trained(rung_folders.out / RUNG, fingerprint):
            nats = _train_rung(rung_config, training, rung_folders, f"{budget:.1e} FLOPs, {n:,} parameters")
            loss = _mixture_loss(nats, t.phases[-1].weights, folders)
            facts = {"training": fingerprint, "rung": Rung(n, training.tokens, loss)._asdict(), "validation": nats}
            write_json(rung_folders.out / RUNG, facts)
        rungs.append(Rung(**read_json(rung_folders.out / RUNG)["rung"]))
    return rungs


def _is_trained(path: Path, fingerprint: str) -> bool:
    """Whether the rung of exactly these settings and data is finished."""
    return path.exists() and read_json(path).get("training") == fingerprint


def _train_rung(c: config.Model, t: Training, folders: Folders, title: str) -> dict[str, float]:
    """Trains a rung and returns its validation losses by source."""
    assert folders.validation is not None
    params = train(model.init(jax.random.key(t.seed), c), c, t, replace(folders, validation=None), title)
    return validate(params, c, open_examples(folders.validation), t.shape)


def _mixture_loss(nats: Mapping[str, float], weights: Mapping[str, float], folders: Folders) -> float:
    """The mean of losses by source, weighted by the mixture."""
    shares = {source: weights[source] for source in nats if weights.get(source)}
    if not shares:
        raise ValueError(f"{folders.validation}: no examples of the mixture's sources ({', '.join(sorted(weights))})")
    return sum(weight * nats[source] for source, weight in shares.items()) / sum(shares.values())


def fit_ladder(rungs: Sequence[Rung], out: Path, times: int = 100) -> ScalingLaw:
    """Fits the law and ``times`` bootstrap laws, and writes law.json and scaling.png."""
    law = fit(rungs)
    laws = bootstrap(rungs, law, times)
    content = {
        "law": asdict(law),
        "bootstrap": [asdict(sample) for sample in laws],
        "rungs": [r._asdict() for r in rungs],
    }
    write_json(out / LAW, content)
    plot_law(rungs, law, laws, out / "scaling.png")
    return law


def interval_95(values: Sequence[Any]) -> tuple[Any, Any]:
    """The 2.5th and 97.5th percentiles over the first dimension."""
    low, high = np.percentile(np.array(values, float), [2.5, 97.5], axis=0)
    return low, high


def parabola_minimum(sizes: Any, losses: Any) -> tuple[float, float] | None:
    """Size and loss at the minimum of a parabola fitted to one budget's rungs over log N (Hoffmann's approach 2).

    None when the minimum is outside the trained sizes.

    >>> parabola_minimum([1e5, 2e5, 4e5], [2.0, 1.9, 2.0])
    (200000.0, 1.9)
    >>> parabola_minimum([1e5, 2e5, 4e5], [1.5, 1.7, 2.0]) is None
    True
    """
    if len(sizes) < 3:
        return None
    a, b, c = np.polyfit(np.log(sizes), losses, 2)
    if a <= 0:
        return None
    size = float(np.exp(-b / (2 * a)))
    minimum = float(round(size)), round(float(c - b * b / (4 * a)), 4)
    return minimum if min(sizes) < size < max(sizes) else None


def plot_law(rungs: Sequence[Rung], law: ScalingLaw, laws: Sequence[ScalingLaw], path: Path) -> None:
    """Left: loss by size at each budget, measured and fitted. Right: compute-optimal size by budget. Bands are 95 % intervals.

    A diamond is the minimum of a budget's parabola, if its rungs enclose it.
    """
    figure = plots.figure(10.8, 4.4)
    left, right = figure.subplots(1, 2)
    rungs = sorted(rungs, key=lambda r: r.parameters * r.tokens)
    flops = np.array([6 * r.parameters * r.tokens for r in rungs])
    sizes = np.geomspace(0.7 * min(r.parameters for r in rungs), 1.4 * max(r.parameters for r in rungs), 80)
    # FLOPs of one budget differ a little, since steps are integers.
    budgets = np.split(np.arange(len(rungs)), 1 + np.flatnonzero(np.diff(np.log(flops)) > 0.15))
    for k, members in enumerate(budgets):
        color = plots.COLORS[k % len(plots.COLORS)]
        budget = float(np.mean(flops[members]))
        tokens = budget / (6 * sizes)
        bounds = interval_95([sample.loss(sizes, tokens) for sample in laws])
        left.fill_between(sizes, *bounds, color=color, alpha=0.15, linewidth=0)
        left.plot(sizes, law.loss(sizes, tokens), color=color, label=f"{budget:.1e} FLOPs")
        points = np.array([(rungs[i].parameters, rungs[i].loss) for i in members]).T
        left.plot(*points, "o", color=color, markersize=5)
        minimum = parabola_minimum(*points)
        if minimum:
            left.plot(*minimum, "D", markerfacecolor="none", markeredgecolor=color, markersize=9)
            right.plot(budget, minimum[0], "D", markerfacecolor="none", markeredgecolor=color)
    left.set(xscale="log", xlabel="parameters N", ylabel="validation nats per token")
    ticks = sorted({r.parameters for r in rungs})
    left.set_xticks(ticks, [f"{n / 1e6:.2g} M" for n in ticks])
    left.xaxis.set_minor_locator(NullLocator())
    left.legend(fontsize=8, frameon=False)
    _plot_optimum(right, law, laws, flops)
    figure.suptitle(f"{law}   ({len(rungs)} models)", fontsize=10)
    plots.save(figure, path)


def _plot_optimum(axes: Axes, law: ScalingLaw, laws: Sequence[ScalingLaw], flops: Float[np.ndarray, " rungs"]) -> None:
    budgets = np.geomspace(flops.min() / 2, flops.max() * 1000, 60)
    axes.fill_between(
        budgets, *interval_95([sample.optimum(budgets)[0] for sample in laws]), color=plots.BLUE, alpha=0.2, linewidth=0
    )
    axes.plot(budgets, law.optimum(budgets)[0], color=plots.BLUE, label="this ladder")
    axes.plot(budgets, HOFFMANN.optimum(budgets)[0], color=plots.GRAY, linestyle="--", label="Hoffmann et al. 2022")
    axes.plot(budgets, BESIROGLU.optimum(budgets)[0], color=plots.GRAY, linestyle=":", label="Besiroglu et al. 2024")
    axes.axvspan(flops.min(), flops.max(), color=plots.PALE, zorder=0)
    axes.set(
        xscale="log", yscale="log", xlabel="training FLOPs C (shaded: measured)", ylabel="compute-optimal parameters"
    )
    axes.legend(fontsize=8, frameon=False)


def suggest(flops: float, served: float, folder: Path | None) -> Table:
    """Table of N and D by each available law: compute-optimal, and cheapest including ``served`` tokens of inference.

    ``folder`` is the RUN/scaling of a fitted ladder; None: published laws only.
    """
    laws: dict[str, ScalingLaw] = {"Hoffmann et al. 2022": HOFFMANN, "Besiroglu et al. 2024": BESIROGLU}
    samples: list[ScalingLaw] = []
    if folder is not None:
        content = read_json(folder / LAW)
        laws = {"this run's ladder": ScalingLaw(**content["law"])} | laws
        samples = [ScalingLaw(**sample) for sample in content["bootstrap"]]
    table = Table("law", "minimizes", "parameters", "tokens", "tokens per parameter", "FLOPs", "loss", box=None)
    for name, law in laws.items():
        for objective, (n, d) in (
            ("training FLOPs", law.optimum(flops)),
            ("with inference", law.inference_optimum(flops, served)),
        ):
            cells = [f"{n:.3g}", f"{d:.3g}", f"{d / n:.0f}", f"{6 * n * d:.2e}", f"{law.loss(n, d):.3f}"]
            table.add_row(name, objective, *cells)
        if name.startswith("this"):
            low, high = interval_95([sample.optimum(flops)[0] for sample in samples])
            low_loss, high_loss = interval_95([sample.loss(*sample.optimum(flops)) for sample in samples])
            table.add_row(
                "", "95 % interval", f"{low:.2g}–{high:.2g}", "", "", "", f"{low_loss:.2f}–{high_loss:.2f}", style="dim"
            )
    return table
