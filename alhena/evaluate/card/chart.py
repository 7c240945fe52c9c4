"""The picture of a report card: a bar for every model in every row, with intervals and chance levels, and the numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from alhena import plots
from alhena.evaluate.card.card import Card, CardRow
from alhena.evaluate.card.markdown import MARKS, figure, items_text
from alhena.evaluate.card.page import quality

COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.RED, plots.SLATE, "#7b6a12", "#1f7d78")
# Inches: the bars, the columns of numbers, and the heights of a bar, of the space between rows, and of a section's title.
LEFT, BARS, COLUMN, NARROW = 0.35, (3.35, 7.15), 0.92, 0.62
BAR, GAP, TITLE, MARGIN = 0.15, 0.13, 0.42, 0.5
SOFT = "#66625c"
# Models and characters of a name that fit.
MAX_MODELS, MAX_NAME = 8, 34


@dataclass(frozen=True)
class _Layout:
    """Models and where the columns right of the bars begin, in inches."""

    models: Sequence[str]
    with_figures: bool

    @property
    def numbers(self) -> float:
        return BARS[1] + 0.15

    @property
    def after(self) -> float:
        return self.numbers + COLUMN * len(self.models)

    @property
    def metric(self) -> float:
        return self.after + NARROW * (4 if self.with_figures else 2) + 0.1

    @property
    def width(self) -> float:
        return self.metric + 1.75

    def color(self, model: str) -> str:
        return COLORS[self.models.index(model) % len(COLORS)]


def _height(row: CardRow) -> float:
    return max(BAR * len(row.row.scores), 0.22) + GAP


def _x(value: float) -> float:
    return BARS[0] + (BARS[1] - BARS[0]) * value / 100


def _bars(axes: Axes, row: CardRow, top: float, layout: _Layout) -> None:
    """A bar for each model from ``top`` downwards, with its interval, and the chance level across all."""
    r = row.row
    models = [model for model in layout.models if model in r.scores]
    height = max(BAR * len(models), 0.22) / len(models)
    for n, model in enumerate(models):
        y = top + height * (n + 0.5)
        axes.barh(y, BARS[1] - BARS[0], left=BARS[0], height=height * 0.86, color=plots.PALE, zorder=0)
        width = _x(quality(r, r.scores[model])) - BARS[0]
        axes.barh(y, width, left=BARS[0], height=height * 0.86, color=layout.color(model), zorder=1)
        if model in r.intervals:
            low, high = (_x(quality(r, bound)) for bound in r.intervals[model])
            axes.plot(
                [low, high], [y, y], color=plots.BLACK, linewidth=1.1, alpha=0.75, zorder=3, solid_capstyle="butt"
            )
    chance = _x(quality(r, r.chance))
    axes.plot(
        [chance, chance], [top - 0.03, top + height * len(models) + 0.03], color=plots.RED, linewidth=1.6, zorder=4
    )


def _numbers(axes: Axes, row: CardRow, middle: float, layout: _Layout) -> None:
    r = row.row
    name = r.name if len(r.name) <= MAX_NAME else r.name[: MAX_NAME - 1] + "…"
    axes.text(LEFT + 0.15, middle, name, fontsize=9, va="center")
    for n, model in enumerate(layout.models):
        if model in r.scores:
            verdict = row.verdicts.get(model)
            mark = f" {MARKS[verdict.better]}" if verdict and verdict.differs else ""
            x = layout.numbers + COLUMN * (n + 0.62)
            axes.text(x, middle, r.shown(r.scores[model]), fontsize=9, fontweight="bold", ha="right", va="center", color=layout.color(model))  # fmt: skip
            color = plots.GREEN if verdict and verdict.better else plots.RED
            axes.text(x + 0.02, middle, mark, fontsize=7, ha="left", va="center", color=color)
    texts = [r.shown(r.chance), items_text(row.items)]
    texts += [figure(r.ultra), figure(r.pro)] if layout.with_figures else []
    for n, text in enumerate(texts):
        axes.text(layout.after + NARROW * (n + 1), middle, text, fontsize=8, color=SOFT, ha="right", va="center")
    unit = r.metric + (" ↓" if r.lower_is_better else "")
    asked = f"\n{r.protocol}" if r.protocol else ""
    axes.text(layout.metric, middle, unit + asked, fontsize=7, color=SOFT, va="center", linespacing=1.2)


def _head(axes: Axes, card: Card, layout: _Layout) -> None:
    axes.text(LEFT, 0.42, "Report card", fontsize=17, fontweight="bold", va="center")
    axes.text(BARS[0], 0.42, "longer is better everywhere; red: chance; line: 95 % interval", fontsize=8, color=SOFT, va="center")  # fmt: skip
    for n, model in enumerate(layout.models):
        y = 0.82 + 0.2 * n
        axes.plot(LEFT + 0.06, y, "o", color=layout.color(model), markersize=6)
        axes.text(LEFT + 0.2, y, model, fontsize=8.5, fontweight="bold", va="center")
        axes.text(BARS[0], y, card.models[model].text(), fontsize=8, color=SOFT, va="center")


def _columns(axes: Axes, y: float, layout: _Layout) -> None:
    for n, model in enumerate(layout.models):
        name = model if len(model) <= 11 else model[:10] + "…"
        axes.text(layout.numbers + COLUMN * (n + 0.62), y, name, fontsize=7.5, ha="right", va="center", color=layout.color(model))  # fmt: skip
    for n, name in enumerate(["chance", "items", *(["Ultra", "Pro"] if layout.with_figures else [])]):
        axes.text(layout.after + NARROW * (n + 1), y, name, fontsize=7.5, color=SOFT, ha="right", va="center")


def plot_card(card: Card, path: Path) -> None:
    """Writes the picture of all rows; longer bars are better in every row."""
    models = [*card.models][:MAX_MODELS]
    rows = [row for row in card.rows if any(model in row.row.scores for model in models)]
    layout = _Layout(models, card.with_figures)
    head = 0.95 + 0.2 * len(models)
    sections = list(dict.fromkeys(row.row.section for row in rows))
    height = head + TITLE * len(sections) + sum(map(_height, rows)) + MARGIN
    plot = plots.figure(layout.width, height, layout=None)
    axes = plot.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, layout.width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    _head(axes, card, layout)
    _columns(axes, head + TITLE - 0.16, layout)
    y = head
    for section in sections:
        axes.text(LEFT, y + TITLE - 0.16, section.capitalize(), fontsize=10.5, fontweight="bold", va="center")
        axes.plot([LEFT, layout.width - LEFT], [y + 0.08] * 2, color="#d9d5cd", linewidth=0.8)
        y += TITLE
        for row in (row for row in rows if row.row.section == section):
            _bars(axes, row, y, layout)
            _numbers(axes, row, y + (_height(row) - GAP) / 2, layout)
            y += _height(row)
    plots.save(plot, path)
