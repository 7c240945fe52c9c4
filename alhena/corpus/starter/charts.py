"""Charts drawn by matplotlib: bars, lines and pies of three to five categories, with questions.

█ 8                Which is highest?          A
█     █ 5          Which is lowest?           B
█  ▄2 █            What is the value of C?    5
A  B  C
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.items import Order, Turn, chat, pick, pick_some, picture
from alhena.corpus.starter.splits import COLOURS

DPI, FONT = 100, 8  # a letter is about eight pixels high
SIZES = ((96, 80), (96, 80), (112, 80), (80, 96))
KINDS = ("bars", "bars", "bars", "lying bars", "lying bars", "line", "pie")
LETTERS = "ABCDE"
PALETTE = ["#" + bytes(rgb).hex() for rgb in COLOURS.values()]


@lru_cache(maxsize=1)
def _canvas() -> Any:
    """One figure with bare axes for all charts: making new ones costs more than drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(dpi=DPI))
    axes = canvas.figure.add_axes((0.02, 0.02, 0.96, 0.96), autoscale_on=False)
    axes.axis("off")
    return canvas


def _axes(width: int, height: int) -> Any:
    """The axes, empty again, at a size in pixels."""
    figure = _canvas().figure
    figure.set_size_inches(width / DPI, height / DPI)
    axes = figure.axes[0]
    axes.set_aspect("auto")
    for artist in [*axes.patches, *axes.lines, *axes.texts]:
        artist.remove()
    return axes


def _pixels() -> np.ndarray:
    _canvas().draw()
    return np.asarray(_canvas().buffer_rgba())[:, :, :3].copy()


def _bars(axes: Any, values: list[int], colours: list[str], lying: bool) -> None:
    places = np.arange(len(values))
    (axes.barh if lying else axes.bar)(places, values, 0.7, color=colours)
    for at, value in enumerate(values):
        name, number = (-0.5, at), (value + 0.3, at)
        if lying:
            axes.text(*name, LETTERS[at], size=FONT, ha="right", va="center")
            axes.text(*number, value, size=FONT, va="center")
        else:
            axes.text(at, -0.4, LETTERS[at], size=FONT, ha="center", va="top")
            axes.text(at, value + 0.3, value, size=FONT, ha="center")
    if lying:
        axes.set(xlim=(-1.8, 11), ylim=(len(values) - 0.5, -0.5))
    else:
        axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(-2.2, 11))


def _line(axes: Any, values: list[int], colour: str) -> None:
    axes.plot(range(len(values)), values, color=colour, marker="o", markersize=4, linewidth=1.5)
    for at, value in enumerate(values):
        valley = value < min(values[max(at - 1, 0) : at] + values[at + 1 : at + 2])
        axes.text(at, -2.4, LETTERS[at], size=FONT, ha="center", va="top")
        axes.text(
            at, value + (-0.9 if valley else 0.9), value, size=FONT, ha="center", va="top" if valley else "bottom"
        )
    axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(-4.6, 12))


def _pie(axes: Any, values: list[int], colours: list[str]) -> None:
    names = list(LETTERS[: len(values)])
    wedge = {"edgecolor": "white", "linewidth": 1}
    axes.pie(values, labels=names, colors=colours, labeldistance=0.68, wedgeprops=wedge, radius=1.25,
             textprops={"size": FONT, "ha": "center", "va": "center", "color": "black", "weight": "bold"})  # fmt: skip


def draw_chart(rng: np.random.Generator, kind: str, values: list[int]) -> np.ndarray:
    """uint8 [height, width, 3] of one of ``KINDS``."""
    width, height = pick(rng, SIZES)
    axes = _axes(width, height)
    many = kind == "pie" or rng.random() < 0.5
    colours = pick_some(rng, PALETTE, len(values)) if many else [pick(rng, PALETTE)] * len(values)
    if kind == "pie":
        _pie(axes, values, colours)
    elif kind == "line":
        _line(axes, values, colours[0])
    else:
        _bars(axes, values, colours, lying=kind == "lying bars")
    return _pixels()


def _turns(rng: np.random.Generator, values: list[int]) -> dict[str, Turn]:
    asked = int(rng.integers(len(values)))
    return {
        "highest": ("Which is highest?", LETTERS[int(np.argmax(values))]),
        "lowest": ("Which is lowest?", LETTERS[int(np.argmin(values))]),
        "value": (f"What is the value of {LETTERS[asked]}?", str(values[asked])),
    }


def make(order: Order) -> Document:
    rng = order.rng
    wanted = order.task.split("/")[1] if "/" in order.task else None
    kind = pick(rng, KINDS[:-1] if wanted == "value" else KINDS)  # a pie shows no numbers
    values = pick_some(rng, range(2 if kind == "pie" else 1, 10), int(rng.integers(3, 6)))
    turns = _turns(rng, values)
    if kind == "pie":
        del turns["value"]
    asked = [turns[wanted]] if wanted else pick_some(rng, list(turns.values()), 3)
    return chat(order, [picture(draw_chart(rng, kind, values))], asked, chart=kind, values=values)
