"""Loss by position: nats per token of long running text, by range of positions, as the Gemini 1.0 report draws it (section 5.1.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from alhena import plots
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Advance, no_advance

# The first positions whose loss is measured; each next range is twice as long.
FIRST_RANGE = 64


def ranges(length: int) -> list[tuple[int, int]]:
    """Ranges of positions, each twice as long as the one before.

    >>> ranges(300)
    [(0, 64), (64, 128), (128, 256), (256, 300)]
    """
    edges = [0, FIRST_RANGE]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return list(pairwise(edges))


def loss_by_position(
    model: EngineModel, texts: Sequence[str], length: int, windows: int, advance: Advance = no_advance
) -> dict[str, Any]:
    """Nats per token of running text by range of positions, over windows of the texts.

    Raises ValueError when no text has a window.
    """
    encoded = [model.engine.encoder.tokenizer.encode(text) for text in texts]
    starts = [(ids, start) for ids in encoded for start in range(0, len(ids) - length + 1, length)]
    if not starts:
        raise ValueError(f"no text has {length:,} tokens; give longer ones, or a shorter length")
    chosen = [starts[i] for i in np.linspace(0, len(starts) - 1, min(windows, len(starts))).astype(int)]
    spans = ranges(length)
    means = np.zeros((len(chosen), len(spans)))
    for n, (ids, start) in enumerate(chosen):
        nats = -model.token_nats(ids[start : start + length])
        means[n] = [nats[a:b].mean() for a, b in spans]
        advance(1)
    error = means.std(0, ddof=1) / np.sqrt(len(chosen)) if len(chosen) > 1 else np.zeros(len(spans))
    return {
        "model": model.name,
        "windows": len(chosen),
        "positions": [list(span) for span in spans],
        "nats": [round(float(value), 4) for value in means.mean(0)],
        "standard_error": [round(float(value), 4) for value in error],
    }


def plot_loss(result: Mapping[str, Any], path: Path) -> None:
    """Nats per token by position, on a logarithmic axis, with standard errors."""
    figure = plots.figure(6.4, 3.6)
    axes = figure.subplots()
    middle = [float(np.sqrt(max(a, 8) * b)) for a, b in result["positions"]]
    axes.errorbar(
        middle, result["nats"], yerr=result["standard_error"], color=plots.BLUE, marker="o", markersize=4, capsize=2
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position, tokens")
    axes.set_ylabel("nats per token")
    axes.set_title(f"Loss by position, {result['model']}, {result['windows']} windows", fontsize=10)
    plots.hide_spines(axes)
    plots.save(figure, path)
