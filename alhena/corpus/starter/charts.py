"""Charts drawn by matplotlib: bars, lines and pies of two to four coloured categories, with questions.

█ 8                Which is highest?              red
█     █ 5          Which is lowest?               green
█  ▄2 █            What is the value of blue?     5
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.items import Order, Turn, chat, pick, pick_some, picture
from alhena.corpus.starter.splits import COLOURS

DPI, FONT = 100, 12  # a digit is about twelve pixels high
SIZES = ((64, 64), (80, 64), (80, 80))
KINDS = ("bars", "bars", "bars", "lying bars", "lying bars", "line", "pie")
PALETTE = {name: "#" + bytes(rgb).hex() for name, rgb in COLOURS.items()}


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
    for artist in [*axes.patches, *axes.lines, *axes.texts, *axes.collections]:
        artist.remove()
    return axes


def _pixels() -> np.ndarray:
    _canvas().draw()
    return np.asarray(_canvas().buffer_rgba())[:, :, :3].copy()


def _bars(axes: Any, values: list[int], colours: list[str], lying: bool) -> None:
    places = np.arange(len(values))
    (axes.barh if lying else axes.bar)(places, values, 0.7, color=colours)
    for at, value in enumerate(values):
        if lying:
            axes.text(value + 0.3, at, value, size=FONT, va="center")
        else:
            axes.text(at, value + 0.3, value, size=FONT, ha="center")
    if lying:
        axes.set(xlim=(0, 11.5), ylim=(len(values) - 0.5, -0.5))
    else:
        axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 11.5))


def _line(axes: Any, values: list[int], colours: list[str]) -> None:
    axes.plot(range(len(values)), values, color="#9a9a9a", linewidth=1.5, zorder=1)
    axes.scatter(range(len(values)), values, s=140, c=colours, zorder=2)
    for at, value in enumerate(values):
        axes.text(at, value + 1.0, value, size=FONT, ha="center", va="bottom")
    axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 12.5))


def _pie(axes: Any, values: list[int], colours: list[str]) -> None:
    wedge = {"edgecolor": "white", "linewidth": 1}
    axes.pie(values, colors=colours, wedgeprops=wedge, radius=1.25)


def draw_chart(rng: np.random.Generator, kind: str, values: list[int], colours: list[str]) -> np.ndarray:
    """uint8 [height, width, 3] of one of ``KINDS``; ``colours`` by name."""
    width, height = pick(rng, SIZES)
    axes = _axes(width, height)
    paints = [PALETTE[name] for name in colours]
    if kind == "pie":
        _pie(axes, values, paints)
    elif kind == "line":
        _line(axes, values, paints)
    else:
        _bars(axes, values, paints, lying=kind == "lying bars")
    return _pixels()


def _turns(rng: np.random.Generator, values: list[int], colours: list[str]) -> dict[str, list[Turn]]:
    return {
        "highest": [("Which is highest?", colours[int(np.argmax(values))])],
        "lowest": [("Which is lowest?", colours[int(np.argmin(values))])],
        "value": [
            (f"What is the value of {colour}?", str(value))
            for colour, value in pick_some(rng, list(zip(colours, values, strict=True)), 3)
        ],
    }


def make(order: Order) -> Document:
    rng = order.rng
    wanted = order.task.split("/")[1] if "/" in order.task else None
    kind = pick(rng, KINDS[:-1] if wanted == "value" else KINDS)  # a pie shows no numbers
    values = pick_some(rng, range(2 if kind == "pie" else 1, 10), int(rng.integers(2, 5)))
    colours = pick_some(rng, tuple(PALETTE), len(values))
    turns = _turns(rng, values, colours)
    if kind == "pie":
        del turns["value"]
    every = [turn for some in turns.values() for turn in some]
    asked = turns[wanted][:1] if wanted else pick_some(rng, every, len(every))
    return chat(
        order, [picture(draw_chart(rng, kind, values, colours))], asked, chart=kind, values=values, colours=colours
    )
