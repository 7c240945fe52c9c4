"""Charts drawn by matplotlib, with questions on the highest, the lowest and a value."""

from __future__ import annotations

import io
from functools import cache

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image as Pillow

from alhena.content import Document, Image
from alhena.corpus.starter.splits import COLOURS, Question, Split, belongs, quiz
from alhena.media import encode_png

DPI = 50
SIZES = ((96, 80), (112, 80), (80, 96))  # width, height
KINDS = ("bars", "bars", "sideways", "line")
NAMES = "ABCDE"
TASKS = ("charts/highest", "charts/lowest", "charts/value")


@cache
def _figure() -> Figure:
    matplotlib.rcParams.update({"font.size": 12, "axes.linewidth": 0.8, "font.family": "DejaVu Sans"})
    figure = Figure(dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def draw(rng: np.random.Generator, kind: str, values: list[int], width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: values 1..9 by name, on a common scale of 0 to 9."""
    figure = _figure()
    figure.clear()
    figure.set_size_inches(width / DPI, height / DPI)
    sideways, names = kind == "sideways", list(NAMES[: len(values)])
    axes = figure.add_axes((0.17, 0.2, 0.8, 0.75) if not sideways else (0.17, 0.2, 0.76, 0.76))
    palette = list(COLOURS.values())
    colours = [tuple(v / 255 for v in palette[k]) for k in rng.permutation(len(palette))[: len(values)]]
    if kind == "bars":
        axes.bar(names, values, color=colours)
    elif sideways:
        axes.barh(names[::-1], values[::-1], color=colours)
    else:
        axes.plot(names, values, marker="o", color=colours[0], linewidth=2)
    ticks, limits = [0, 3, 6, 9], (0, 9.6)
    (axes.set_xticks if sideways else axes.set_yticks)(ticks)
    (axes.set_xlim if sideways else axes.set_ylim)(*limits)
    axes.tick_params(length=0, pad=2)
    axes.grid(axis="x" if sideways else "y", linewidth=0.6, color="#bbbbbb")
    axes.set_axisbelow(True)
    out = io.BytesIO()
    figure.savefig(out, format="rgba", dpi=DPI)
    pixels = np.frombuffer(out.getvalue(), np.uint8).reshape(height, width, 4)
    return np.asarray(Pillow.fromarray(pixels).convert("RGB"))


def questions(rng: np.random.Generator, values: list[int]) -> list[Question]:
    names = NAMES[: len(values)]
    k = int(rng.integers(len(values)))
    return [
        ("charts/highest", "Which is highest?", names[int(np.argmax(values))]),
        ("charts/lowest", "Which is lowest?", names[int(np.argmin(values))]),
        ("charts/value", f"What is the value of {names[k]}?", str(values[k])),
    ]


def make(rng: np.random.Generator, split: Split, i: int) -> Document:
    while True:  # one highest, one lowest; the tuple of values keeps to its split
        values = [int(v) for v in rng.integers(1, 10, rng.integers(3, 6))]
        if values.count(max(values)) == values.count(min(values)) == 1 and belongs(("chart", tuple(values)), split):
            break
    width, height = SIZES[rng.integers(len(SIZES))]
    pixels = draw(rng, KINDS[rng.integers(len(KINDS))], values, width, height)
    asked = questions(rng, values)
    if split == "train":
        k = int(rng.integers(len(values)))
        asked.append(("charts/value", f"What is the value of {NAMES[k]}?", str(values[k])))
        asked = [asked[k] for k in rng.permutation(len(asked))]
    else:
        asked = [q for q in asked if q[0] == TASKS[i % len(TASKS)]]
    return quiz("charts", (Image(encode_png(pixels)),), asked, {"values": values})
