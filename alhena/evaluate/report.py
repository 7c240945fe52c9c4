"""The report card as a picture and as one self-contained page."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alhena import plots
from alhena.content import Audio, Image, Text, Video
from alhena.evaluate.metrics import matches
from alhena.evaluate.results import AnsweredQuestion, ReportRow
from alhena.files import write_atomically
from alhena.media import SAMPLE_RATE, decode_audio, decode_video, encode_png

COLOURS = {
    "text": plots.SLATE,
    "image": plots.BLUE,
    "audio": plots.ORANGE,
    "video": plots.PURPLE,
    "combined": plots.GREEN,
    "drawing": plots.RED,
}
GALLERY_ITEMS = 4  # test items of each kind in the gallery


def _headline(results: Mapping[str, Any]) -> str:
    facts, sizes = results["model"], results["bytes"]
    weights = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    seen = f"{facts.get('tokens_seen', 0) / 1e6:.1f} M tokens of pre-training"
    return f"{facts.get('parameters', 0) / 1e6:.2f} M parameters · {seen} · {weights}"


def _height(line: ReportRow, value: float) -> float:
    """Where a score stands between the worst (0) and the best (1) of its scale."""
    if line.metric == "bits per byte":
        return 1 - value / 8
    return 1 - min(value, 100) / 100 if line.lower_is_better else value / 100


def plot_report(lines: Sequence[ReportRow], results: Mapping[str, Any], path: Path) -> None:
    """Bars from chance to score, one a capability; a diamond marks the 4-bit model. Longer is better on every row."""
    figure = plots.figure(10.8, 0.34 * len(lines) + 1.7, layout=None)
    axes = figure.add_axes((0.31, 0.07, 0.42, 0.84))
    names = list(lines[0].scores)
    for y, line in enumerate(lines):
        heights = [_height(line, line.scores[name]) for name in names]
        low, colour = _height(line, line.chance), COLOURS[line.group]
        axes.barh(y, 1, color=plots.PALE, height=0.72, zorder=0)
        axes.barh(y, heights[0], color=colour, height=0.72, zorder=1)
        axes.plot([low, low], [y - 0.42, y + 0.42], color="#111", linewidth=1.6, zorder=3)
        for height in heights[1:]:
            axes.plot(
                height, y, marker="D", color="white", markeredgecolor="#111", markersize=5, zorder=4, clip_on=False
            )
        value = [f"{line.scores[n]:.2f}" if line.metric == "bits per byte" else f"{line.scores[n]:.1f}" for n in names]
        unit = line.metric + (" ↓" if line.lower_is_better else "")
        axes.text(1.02, y, f"{' / '.join(value)}", va="center", fontsize=9, fontweight="bold")
        axes.text(1.25, y, f"{unit}, n={line.items}", va="center", fontsize=7.5, color="#555")
    axes.set_yticks(range(len(lines)), [line.name for line in lines], fontsize=9)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, line in enumerate(lines):
        if y == 0 or lines[y - 1].group != line.group:
            axes.text(-0.7, y, line.group, fontsize=9.5, fontweight="bold", color=COLOURS[line.group], va="center")
    figure.text(0.03, 0.965, "Alhena · report card", fontsize=14, fontweight="bold", va="center")
    figure.text(0.31, 0.965, _headline(results), fontsize=8.5, color="#444", va="center")
    note = f"bar: {names[0]}   ◇: {', '.join(names[1:])}   │: chance   ↓: lower is better (longer bars are better everywhere)"
    figure.text(0.31, 0.025, note, fontsize=8, color="#444")
    plots.save(figure, path)


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _wave(samples: np.ndarray) -> bytes:
    figure = plots.figure(2.2, 0.7, layout=None, dpi=80)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot(np.arange(len(samples)) / SAMPLE_RATE, samples, linewidth=0.5, color=plots.ORANGE)
    axes.set_ylim(-1, 1)
    axes.set_axis_off()
    return plots.as_png(figure, transparent=True)


def _media(part: object) -> str:
    if isinstance(part, Image):
        return f'<img class="pixels" src="{_inline(part.data)}" alt="picture">'
    if isinstance(part, Video):
        strip = np.concatenate(list(decode_video(part.data, 6).frames), axis=1)
        return f'<img class="strip" src="{_inline(encode_png(strip))}" alt="frames of a clip">'
    if isinstance(part, Audio):
        sound = base64.b64encode(part.data).decode()
        player = f'<audio controls src="data:{part.mime};base64,{sound}"></audio>'
        return f'<img src="{_inline(_wave(decode_audio(part.data)))}" alt="waveform">{player}'
    return f"<p>{html.escape(part.text[-160:])}</p>" if isinstance(part, Text) else ""


def _item(a: AnsweredQuestion) -> str:
    asked = "".join(_media(part) for content in a.document.contents[:-1] for part in content.parts)
    said = []
    for name, answer in a.answers.items():
        good = matches(a.reference, answer) == 1
        picture = f'<img class="pixels" src="{_inline(a.images[name])}" alt="drawn">' if name in a.images else ""
        said.append(
            f'<p class="{"good" if good else "bad"}"><small>{name}</small> {picture}{html.escape(answer[:80])}</p>'
        )
    return f'<figure>{asked}{"".join(said)}<p class="ref"><small>right</small> {html.escape(a.reference[:80])}</p></figure>'


def _table(lines: Sequence[ReportRow]) -> str:
    names = list(lines[0].scores)
    head = "".join(
        f"<th>{html.escape(n)}</th>"
        for n in ("", "capability", "metric", "items", "chance", *names, "± 95 %", "cut off")
    )
    body = []
    for line in lines:
        scores = "".join(
            f'<td class="n">{line.scores[n]:.2f}<span class="bar"><i style="width:{100 * max(_height(line, line.scores[n]), 0):.0f}%;'
            f'background:{COLOURS[line.group]}"></i><b style="left:{100 * max(_height(line, line.chance), 0):.0f}%"></b></span></td>'
            for n in names
        )
        interval = f"{line.interval:.1f}" if line.interval is not None else "–"
        arrow = " ↓" if line.lower_is_better else ""
        body.append(
            f'<tr class="{"" if line.above_chance else "bad"}"><td style="color:{COLOURS[line.group]}">{line.group}</td><td>{html.escape(line.name)}</td><td>{line.metric}{arrow}</td>'
            f'<td class="n">{line.items}</td><td class="n">{line.chance:.2f}</td>{scores}<td class="n">{interval}</td>'
            f'<td class="n">{max(line.truncated.values(), default=0) or "–"}</td></tr>'
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--paper:#fcfcfa;--line:#dcdcd6;--soft:#f1f1ee}
@media(prefers-color-scheme:dark){:root{--ink:#eaeae6;--paper:#16181b;--line:#34383d;--soft:#22262a}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2.2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:600}
td,th{padding:.25rem .5rem;border-bottom:1px solid var(--line)}.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:block;position:relative;height:5px;background:var(--soft);margin-top:2px}.bar i{display:block;height:5px}
.bar b{position:absolute;top:-2px;width:2px;height:9px;background:var(--ink)}
.gallery{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;padding:.6rem;background:var(--soft);border-radius:8px;max-width:220px}
figure p{margin:.2rem 0;overflow-wrap:anywhere}figure img{max-width:100%;display:block}.pixels{image-rendering:pixelated;min-width:96px}
.strip{image-rendering:pixelated;width:200px}audio{width:200px;height:28px}.good{color:#1d8a4a}.bad{color:#c2405a}.ref{opacity:.7}small{opacity:.6}
"""


