"""Loss of long running text by range of positions, as the Gemini 1.0 report draws it (section 5.1.5), and by context.

window    │ 0–64 │ 64–128 │ 128–256 │ …                        │      by position: other tokens in each range
          │ · · · · · · · · · · · · · · · · │ last tokens      │      by context: the same tokens after all that is before
                                  │ context │ last tokens      │      them, and after less of it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from alhena import plots
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Advance, no_advance
from alhena.shapes import Float

# The first positions whose loss is measured; each next range is twice as long.
FIRST_RANGE = 64
SCORED_TOKENS, SHORTEST_CONTEXT = 1024, 256


def ranges(length: int) -> list[tuple[int, int]]:
    """Ranges of positions, each twice as long as the one before.

    >>> ranges(300)
    [(0, 64), (64, 128), (128, 256), (256, 300)]
    """
    edges = [0, FIRST_RANGE]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return list(pairwise(edges))


def contexts(length: int) -> list[int]:
    """Numbers of tokens before the last ones of a window: the shortest, four times as many, …, all of them.

    >>> contexts(8192)
    [256, 1024, 4096, 7168]
    """
    longest, context, out = length - scored_tokens(length), SHORTEST_CONTEXT, list[int]()
    while context < longest:
        out.append(context)
        context *= 4
    return [*out, longest]


def scored_tokens(length: int) -> int:
    """Tokens at the end of a window whose loss is measured after contexts of several lengths."""
    return min(SCORED_TOKENS, length // 4)


def chosen_windows(model: EngineModel, texts: Sequence[str], length: int, windows: int) -> list[list[int]]:
    """The tokens of evenly spaced windows of the texts. Raises ValueError when no text has a window."""
    encoded = [model.engine.encoder.tokenizer.encode(text) for text in texts]
    starts = [(ids, start) for ids in encoded for start in range(0, len(ids) - length + 1, length)]
    if not starts:
        raise ValueError(f"no text has {length:,} tokens; give longer ones, or a shorter length")
    chosen = np.linspace(0, len(starts) - 1, min(windows, len(starts))).astype(int)
    return [ids[start : start + length] for ids, start in (starts[i] for i in chosen)]


def loss_of_texts(
    model: EngineModel, texts: Sequence[str], length: int, windows: int, advance: Advance = no_advance
) -> dict[str, Any]:
    """Nats per token over windows of the texts: by range of positions, and of the last tokens by the context before them.

    The second compares the same tokens, so nothing but the context differs: with the shortest context, and with the one before.
    Raises ValueError when no text has a window.
    """
    chosen, spans = chosen_windows(model, texts, length, windows), ranges(length)
    before, last = contexts(length), scored_tokens(length)
    by_position, by_context = np.zeros((len(chosen), len(spans))), np.zeros((len(chosen), len(before)))
    for n, ids in enumerate(chosen):
        nats = -model.token_nats(ids)
        by_position[n] = [nats[a:b].mean() for a, b in spans]
        shorter = [-model.token_nats(ids[-last - context :])[-last:].mean() for context in before[:-1]]
        by_context[n] = [*shorter, nats[-last:].mean()]
        advance(1)
    return {
        "model": model.name,
        "windows": len(chosen),
        "positions": [list(span) for span in spans],
        **_statistics(by_position),
        "same_tokens": {
            "tokens": last,
            "contexts": before,
            "nats": _rounded(by_context.mean(0)),
            "difference": _statistics(by_context - by_context[:, :1]),
            "from_context_before": _statistics(np.diff(by_context, axis=1, prepend=by_context[:, :1])),
        },
    }


def _statistics(values: Float[np.ndarray, "windows columns"]) -> dict[str, list[float]]:
    """Means over windows and their standard errors."""
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
    return {"nats": _rounded(values.mean(0)), "standard_error": _rounded(error)}


def _rounded(values: Float[np.ndarray, " n"]) -> list[float]:
    return [round(float(value), 4) for value in values]


def plot_loss(result: Mapping[str, Any], path: Path) -> None:
    """Nats per token by position, and the difference that more context makes to the same tokens, with standard errors."""
    same = result["same_tokens"]
    figure = plots.figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    middle = [float(np.sqrt(max(a, 8) * b)) for a, b in result["positions"]]
    _draw(left, middle, result)
    left.set_xlabel("position, tokens")
    left.set_ylabel("nats per token")
    left.set_title(f"Loss by position, {result['model']}, {result['windows']} windows", fontsize=10)
    right.axhline(0, color="0.8", linewidth=1)
    _draw(right, same["contexts"], same["difference"])
    right.set_xlabel("context, tokens")
    right.set_ylabel(f"nats per token, minus {same['nats'][0]:.2f}")
    right.set_title(f"The same {same['tokens']:,} tokens after more context", fontsize=10)
    plots.save(figure, path)


def _draw(axes: Axes, x: Sequence[float], y: Mapping[str, Any]) -> None:
    axes.errorbar(x, y["nats"], yerr=y["standard_error"], color=plots.BLUE, marker="o", markersize=4, capsize=2)
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    plots.hide_spines(axes)
