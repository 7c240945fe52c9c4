"""The report of an evaluation: a bar chart (report.png) and a self-contained page with examples of every task (report.html)."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from alhena import plots
from alhena.content import Audio, Image, Part, ToolResult, Video, written
from alhena.evaluate.metrics import matches
from alhena.evaluate.results import AnsweredQuestion, Evaluation, ReportRow
from alhena.evaluate.tasks.starter import BITS_PER_BYTE, task_of
from alhena.files import write_atomically
from alhena.media import SAMPLE_RATE, decode_audio, decode_video, encode_png
from alhena.shapes import Float

COLORS = {
    "text": plots.SLATE,
    "image": plots.BLUE,
    "audio": plots.ORANGE,
    "video": plots.PURPLE,
    "combined": plots.GREEN,
    "image output": plots.RED,
}
# Test items of each task in the page.
GALLERY_ITEMS = 4
VIDEO_FRAMES = 6


def formatted(row: ReportRow, value: float) -> str:
    """A score or chance level with the digits of its metric."""
    return f"{value:.2f}" if row.metric == BITS_PER_BYTE else f"{value:.1f}"


def _headline(results: Mapping[str, Any]) -> str:
    facts, sizes = results["model"], results["bytes"]
    weights = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    tokens = f"{facts.get('tokens_seen', 0) / 1e6:.1f} M pre-training tokens"
    return f"{facts.get('parameters', 0) / 1e6:.2f} M parameters · {tokens} · {weights}"


def _quality(row: ReportRow, value: float) -> float:
    """A score on the scale of the bars, from the worst (0) to the best (1) value of its metric."""
    if row.metric == BITS_PER_BYTE:
        return max(1 - value / 8, 0.0)
    return 1 - min(value, 100) / 100 if row.lower_is_better else value / 100


def _unit(row: ReportRow) -> str:
    return row.metric + (" ↓" if row.lower_is_better else "")


def _plot_row(axes: Axes, y: int, row: ReportRow) -> None:
    """One bar, with the chance level, the scores of further models, and the numbers on the right."""
    first, *others = (_quality(row, score) for score in row.scores.values())
    chance = _quality(row, row.chance)
    axes.barh(y, 1, color=plots.PALE, height=0.72, zorder=0)
    axes.barh(y, first, color=COLORS[row.group], height=0.72, zorder=1)
    axes.plot([chance, chance], [y - 0.42, y + 0.42], color=plots.BLACK, linewidth=1.6, zorder=3)
    for x in others:
        axes.plot(x, y, marker="D", color="white", markeredgecolor=plots.BLACK, markersize=5, zorder=4, clip_on=False)
    scores = " / ".join(formatted(row, score) for score in row.scores.values())
    axes.text(1.02, y, scores, va="center", fontsize=9, fontweight="bold")
    axes.text(1.25, y, f"{_unit(row)}, n={row.items}", va="center", fontsize=7.5, color="#555555")


def plot_report(rows: Sequence[ReportRow], results: Mapping[str, Any], path: Path) -> None:
    """Bar chart of all rows: bars show the first model, diamonds the others, black lines the chance level. Longer is better."""
    figure = plots.figure(11.4, 0.34 * len(rows) + 1.7, layout=None)
    # Margins of fixed height in inches, whatever the number of rows.
    inch = 1 / figure.get_figheight()
    axes = figure.add_axes((0.32, 0.6 * inch, 0.38, 1 - 1.2 * inch))
    for y, row in enumerate(rows):
        _plot_row(axes, y, row)
        if y == 0 or rows[y - 1].group != row.group:
            axes.text(-0.79, y, row.group, fontsize=9.5, fontweight="bold", color=COLORS[row.group], va="center")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.text(0.02, 1 - 0.3 * inch, "Alhena · report card", fontsize=14, fontweight="bold", va="center")
    figure.text(0.32, 1 - 0.3 * inch, _headline(results), fontsize=8.5, color="#444444", va="center")
    bar, *diamonds = rows[0].scores
    legend = [f"bar: {bar}", *([f"◇: {', '.join(diamonds)}"] if diamonds else []), "│: chance level"]
    note = "   ".join([*legend, "↓: lower is better (longer bars are better everywhere)"])
    figure.text(0.32, 0.27 * inch, note, fontsize=8, color="#444444", va="center")
    plots.save(figure, path)


def _data_url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _img(png: bytes, name: str, alt: str) -> str:
    return f'<img class="{name}" src="{_data_url("image/png", png)}" alt="{alt}">'


def _waveform(samples: Float[np.ndarray, " samples"]) -> bytes:
    figure = plots.figure(2.2, 0.7, layout=None, dpi=80)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot(np.arange(len(samples)) / SAMPLE_RATE, samples, linewidth=0.5, color=plots.ORANGE)
    axes.set_ylim(-1, 1)
    axes.set_axis_off()
    return plots.as_png(figure, transparent=True)


def _part(part: Part) -> str:
    if isinstance(part, Image):
        return f'<img class="pixels" src="{_data_url(part.mime, part.data)}" alt="image">'
    if isinstance(part, Video):
        strip = np.concatenate(list(decode_video(part.data, VIDEO_FRAMES).frames), axis=1)
        return _img(encode_png(strip), "strip", "video frames")
    if isinstance(part, Audio):
        player = f'<audio controls src="{_data_url(part.mime, part.data)}"></audio>'
        return _img(_waveform(decode_audio(part.data)), "wave", "waveform") + player
    media = "".join(map(_part, part.parts)) if isinstance(part, ToolResult) else ""
    return f"<p>{html.escape((written(part) or '')[-160:])}</p>{media}"


def _item(question: AnsweredQuestion) -> str:
    """A test item: its prompt, the answer of each model, and the reference."""
    prompt = "".join(_part(part) for content in question.document.contents[:-1] for part in content.parts)
    answers = []
    for name, answer in question.answers.items():
        kind = "good" if matches(question.reference, answer) == 1 else "bad"
        image = _img(question.images[name], "pixels", "generated image") if name in question.images else ""
        mark = "✓" if kind == "good" else "✗"
        text = html.escape(answer[:80])
        answers.append(f'<p class="{kind}"><small>{html.escape(name)}</small> {image}{mark} {text}</p>')
    reference = f"<p><small>reference</small> {html.escape(question.reference[:80])}</p>"
    return f"<figure>{prompt}{''.join(answers)}{reference}</figure>"


def _score_cell(row: ReportRow, score: float) -> str:
    """A score and its bar, with a mark at the chance level."""
    bar = f'<i style="width:{100 * _quality(row, score):.0f}%;background:{COLORS[row.group]}"></i>'
    mark = f'<b style="left:{100 * _quality(row, row.chance):.0f}%"></b>'
    return f'<td class="n">{formatted(row, score)}<span class="bar">{bar}{mark}</span></td>'


def _table(rows: Sequence[ReportRow]) -> str:
    numbers = ("items", "chance", *rows[0].scores, "± 95 %", "truncated")
    head = "<th></th><th>capability</th><th>metric</th>"
    head += "".join(f'<th class="n">{html.escape(name)}</th>' for name in numbers)
    body = []
    for row in rows:
        interval = f"{row.interval:.1f}" if row.interval is not None else "–"
        cells = [
            f'<td style="color:color-mix(in srgb,{COLORS[row.group]} 70%,var(--ink))">{row.group}</td>',
            f"<td>{html.escape(row.name)}</td><td>{_unit(row)}</td>",
            f'<td class="n">{row.items}</td><td class="n">{formatted(row, row.chance)}</td>',
            *(_score_cell(row, score) for score in row.scores.values()),
            f'<td class="n">{interval}</td><td class="n">{max(row.truncated.values(), default=0) or "–"}</td>',
        ]
        body.append(f'<tr class="{"" if row.above_chance else "bad"}">{"".join(cells)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--paper:#fcfcfa;--line:#dcdcd6;--soft:#f1f1ee;--good:#1d7a41;--bad:#c2405a}
@media(prefers-color-scheme:dark){:root{--ink:#eaeae6;--paper:#16181b;--line:#34383d;--soft:#22262a;--good:#5fc98a;--bad:#f0809a}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2.2rem;border-bottom:1px solid var(--line);font-size:1.15rem}
.table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:600;white-space:nowrap}
td,th{padding:.25rem .5rem;border-bottom:1px solid var(--line)}td{white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:block;position:relative;height:5px;min-width:70px;background:var(--soft);margin-top:2px}.bar i{display:block;height:5px}
.bar b{position:absolute;top:-2px;width:2px;height:9px;background:var(--ink)}
.gallery{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;padding:.6rem;background:var(--soft);border-radius:8px;width:220px}
figure p{margin:.2rem 0;overflow-wrap:anywhere}figure img{max-width:100%;display:block;margin-bottom:.3rem}
.pixels{image-rendering:pixelated;min-width:96px}.strip{image-rendering:pixelated;width:100%}audio{width:100%;height:32px}
.good{color:var(--good)}.bad{color:var(--bad)}small{opacity:.7}
"""

