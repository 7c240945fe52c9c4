"""Comparison of runs: a table of all trainings under some folders, and a plot of their losses by modality.

runs/starter/pretrain   training.json, metrics.jsonl, ledger.jsonl  ─► a row: model, steps, losses, goodput, warnings
runs/starter/tune       …                                           ─► a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from alhena import plots
from alhena.batch import Modality
from alhena.recovery.goodput import goodput
from alhena.train.monitoring.divergence import growing_norms
from alhena.train.monitoring.metrics import FACTS, FILE, read_facts, read_metrics

PLOT = "losses.png"  # in the folder of each stage that trains


@dataclass(frozen=True)
class TrainingRun:
    """The logs of one training: its facts, and its log lines of training and of validation."""

    folder: Path
    facts: dict[str, Any]
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    @property
    def warnings(self) -> list[str]:
        """The number of skipped steps, and the norms that grow at the end."""
        skipped = self.train[-1].get("skipped", 0)
        grown = [f"{name} ×{factor}" for name, factor in growing_norms(self.train, self.facts["warmup"]).items()]
        return [f"{skipped} skipped"] * (skipped > 0) + grown


def find_runs(folders: Sequence[Path]) -> list[TrainingRun]:
    """All trainings under the folders that have logged something. Raises ValueError when there is none."""
    out = []
    for path in sorted({path.parent for folder in folders for path in folder.rglob(FACTS)}):
        lines = read_metrics(path / FILE)
        train = [line for line in lines if line["kind"] == "train"]
        if train:
            validation = [line for line in lines if line["kind"] == "validation"]
            out.append(TrainingRun(path, read_facts(path / FACTS), train, validation))
    if not out:
        raise ValueError(
            f"{', '.join(map(str, folders))}: no training has logged anything under these folders ({FILE})"
        )
    return out


def _modalities(runs: Sequence[TrainingRun]) -> list[str]:
    names = [m.name.lower() for m in Modality]
    return [name for name in names if any(name in line["loss_by_modality"] for r in runs for line in r.train)]


def runs_table(runs: Sequence[TrainingRun]) -> Table:
    """One row per training: last losses in nats per token, by modality and of validation (mean over its sources)."""
    modalities = _modalities(runs)
    out = Table(box=None)
    out.add_column("training", overflow="fold", min_width=20)
    for name in (*modalities, "validation", "goodput"):
        out.add_column(name, justify="right", no_wrap=True)
    for r in runs:
        losses, measured = r.train[-1]["loss_by_modality"], goodput(r.folder)
        model = (
            f"{r.facts['title']}, {r.facts['parameters'] / 1e6:.2f} M, step {r.train[-1]['step']}/{r.facts['steps']}"
        )
        out.add_row(
            "\n".join([str(r.folder), f"[dim]{model}[/dim]", *(f"[yellow]{w}[/yellow]" for w in r.warnings)]),
            *[f"{losses[m]:.2f}" if m in losses else "–" for m in modalities],
            f"{_mean(r.validation[-1]):.2f}" if r.validation else "–",
            f"{100 * measured.share:.1f} %" if measured else "–",
        )
    return out


def plot_losses(runs: Sequence[TrainingRun], path: Path) -> None:
    """Training loss by modality and validation loss over steps, as PNG; one panel each, one color per training."""
    panels = [*_modalities(runs), *["validation"] * any(r.validation for r in runs)]
    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    figure = plots.figure(3.5 * columns, 2.7 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes, name in zip(grid, panels, strict=False):
        for k, r in enumerate(runs):
            steps, losses = _curve(r, name)
            style = "o-" if name == "validation" else "-"
            axes.plot(steps, losses, style, color=plots.COLORS[k % len(plots.COLORS)], linewidth=1.1, markersize=3)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        plots.hide_spines(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    grid[0].set_ylabel("nats per token", fontsize=8)
    names = [f"{r.folder} ({r.facts['parameters'] / 1e6:.2f} M)" for r in runs]
    figure.legend(grid[0].lines, names, loc="outside lower center", fontsize=7.5, frameon=False, ncols=2)
    plots.save(figure, path)


def _curve(r: TrainingRun, name: str) -> tuple[list[int], list[float]]:
    """Steps and losses of a modality, or of validation as the mean over its sources."""
    if name == "validation":
        return [x["step"] for x in r.validation], [_mean(x) for x in r.validation]
    lines = [x for x in r.train if name in x["loss_by_modality"]]
    return [x["step"] for x in lines], [x["loss_by_modality"][name] for x in lines]


def _mean(line: dict[str, Any]) -> float:
    return float(np.mean(list(line["loss_by_modality"].values())))
