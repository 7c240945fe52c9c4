"""Plots: palette, figures without a display, PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alhena.files import write_atomically

BLUE, RED, GREEN, ORANGE, PURPLE, SLATE, BLACK = (
    "#2a7f9e",
    "#c2405a",
    "#2f7d4f",
    "#b5651d",
    "#7a5195",
    "#5b6c8f",
    "#111111",
)
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SLATE, BLACK)
GRAY, PALE = "#888888", "#f1f1ee"


def figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained", dpi: int = 120
) -> Figure:
    """A figure that needs no display; sizes in inches. ``layout=None``: the caller positions the axes."""
    out = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(out)
    return out


def hide_spines(axes: Axes) -> None:
    """Hides the upper and the right border of a plot."""
    axes.spines[["top", "right"]].set_visible(False)


def as_png(plot: Figure, transparent: bool = False) -> bytes:
    out = io.BytesIO()
    plot.savefig(out, format="png", transparent=transparent, **({} if transparent else {"facecolor": "white"}))
    return out.getvalue()


def save(plot: Figure, path: Path) -> None:
    """Writes a PNG file atomically."""
    write_atomically(path, as_png(plot))