_NOTES = """<p>The mark on a bar is the chance level: the best constant answer (for retrieval one of the listed numbers, for bits per
byte the entropy of single bytes). Combinations in the test split never occur in training. Generated digits are labeled by a support
vector machine trained on handwritten digits ({accuracy} % correct on handwritten digits held out from its training), generated shapes
by template matching. A row in red is not above chance. An answer is truncated at a limit derived from the longest reference of its
task.{skipped}</p>"""


def _skipped(results: Mapping[str, Any]) -> str:
    reasons = "; ".join(f"{count} × {html.escape(reason)}" for reason, count in results["skipped"].items())
    return f" Skipped questions: {reasons}." if reasons else ""


def _page(evaluation: Evaluation, results: Mapping[str, Any]) -> str:
    tasks: dict[str, list[AnsweredQuestion]] = {}
    for question in evaluation.answers.questions:
        tasks.setdefault(task_of(question.document), []).append(question)
    galleries = "".join(
        f'<h2>{html.escape(task)}</h2><div class="gallery">{"".join(map(_item, questions[:GALLERY_ITEMS]))}</div>'
        for task, questions in tasks.items()
    )
    notes = _NOTES.format(accuracy=results["digit_judge_accuracy"], skipped=_skipped(results))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Alhena: report card</title><style>{_STYLE}</style><h1>Report card</h1><p>{_headline(results)}</p>"
        f'<div class="table">{_table(evaluation.rows)}</div>{notes}{galleries}</html>'
    )


def write_report(evaluation: Evaluation, results: Mapping[str, Any], out: Path) -> None:
    """Writes report.png and report.html. ``results`` is the content of results.json."""
    plot_report(evaluation.rows, results, out / "report.png")
    write_atomically(out / "report.html", _page(evaluation, results))