def _not_asked(results: Mapping[str, Any]) -> str:
    reasons = "; ".join(f"{count} × {html.escape(reason)}" for reason, count in results["not_asked"].items())
    return f" Not asked: {reasons}." if reasons else ""


def _page(lines: Sequence[ReportRow], answered: Sequence[AnsweredQuestion], results: Mapping[str, Any]) -> str:
    tasks: dict[str, list[AnsweredQuestion]] = {}
    for a in answered:
        tasks.setdefault(str(a.document.facts.get("task")), []).append(a)
    galleries = "".join(
        f'<h2>{html.escape(task)}</h2><div class="gallery">{"".join(map(_item, some[:GALLERY_ITEMS]))}</div>'
        for task, some in tasks.items()
    )
    judge = results["digit_judge_accuracy"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Alhena: report card</title><style>{_STYLE}</style><h1>Report card</h1><p>{_headline(results)}</p>{_table(lines)}"
        f"<p>The dark mark is the chance level: the best constant answer (one listed number for retrieval, single-byte entropy for bits per "
        f"byte). The test split holds combinations never seen in training. Drawn digits are judged by a support vector machine trained on real "
        f"digits ({judge} % right on real ones it has not seen), drawn shapes by their pixels. A row in red is not above chance. An answer "
        f"is cut off at the limit that follows from the longest reference of its task.{_not_asked(results)}</p>{galleries}</html>"
    )


def write_report(lines: Sequence[ReportRow], answered: Sequence[AnsweredQuestion], results: Mapping[str, Any], out: Path) -> None:
    """Writes report.png and report.html."""
    plot_report(lines, results, out / "report.png")
    write_atomically(out / "report.html", _page(lines, answered, results))
