"""The figure of the routed protocol, as in the appendix of the Gemini 1.0 report: greedy, majority of k and routed, by k."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alhena import plots
from alhena.evaluate.statistics import wilson

SERIES = {
    "greedy": ("greedy, without chain of thought", plots.SLATE),
    "majority": ("chain of thought, majority of k", plots.ORANGE),
    "routed": ("chain of thought, routed by uncertainty", plots.BLUE),
}


def plot_routing(result: Mapping[str, Any], path: Path) -> None:
    """Grouped bars by k with 95 % intervals; below each k its threshold."""
    rows, items = result["by_k"], result["items"]
    figure = plots.figure(7.2, 4.0)
    axes = figure.subplots()
    for n, (name, (label, color)) in enumerate(SERIES.items()):
        values = [row[name] for row in rows]
        bounds = [wilson(value / 100, items) for value in values]
        errors = [
            [max(0.0, value - 100 * low) for value, (low, _) in zip(values, bounds, strict=True)],
            [max(0.0, 100 * high - value) for value, (_, high) in zip(values, bounds, strict=True)],
        ]
        x = [i + 0.27 * (n - 1) for i in range(len(rows))]
        axes.bar(
            x, values, 0.25, color=color, label=label, yerr=errors, error_kw={"linewidth": 0.8, "ecolor": plots.BLACK}
        )
    axes.set_xticks(range(len(rows)), [f"k = {row['k']}\nτ = {row['threshold']:.2f}" for row in rows])
    axes.axhline(result["chance"], color=plots.BLACK, linewidth=0.8, linestyle=":")
    axes.set_ylabel(f"{result['metric']}, %")
    axes.set_title(f"{result['task']}, {result['model']}, n = {items}; dotted: chance", fontsize=10)
    # Room for the legend above the bars.
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(fontsize=8, loc="upper left")
    plots.save(figure, path)
