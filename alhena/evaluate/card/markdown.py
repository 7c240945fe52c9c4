"""The report card as Markdown: a table a section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alhena.evaluate.card.card import Card, CardRow
from alhena.evaluate.card.heat_map import HeatMap

MARKS = {True: "▲", False: "▼"}


def items_text(items: Mapping[str, int]) -> str:
    """The number of items, or from the least to the most.

    >>> items_text({"a": 100, "b": 100}), items_text({"a": 100, "b": 50})
    ('100', '50–100')
    """
    low, high = min(items.values()), max(items.values())
    return str(high) if low == high else f"{low}–{high}"


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _cell(row: CardRow, model: str) -> str:
    r = row.row
    if model not in r.scores:
        return "–"
    score = f"{r.shown(r.scores[model])}"
    if model in r.intervals:
        low, high = r.intervals[model]
        score += f" [{r.shown(low)}, {r.shown(high)}]"
    verdict = row.verdicts.get(model)
    return f"{score} {MARKS[verdict.better]}" if verdict and verdict.differs else score


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _table(card: Card, rows: Sequence[CardRow]) -> list[str]:
    models = [model for model in card.models if any(model in row.row.scores for row in rows)]
    head = ["capability", "metric", "items", "chance", *models, *(("Ultra", "Pro") if card.with_figures else ())]
    lines = [_line(head), "|" + "---|" * 2 + "--:|" * (len(head) - 2)]
    for row in rows:
        r = row.row
        name = f"{r.name} ({r.protocol})" if r.protocol else r.name
        figures = [figure(r.ultra), figure(r.pro)] if card.with_figures else []
        unit = r.metric + (" ↓" if r.lower_is_better else "")
        cells = [_cell(row, model) for model in models]
        lines.append(_line([name, unit, items_text(row.items), r.shown(r.chance), *cells, *figures]))
    return lines


def _heat_map(one: HeatMap) -> list[str]:
    title = f"### {one.title}"
    head = _line([one.unit, *(f"{depth:g}" for depth in one.depths)])
    rows = [_line([f"{length:,}", *map(one.shown, row)]) for length, row in zip(one.lengths, one.accuracy, strict=True)]
    return [title, "", head, "|" + "--:|" * (1 + len(one.depths)), *rows, ""]


def markdown(card: Card) -> str:
    """The content of report.md."""
    out = ["# Report card", ""]
    out += [f"- **{name}**: {facts.text() or 'no facts are known'}" for name, facts in card.models.items()]
    out += ["", "Scores with 95 % intervals. ▲ ▼: better or worse than the first model beyond chance (corrected for all tests). ↓: lower is better.", ""]  # fmt: skip
    for section in card.sections:
        out += [f"## {section.capitalize()}", "", *_table(card, card.of_section(section)), ""]
    for one in card.heat_maps:
        out += _heat_map(one)
    out += [f"- {note}" for note in card.notes]
    return "\n".join(out).rstrip() + "\n"
