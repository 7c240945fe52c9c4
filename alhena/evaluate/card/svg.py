"""Charts of the page as inline SVG, whose colors are those of the page in light and dark: history, heat map, routed chain of thought."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from alhena.evaluate.card.heat_map import HeatMap
from alhena.evaluate.card.history import Series
from alhena.evaluate.card.sources import Routed
from alhena.evaluate.statistics import wilson

WIDTH, HEIGHT, PAD = 240, 110, 8
# Of the first of them, in style.css.
ROUTED_COLOR = 5
ROUTED = (("greedy", "greedy"), ("majority", "majority of k"), ("routed", "routed"))


def waveform(peaks: Sequence[float]) -> str:
    """Bars of the loudest sample of each part of a recording."""
    bars = "".join(
        f'<rect x="{2 * i}" y="{16 - 15 * peak:.1f}" width="1.2" height="{max(30 * peak, 1):.1f}"/>'
        for i, peak in enumerate(peaks)
    )
    return f'<svg class="wave" viewBox="0 0 {2 * len(peaks)} 32" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'


def _scale(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(100.0, *values)
    return low, high - low


def history_chart(series: Sequence[Series], colors: Mapping[str, int]) -> str:
    """Scores of one section over the evaluations, a line a model, from chance (0) to the best (100)."""
    low, span = _scale([point.score for one in series for point in one.points])
    times = sorted({point.time for one in series for point in one.points})
    position = {time: PAD + i * (WIDTH - 2 * PAD) / max(len(times) - 1, 1) for i, time in enumerate(times)}

    def y(score: float) -> float:
        return HEIGHT - PAD - (score - low) * (HEIGHT - 2 * PAD) / span

    parts = [
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y(v):.1f}" y2="{y(v):.1f}"/><text x="{WIDTH + 4}" y="{y(v) + 3:.1f}">{v}</text>'
        for v in (0, 50, 100)
    ]
    dates = ((PAD, "start", times[0]), (WIDTH - PAD, "end", times[-1]))
    parts += [
        f'<text x="{x}" y="{HEIGHT + 6}" text-anchor="{anchor}">{html.escape(time[:10])}</text>'
        for x, anchor, time in dates
    ]
    for one in series:
        at = [(position[point.time], y(point.score)) for point in one.points]
        line = " ".join(f"{x:.1f},{h:.1f}" for x, h in at)
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{h:.1f}" r="3"><title>{html.escape(one.model)}, {html.escape(p.time)}: {p.score:.1f}</title></circle>'
            for (x, h), p in zip(at, one.points, strict=True)
        )
        parts.append(f'<g class="m{colors[one.model]}"><polyline points="{line}"/>{dots}</g>')
    label = f"{series[0].section}: scores over {len(times)} evaluations"
    return f'<svg class="lines" viewBox="0 0 {WIDTH + 24} {HEIGHT + 10}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def heat_map(one: HeatMap) -> str:
    """A table whose cells are as dark as accurate, with the interval of each."""
    head = "".join(f"<th>{depth:g}</th>" for depth in one.depths)
    rows = []
    for length, of_length in zip(one.lengths, one.accuracy, strict=True):
        cells = []
        for depth, value in zip(one.depths, of_length, strict=True):
            low, high = one.interval(value)
            title = f"{length:,} {one.unit}, depth {depth:g}: {value:.1f} % [{low:.1f}, {high:.1f}]"
            cells.append(
                f'<td class="{"high" if value > 55 else ""}" style="--v:{value:.1f}" title="{html.escape(title)}">{value:.0f}'
                f"<small>{low:.0f}–{high:.0f}</small></td>"
            )
        rows.append(f"<tr><th>{length:,}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><th>{html.escape(one.unit)} ╲ depth</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def routing_chart(result: Routed) -> str:
    """Greedy, majority of k and routed, with 95 % intervals, by k; below each k its threshold."""
    rows, items = result.by_k, result.items
    width, height = 92 * len(rows) + 30, 170

    def y(value: float) -> float:
        return 140 - 1.3 * value

    parts = [
        f'<line class="grid" x1="24" x2="{width}" y1="{y(v):.1f}" y2="{y(v):.1f}"/><text x="20" y="{y(v) + 3:.1f}" text-anchor="end">{v}</text>'
        for v in (0, 50, 100)
    ]
    for i, row in enumerate(rows):
        for n, (name, _) in enumerate(ROUTED):
            x, value = 34 + 92 * i + 26 * n, getattr(row, name)
            low, high = (100 * bound for bound in wilson(value / 100, items))
            parts.append(
                f'<g class="m{ROUTED_COLOR + n}"><rect class="fill" x="{x}" y="{y(value):.1f}" width="22" height="{max(1.3 * value, 0.5):.1f}">'
                f"<title>{name}: {value:.1f} %</title></rect></g>"
                f'<line class="whisker" x1="{x + 11}" x2="{x + 11}" y1="{y(high):.1f}" y2="{y(low):.1f}"/>'
            )
        middle = 34 + 92 * i + 37
        parts.append(f'<text x="{middle}" y="153" text-anchor="middle">k = {row.k}</text>')
        parts.append(f'<text class="faint" x="{middle}" y="165" text-anchor="middle">τ = {row.threshold:.2f}</text>')
    chance = result.chance
    parts.append(f'<line class="chance" x1="24" x2="{width}" y1="{y(chance):.1f}" y2="{y(chance):.1f}"/>')
    return f'<svg class="routing" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" aria-label="routed chain of thought">{"".join(parts)}</svg>'
