"""Charts drawn by matplotlib: bars, lines and pies of two to four colored categories, with questions.

█ 8                Which is highest?              red
█     █ 5          Which is lowest?               green
█  ▄2 █            What is the value of blue?     5
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from alhena.content import Document
from alhena.corpus.starter.items import ItemSpec, Turn, chat, pick, png_image, sample
from alhena.corpus.starter.splits import COLORS

# A digit is about twelve pixels high.
DPI, FONT_SIZE = 100, 12
SIZES = ((64, 64), (80, 64), (80, 80))
KINDS = ("bars", "bars", "bars", "lying bars", "lying bars", "line", "pie")
PALETTE = {name: "#" + bytes(rgb).hex() for name, rgb in COLORS.items()}


@lru_cache(maxsize=1)
def _canvas() -> Any:
    """One figure with axes, shared by all charts: a new one takes longer than a chart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(dpi=DPI))
    axes = canvas.figure.add_axes((0.02, 0.02, 0.96, 0.96), autoscale_on=False)
    axes.axis("off")
    return canvas


def _axes(width: int, height: int) -> Any:
    """The shared axes, cleared, at a size in pixels."""
    figure = _canvas().figure
    figure.set_size_inches(width / DPI, height / DPI)
    axes = figure.axes[0]
    axes.set_aspect("auto")
    for artist in [*axes.patches, *axes.lines, *axes.texts, *axes.collections]:
        artist.remove()
    return axes


def _pixels() -> UInt8[np.ndarray, "height width 3"]:
    _canvas().draw()
    return np.asarray(_canvas().buffer_rgba())[:, :, :3].copy()


def _bars(axes: Any, values: list[int], colors: list[str], horizontal: bool) -> None:
    positions = np.arange(len(values))
    (axes.barh if horizontal else axes.bar)(positions, values, 0.7, color=colors)
    for position, value in enumerate(values):
        if horizontal:
            axes.text(value + 0.3, position, value, size=FONT_SIZE, va="center")
        else:
            axes.text(position, value + 0.3, value, size=FONT_SIZE, ha="center")
    if horizontal:
        axes.set(xlim=(0, 11.5), ylim=(len(values) - 0.5, -0.5))
    else:
        axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 11.5))


def _line(axes: Any, values: list[int], colors: list[str]) -> None:
    axes.plot(range(len(values)), values, color="#9a9a9a", linewidth=1.5, zorder=1)
    axes.scatter(range(len(values)), values, s=140, c=colors, zorder=2)
    for position, value in enumerate(values):
        axes.text(position, value + 1.0, value, size=FONT_SIZE, ha="center", va="bottom")
    axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 12.5))


def _pie(axes: Any, values: list[int], colors: list[str]) -> None:
    wedge_style = {"edgecolor": "white", "linewidth": 1}
    axes.pie(values, colors=colors, wedgeprops=wedge_style, radius=1.25)


def draw_chart(
    rng: np.random.Generator, kind: str, values: list[int], names: list[str]
) -> UInt8[np.ndarray, "height width 3"]:
    """A chart of one of ``KINDS``; ``names`` are those of the colors."""
    width, height = pick(rng, SIZES)
    axes = _axes(width, height)
    colors = [PALETTE[name] for name in names]
    if kind == "pie":
        _pie(axes, values, colors)
    elif kind == "line":
        _line(axes, values, colors)
    else:
        _bars(axes, values, colors, horizontal=kind == "lying bars")
    return _pixels()


def _turns(rng: np.random.Generator, values: list[int], names: list[str]) -> dict[str, list[Turn]]:
    """Questions with answers, by kind."""
    return {
        "highest": [("Which is highest?", names[int(np.argmax(values))])],
        "lowest": [("Which is lowest?", names[int(np.argmin(values))])],
        "value": [
            (f"What is the value of {name}?", str(value))
            for name, value in sample(rng, list(zip(names, values, strict=True)), 3)
        ],
    }


def make(spec: ItemSpec) -> Document:
    """A chart with one question of the task's kind, or with all in random order."""
    rng = spec.rng
    question_kind = spec.task.split("/")[1] if "/" in spec.task else None
    # A pie shows no numbers.
    kind = pick(rng, KINDS[:-1] if question_kind == "value" else KINDS)
    values = sample(rng, range(2 if kind == "pie" else 1, 10), int(rng.integers(2, 5)))
    names = sample(rng, tuple(PALETTE), len(values))
    turns = _turns(rng, values, names)
    if kind == "pie":
        del turns["value"]
    all_turns = [turn for kind_turns in turns.values() for turn in kind_turns]
    selected = turns[question_kind][:1] if question_kind else sample(rng, all_turns, len(all_turns))
    image = png_image(draw_chart(rng, kind, values, names))
    return chat(spec, [image], selected, chart=kind, values=values, colours=names)
