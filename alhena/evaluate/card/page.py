"""The page of a report card: one file without scripts or addresses, light and dark, for wide and narrow screens and for paper."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from alhena.evaluate.card import svg
from alhena.evaluate.card.card import LEVEL, Card, CardRow, Summary
from alhena.evaluate.card.examples import Example, Piece, is_right, wrong_items
from alhena.evaluate.card.markdown import MARKS, figure, items_text
from alhena.evaluate.measure import BITS_PER_BYTE, Scored
from alhena.evaluate.results import ReportRow

# Colors of models in style.css; further models use them again.
COLORS = 8
# Characters of all examples together.
MAX_EXAMPLES = 16_000_000
# Bits per byte of which a bar is empty.
MAX_BITS = 8

_NOTES = f"""A bar ends at the score, longer is better everywhere; the thin line on it is the 95 % interval, the red mark the
chance level: the best constant answer, one of the listed choices, or for bits per byte the entropy of single bytes. ▲ and ▼: better or
worse than the first model of the row beyond chance, on the items that both answered (McNemar's test or a paired bootstrap at
{LEVEL:.0%}, corrected for all tests of the card). “≈ chance”: the interval holds the chance level. Ultra and
Pro are figures of the Gemini 1.0 report (2023), under the protocol named there. The numbers of a section run from chance (0) to the
best possible score (100), as the mean of its rows."""


@cache
def _style() -> str:
    return Path(__file__).with_name("style.css").read_text()


def _anchor(section: str) -> str:
    return section.replace(" ", "-")


def quality(row: ReportRow, value: float) -> float:
    """A score on the scale of the bars, from the worst (0) to the best (100) value of its metric."""
    share = 100 * value / MAX_BITS if row.metric == BITS_PER_BYTE else value
    return min(max(100 - share if row.lower_is_better else share, 0.0), 100.0)


def is_beyond_chance(row: ReportRow, model: str) -> bool:
    """Whether the whole interval of a model is better than chance."""
    low, high = row.intervals.get(model, (row.scores[model],) * 2)
    return high < row.chance if row.lower_is_better else low > row.chance


def _colors(card: Card) -> dict[str, int]:
    return {model: n % COLORS for n, model in enumerate(card.models)}


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────────────


def _mark(row: CardRow, model: str) -> str:
    verdict = row.verdicts.get(model)
    if not verdict or not verdict.differs:
        return ""
    better = "better" if verdict.better else "worse"
    text = f"{better} than {verdict.base} beyond chance: {verdict.difference:+.1f} on {verdict.items} items, p = {verdict.p:.2g} ({verdict.test})"
    return (
        f'<span class="{"up" if verdict.better else "down"}" title="{html.escape(text)}">{MARKS[verdict.better]}</span>'
    )


def _chance_note(row: ReportRow, model: str) -> str:
    if is_beyond_chance(row, model):
        return ""
    low, high = row.intervals.get(model, (row.scores[model],) * 2)
    return f"<em>{'≈' if low <= row.chance <= high else 'worse than'} chance</em>"


def _score(row: CardRow, model: str, color: int) -> str:
    r = row.row
    if model not in r.scores:
        return '<td class="score none">–</td>'
    score, others = r.scores[model], [value for name, value in r.scores.items() if name != model]
    is_best = bool(others) and all(quality(r, score) > quality(r, other) for other in others)
    bounds = "", ""
    if model in r.intervals:
        low, high = r.intervals[model]
        left, right = sorted((quality(r, low), quality(r, high)))
        bounds = f"<small>{r.shown(low)}–{r.shown(high)}</small>", f'<u style="--lo:{left:.1f};--hi:{right:.1f}"></u>'
    note = _chance_note(r, model)
    cut = r.truncated.get(model, 0)
    ended = f'<small title="answers that ended at the limit of tokens">✂ {cut}</small>' if cut else ""
    bar = f'<i style="--v:{quality(r, score):.1f}"></i>{bounds[1]}<s style="--ch:{quality(r, r.chance):.1f}"></s>'
    value = f'<b class="{"best" if is_best else ""}">{r.shown(score)}</b>{_mark(row, model)}{bounds[0]}{note}{ended}'
    return f'<td class="score m{color}" data-label="{html.escape(model)}"><span class="value">{value}</span><span class="track">{bar}</span></td>'


def _row(row: CardRow, models: Sequence[str], colors: Mapping[str, int], with_figures: bool) -> str:
    r = row.row
    unit = f"{html.escape(r.metric)}{' ↓' if r.lower_is_better else ''}"
    asked = f" · {html.escape(r.protocol)}" if r.protocol else ""
    note = f"<small>{html.escape(r.note)}</small>" if r.note else ""
    cells = [f'<td class="name">{html.escape(r.name)}<small>{unit}{asked}</small>{note}</td>']
    cells += [_score(row, model, colors[model]) for model in models]
    cells.append(f'<td class="n" data-label="chance">{r.shown(r.chance)}</td>')
    cells.append(f'<td class="n" data-label="items">{items_text(row.items)}</td>')
    if with_figures:
        for label, value in (("Ultra", r.ultra), ("Pro", r.pro)):
            hidden = " none" if value is None else ""
            cells.append(
                f'<td class="n{hidden}" data-label="{label}" title="{html.escape(r.reported)}">{figure(value)}</td>'
            )
    return f"<tr>{''.join(cells)}</tr>"


def _table(rows: Sequence[CardRow], card: Card) -> str:
    models = [model for model in card.models if any(model in row.row.scores for row in rows)]
    colors = _colors(card)
    heads = "".join(f'<th><span class="dot m{colors[m]}"></span>{html.escape(m)}</th>' for m in models)
    columns = ["chance", "items", *(["Ultra", "Pro"] if card.with_figures else [])]
    numbers = "".join(f'<th class="n">{name}</th>' for name in columns)
    head = f'<tr><th class="name">capability</th>{heads}{numbers}</tr>'
    body = "".join(_row(row, models, colors, card.with_figures) for row in rows)
    return f'<div class="scroll rows" style="--models:{len(models)}"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


# ── examples ───────────────────────────────────────────────────────────────────────────────────────────────


def _piece(piece: Piece) -> str:
    if piece.kind == "text":
        return f"<p>{html.escape(piece.text)}</p>"
    if piece.kind == "audio":
        return f'{svg.waveform(piece.peaks)}<audio controls preload="none" src="{piece.url}"></audio>'
    small = ' class="small"' if piece.kind == "image" else ""
    return f'<img{small} loading="lazy" src="{piece.url}" alt="{piece.kind}">'


def _verdict_of(row: ReportRow, item: Scored | None) -> tuple[str, str]:
    """Class and mark of an answer: right, wrong, or the errors of a transcript."""
    if item is None:
        return "soft", "·"
    if is_right(item.score, row.lower_is_better):
        return "right", "✓"
    return "wrong", f"{100 * item.score:.0f} %" if item.score > 0 and not row.binary else "✗"


def _figure(example: Example, row: ReportRow, card: Card) -> str:
    """An item: its prompt, the answer of each model, and the reference."""
    colors, answers = _colors(card), []
    for model, answer in example.answers.items():
        item = next((item for item in row.scored.get(model, ()) if item.id == example.id), None)
        kind, mark = _verdict_of(row, item)
        image = f'<img class="small" loading="lazy" src="{answer.url}" alt="generated image">' if answer.url else ""
        text = html.escape(answer.text) or "<small>(empty)</small>"
        answers.append(
            f'<p><span class="dot m{colors.get(model, 0)}" title="{html.escape(model)}"></span>'
            f'<span class="{kind}">{mark}</span><span>{image}{text}</span></p>'
        )
    prompt = "".join(map(_piece, example.prompt))
    reference = f"<small>reference</small> {html.escape(example.reference)}"
    return f'<figure><div class="prompt">{prompt}</div><div class="answers">{"".join(answers)}<p><span>{reference}</span></p></div></figure>'


class _Gallery:
    """Examples by row, each item once, up to a number of characters in all."""

    def __init__(self, card: Card) -> None:
        self._card, self._left, self._shown = card, MAX_EXAMPLES, set[str]()
        self.left_out = 0

    def of(self, rows: Sequence[CardRow]) -> str:
        parts = []
        for row in rows:
            of_row = [e for e in self._card.examples if row.row.key in e.rows and e.id not in self._shown]
            wrong = wrong_items(row.row.scored.values(), row.row.lower_is_better)
            of_row = [e for e in of_row if e.id not in wrong] + [e for e in of_row if e.id in wrong]
            if figures := "".join(self._add(example, row.row) for example in of_row):
                parts.append(f'<h3>{html.escape(row.row.name)}</h3><div class="gallery">{figures}</div>')
        return f"<details><summary>Examples, right and wrong</summary>{''.join(parts)}</details>" if parts else ""

    def _add(self, example: Example, row: ReportRow) -> str:
        text = _figure(example, row, self._card)
        if len(text) > self._left:
            self.left_out += 1
            return ""
        self._left -= len(text)
        self._shown.add(example.id)
        return text


# ── the page ───────────────────────────────────────────────────────────────────────────────────────────────


def _tile(summary: Summary, colors: Mapping[str, int]) -> str:
    meters = "".join(
        f'<div class="meter m{colors[model]}" title="{html.escape(model)}"><i style="--v:{score:.1f}"></i><span>{score:.0f}</span></div>'
        for model, score in summary.scores.items()
    )
    rows = f"{summary.rows} row{'s' if summary.rows != 1 else ''}"
    name = html.escape(summary.section.capitalize())
    return f'<a class="tile" href="#{_anchor(summary.section)}"><b>{name}<small>{rows}</small></b>{meters}</a>'


def _title(text: str, right: str = "") -> str:
    return f'<div class="title"><h2>{html.escape(text)}</h2><small>{html.escape(right)}</small></div>'


def _routing(card: Card) -> str:
    legend = "".join(
        f'<span><span class="dot m{svg.ROUTED_COLOR + n}"></span>{label}</span>'
        for n, (_, label) in enumerate(svg.ROUTED)
    )
    charts = "".join(
        f"<h3>{html.escape(one.task)}, {html.escape(one.model)}, {one.items:,} items</h3>{svg.routing_chart(one)}"
        for one in card.routed
    )
    explained = "The majority's answer where its share of k samples exceeds τ, else the answer without chain of thought; dotted: chance."
    return f'<section id="routing">{_title("Uncertainty-routed chain of thought")}<p class="soft">{explained}</p><div class="legend">{legend}</div>{charts}</section>'


def _history(card: Card) -> str:
    """A chart for each section that was measured at least twice."""
    colors, charts = _colors(card), []
    for section in dict.fromkeys(one.section for one in card.history):
        lines = [one for one in card.history if one.section == section and len(one.points) > 1]
        if lines:
            charts.append(f"<div><h3>{html.escape(section.capitalize())}</h3>{svg.history_chart(lines, colors)}</div>")
    if not charts:
        return ""
    explained = "Each section from chance (0) to the best (100), from the first evaluation to the newest; evaluations of the same rows are joined."
    return f'<section id="history">{_title("History")}<p class="soft">{explained}</p><div class="charts">{"".join(charts)}</div></section>'


def _heat_maps(card: Card) -> str:
    return "".join(f"<h3>{html.escape(one.title)}</h3>{svg.heat_map(one)}" for one in card.heat_maps)


def _sections(card: Card) -> str:
    gallery, summaries, out = _Gallery(card), {one.section: one for one in card.summaries}, []
    sections = card.sections + (["long context"] if card.heat_maps and "long context" not in card.sections else [])
    for section in sections:
        rows = card.of_section(section)
        scores = summaries[section].scores if section in summaries else {}
        right = ", ".join(f"{model} {score:.0f}" for model, score in scores.items())
        table = _table(rows, card) if rows else ""
        maps = _heat_maps(card) if section == "long context" else ""
        out.append(
            f'<section id="{_anchor(section)}">{_title(section.capitalize(), right)}{table}{maps}{gallery.of(rows)}</section>'
        )
    if gallery.left_out:
        out.append(
            f'<p class="soft">{gallery.left_out} examples are left out: the page holds {MAX_EXAMPLES / 1e6:.0f} MB of them.</p>'
        )
    return "".join(out)


def page(card: Card) -> str:
    """The content of report.html."""
    colors = _colors(card)
    models = "".join(
        f'<li class="m{colors[name]}">{html.escape(name)}<small>{html.escape(facts.text())}</small></li>'
        for name, facts in card.models.items()
    )
    history, routing = _history(card), _routing(card) if card.routed else ""
    links = [*card.sections, *(["routing"] if routing else []), *(["history"] if history else [])]
    nav = "".join(f'<a href="#{_anchor(name)}">{html.escape(name.capitalize())}</a>' for name in links)
    tiles = "".join(_tile(summary, colors) for summary in card.summaries)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in card.notes)
    rows = f"{len(card.rows)} rows in {len(card.sections)} sections"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Report card</title><style>{_style()}</style>"
        f'<header><h1>Report card</h1><p class="soft">{rows}; each with its chance level and 95 % interval.</p><ul class="models">{models}</ul></header>'
        f'<nav aria-label="Sections"><div>{nav}</div></nav><main><div class="tiles">{tiles}</div>{_sections(card)}{routing}{history}</main>'
        f"<footer><p>{_NOTES}</p>{notes}</footer></html>\n"
    )
