"""The ladder: small models of several sizes, each trained at several budgets on a run's tokens, to fit a scaling law to.

             N₁   N₂   N₃   N₄
    C₁       ●────●────●────●        along a row all cost the same (IsoFLOP): the larger, the shorter
    C₂       ●────●────●────●        ─► RUN/scaling/: one folder a rung, law.json, scaling.png

A rung is the recipe's model with all widths scaled, trained by the recipe's phases in proportion, its learning rate decayed to the
end as in a whole run (Hoffmann et al. 2022: else every model but the longest looks worse than it is). N counts all parameters and D
all token places, 6·N·D the operations; the loss is the validation split's, in nats per weighted token, the mean over its sources
by the mixture's weights.
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
from alhena.train.mixture import Phase, Training, open_examples
from alhena.train.trainer import Folders, fingerprint_of, train
from alhena.train.validation import validate

LAW, RUNG = "law.json", "rung.json"
_LEAST_STEPS = 20


def scaled(c: config.Model, factor: float) -> config.Model:
    """All widths times ``factor``, to multiples that heads can share; layers and heads stay."""

    def even(size: int, of: int) -> int:
        return max(round(size * factor / of), 1) * of

    d = c.decoder
    head = even(d.head_dim, 2)
    decoder = replace(d, head_dim=head, width=even(d.width, 2 * d.heads), hidden=even(d.hidden, 8))
    encoders: dict[str, Any] = {
        name: replace(e, width=even(e.width, 4 * e.heads), hidden=even(e.hidden, 8))
        for name, e in (("vision", c.vision), ("audio", c.audio))
        if e is not None
    }
    return replace(c, decoder=decoder, **encoders)


def with_steps(t: Training, steps: int) -> Training:
    """The same phases in proportion, in ``steps`` steps; no checkpoint but the last."""
    if steps < _LEAST_STEPS:
        raise ValueError(
            f"a rung of {steps} steps of {t.shape.batch_size} × {t.shape.tokens} tokens is too short to measure "
            f"(at least {_LEAST_STEPS}): raise --flops or leave out the largest of --factors"
        )
    ends = np.round(np.cumsum([phase.steps for phase in t.phases]) / t.steps * steps).astype(int)
    phases = [Phase(int(n), p.weights) for n, p in zip(np.diff(ends, prepend=0), t.phases, strict=True) if n]
    warm = replace(t.optimizer, warmup=min(t.optimizer.warmup, steps // 5))
    return replace(t, phases=tuple(phases), optimizer=warm, save_every=steps, evaluate_every=steps + 1)


@dataclass(frozen=True)
class Grid:
    """What rungs there are: one for each budget in training FLOPs and each factor of the recipe's widths."""

    budgets: Sequence[float]
    factors: Sequence[float]


def train_ladder(c: config.Model, t: Training, folders: Folders, grid: Grid) -> list[Rung]:
    """Trains every rung (or reads it, when it has been trained before) and returns them."""
    plans = []
    for factor in grid.factors:
        small = scaled(c, factor)
        n = model.count(model.weights(small))
        steps = {budget: round(budget / (6 * n * t.shape.batch_size * t.shape.tokens)) for budget in grid.budgets}
        plans += [(budget, n, small, with_steps(t, steps[budget])) for budget in grid.budgets]
    rungs = []
    for budget, n, small, short in sorted(plans, key=lambda plan: plan[:2]):
        own = replace(folders, out=folders.out / f"{budget:.2e}-{n}-{t.shape.batch_size}x{t.shape.tokens}")
        training = fingerprint_of(small, short, own)
        if not _is_trained(own.out / RUNG, training):
            nats = _train_rung(small, short, own, f"{budget:.1e} FLOPs, {n:,} parameters")
            loss = _mixed(nats, t.phases[-1].weights, folders)
            tokens = short.steps * short.shape.batch_size * short.shape.tokens
            facts = {"training": training, "rung": Rung(n, tokens, loss)._asdict(), "validation": nats}
            write_json(own.out / RUNG, facts)
        rungs.append(Rung(**read_json(own.out / RUNG)["rung"]))
    return rungs


def _is_trained(path: Path, training: str) -> bool:
    """Whether the rung of exactly these settings and data is done. That of others is not used: training refuses its checkpoints."""
    return path.exists() and read_json(path).get("training") == training


def _train_rung(c: config.Model, t: Training, folders: Folders, title: str) -> dict[str, float]:
    """Validation losses by source after the training of a rung."""
    assert folders.validation is not None
    params = train(model.init(jax.random.key(t.seed), c), c, t, replace(folders, validation=None), title)
    return validate(params, c, open_examples(folders.validation), t.shape)


def _mixed(nats: Mapping[str, float], weights: Mapping[str, float], folders: Folders) -> float:
    """The mean of losses by source, by the mixture's weights."""
    shares = {source: weights[source] for source in nats if weights.get(source)}
    if not shares:
        raise ValueError(f"{folders.validation}: no examples of the mixture's sources ({', '.join(sorted(weights))})")
    return sum(share * nats[source] for source, share in shares.items()) / sum(shares.values())


