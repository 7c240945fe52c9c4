"""Plots: one palette, one set-up of figures, one way to save them."""

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
    """A figure of so many inches that needs no display. ``layout=None``: its axes are placed by hand."""
    made = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(made)
    return made


def hide_spines(axes: Axes) -> None:
    """Leaves the lines of the two axes only."""
    axes.spines[["top", "right"]].set_visible(False)


def as_png(made: Figure, transparent: bool = False) -> bytes:
    out = io.BytesIO()
    made.savefig(out, format="png", transparent=transparent, **({} if transparent else {"facecolor": "white"}))
    return out.getvalue()


def save(made: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    write_atomically(path, as_png(made))