def fit_ladder(rungs: Sequence[Rung], out: Path, times: int = 100) -> ScalingLaw:
    """Fits the law and its bootstrap, and writes law.json and scaling.png."""
    law = fit(rungs)
    laws = bootstrap(rungs, law, times)
    content = {"law": asdict(law), "bootstrap": [asdict(one) for one in laws], "rungs": [r._asdict() for r in rungs]}
    write_json(out / LAW, content)
    plot_law(rungs, law, laws, out / "scaling.png")
    return law


def interval_95(values: Sequence[Any]) -> tuple[Any, Any]:
    """The middle 95 %."""
    low, high = np.percentile(np.array(values, float), [2.5, 97.5], axis=0)
    return low, high


def parabola_minimum(sizes: Any, losses: Any) -> tuple[float, float] | None:
    """Size and loss of the least of the parabola through a budget's rungs by log N (Hoffmann's approach 2).

    None when it is not among the sizes that were trained: then the law's optimum is a guess beyond them.

    >>> bottom([1e5, 2e5, 4e5], [2.0, 1.9, 2.0])
    (200000.0, 1.9)
    >>> bottom([1e5, 2e5, 4e5], [1.5, 1.7, 2.0]) is None
    True
    """
    if len(sizes) < 3:
        return None
    a, b, c = np.polyfit(np.log(sizes), losses, 2)
    if a <= 0:
        return None
    size = float(np.exp(-b / (2 * a)))
    found = float(round(size)), round(float(c - b * b / (4 * a)), 4)
    return found if min(sizes) < size < max(sizes) else None


def plot_law(rungs: Sequence[Rung], law: ScalingLaw, laws: Sequence[ScalingLaw], path: Path) -> None:
    """Left: loss by size at each budget, points over the fitted curves. Right: the best size by budget. Bands hold 95 %.

    A diamond is the bottom of a budget's own parabola, if its rungs enclose it.
    """
    figure = plots.figure(10.8, 4.4)
    left, right = figure.subplots(1, 2)
    rungs = sorted(rungs, key=lambda r: r.parameters * r.tokens)
    flops = np.array([6 * r.parameters * r.tokens for r in rungs])
    sizes = np.geomspace(0.7 * min(r.parameters for r in rungs), 1.4 * max(r.parameters for r in rungs), 80)
    budgets = np.split(np.arange(len(rungs)), 1 + np.flatnonzero(np.diff(np.log(flops)) > 0.15))  # steps are whole
    for k, mine in enumerate(budgets):
        color = plots.COLORS[k % len(plots.COLORS)]
        budget = float(np.mean(flops[mine]))
        lengths = budget / (6 * sizes)
        bounds = interval_95([one.loss(sizes, lengths) for one in laws])
        left.fill_between(sizes, *bounds, color=color, alpha=0.15, linewidth=0)
        left.plot(sizes, law.loss(sizes, lengths), color=color, label=f"{budget:.1e} FLOPs")
        points = np.array([(rungs[i].parameters, rungs[i].loss) for i in mine]).T
        left.plot(*points, "o", color=color, markersize=5)
        least = parabola_minimum(*points)
        if least:
            left.plot(*least, "D", markerfacecolor="none", markeredgecolor=color, markersize=9)
            right.plot(budget, least[0], "D", markerfacecolor="none", markeredgecolor=color)
    left.set(xscale="log", xlabel="parameters N", ylabel="validation nats per token")
    ticks = sorted({r.parameters for r in rungs})
    left.set_xticks(ticks, [f"{n / 1e6:.2g} M" for n in ticks])
    left.xaxis.set_minor_locator(NullLocator())
    left.legend(fontsize=8, frameon=False)
    _draw_optimum(right, law, laws, flops)
    figure.suptitle(f"{law}   ({len(rungs)} models)", fontsize=10)
    plots.save(figure, path)


def _draw_optimum(axes: Axes, law: ScalingLaw, laws: Sequence[ScalingLaw], flops: np.ndarray) -> None:
    budgets = np.geomspace(flops.min() / 2, flops.max() * 1000, 60)
    axes.fill_between(
        budgets, *interval_95([one.optimum(budgets)[0] for one in laws]), color=plots.BLUE, alpha=0.2, linewidth=0
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
    """Compute-optimal N and D by each law at hand, and a smaller, longer trained member that serves ``served`` tokens cheapest."""
    laws: dict[str, ScalingLaw] = {"Hoffmann et al. 2022": HOFFMANN, "Besiroglu et al. 2024": BESIROGLU}
    bands: list[ScalingLaw] = []
    if folder is not None:
        content = read_json(folder / LAW)
        laws = {"this run's ladder": ScalingLaw(**content["law"])} | laws
        bands = [ScalingLaw(**one) for one in content["bootstrap"]]
    table = Table("law", "made for", "parameters", "tokens", "per parameter", "FLOPs", "loss", box=None)
    for name, law in laws.items():
        for use, (n, d) in (("training", law.optimum(flops)), ("use", law.inference_optimum(flops, served))):
            cells = [f"{n:.3g}", f"{d:.3g}", f"{d / n:.0f}", f"{6 * n * d:.2e}", f"{law.loss(n, d):.3f}"]
            table.add_row(name, use, *cells)
        if name.startswith("this"):
            low, high = interval_95([one.optimum(flops)[0] for one in bands])
            lo, hi = interval_95([one.loss(*one.optimum(flops)) for one in bands])
            table.add_row("", "95 % of it", f"{low:.2g}–{high:.2g}", "", "", "", f"{lo:.2f}–{hi:.2f}", style="dim")
    return table
