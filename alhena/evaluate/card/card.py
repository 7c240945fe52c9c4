"""The card: rows of all sources side by side, by section, and which models differ from the first beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alhena.evaluate.card.examples import Example
from alhena.evaluate.card.heat_map import HeatMap
from alhena.evaluate.card.history import Series, history_json, read_history, section_score, series
from alhena.evaluate.card.sources import Routed, Source
from alhena.evaluate.measure import paired
from alhena.evaluate.models.facts import ModelFacts
from alhena.evaluate.results import SECTIONS, ReportRow
from alhena.evaluate.statistics import holm

LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """A model beside the first one of a row, on the items that both answered; ``p`` is corrected for all tests of the card."""

    base: str
    items: int
    difference: float
    low: float
    high: float
    p: float
    test: str
    better: bool

    @property
    def differs(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True)
class CardRow:
    """A row with the scores of all models. ``items`` is that of each model, ``verdicts`` those of all but the first."""

    row: ReportRow
    items: Mapping[str, int]
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Scores of a section from chance (0) to the best (100) by model: over the rows that all of these models have."""

    section: str
    rows: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Card:
    """Everything a report card shows."""

    models: Mapping[str, ModelFacts]
    rows: Sequence[CardRow]
    summaries: Sequence[Summary]
    examples: Sequence[Example]
    history: Sequence[Series]
    heat_maps: Sequence[HeatMap]
    routed: Sequence[Routed]
    notes: Sequence[str]

    @property
    def with_figures(self) -> bool:
        """Whether a row has a figure of the Gemini 1.0 report."""
        return any(row.row.ultra is not None or row.row.pro is not None for row in self.rows)

    def of_section(self, section: str) -> list[CardRow]:
        return [row for row in self.rows if row.row.section == section]

    @property
    def sections(self) -> list[str]:
        return [section for section in SECTIONS if self.of_section(section)]

    def to_json(self) -> dict[str, Any]:
        """The content of report.json."""
        rows = [
            r.row.to_json()
            | {
                "items": dict(r.items),
                "verdicts": {m: asdict(v) | {"differs": v.differs} for m, v in r.verdicts.items()},
            }
            for r in self.rows
        ]
        return {
            "models": [{"name": name} | asdict(facts) for name, facts in self.models.items()],
            "summary": [asdict(summary) for summary in self.summaries],
            "rows": rows,
            "history": history_json(self.history),
            "heat_maps": [asdict(one) for one in self.heat_maps],
            "notes": list(self.notes),
        }


# ── names ──────────────────────────────────────────────────────────────────────────────────────────────────


def _names(sources: Sequence[Source]) -> dict[tuple[Path, str, str], str]:
    """The name under which each model of each run is shown: its own, with label or run where two have the same."""
    models = list(dict.fromkeys((s.origin, s.label, model) for s in sources for model in _models_of(s)))
    of_label: dict[str, set[str]] = {}
    for _, label, model in models:
        of_label.setdefault(label, set()).add(model)
    out: dict[tuple[Path, str, str], str] = {}
    for origin, label, model in models:
        same = {o for o, other, m in models if m == model and other == label and o != origin}
        own = f"{model} ({origin.name})" if same else model
        shown = own if not label else label if len(of_label[label]) == 1 and not same else f"{label} {own}"
        out[origin, label, model] = shown
    return out


def _models_of(source: Source) -> list[str]:
    named = [model for row in source.rows for model in row.scores]
    return list(dict.fromkeys([*source.models, *named, *(m.model for m in source.heat_maps if m.model)]))


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[model]: value for model, value in values.items() if model in names}


def _named(source: Source, names: Mapping[str, str]) -> Source:
    """A source with the shown names of its models."""
    rows = [
        replace(
            row,
            scores=_renamed(row.scores, names),
            intervals=_renamed(row.intervals, names),
            truncated=_renamed(row.truncated, names),
            scored=_renamed(row.scored, names),
        )
        for row in source.rows
    ]
    return replace(
        source,
        rows=rows,
        models=_renamed(source.models, names),
        examples=[replace(example, answers=_renamed(example.answers, names)) for example in source.examples],
        heat_maps=[replace(one, model=names.get(one.model, one.model)) for one in source.heat_maps],
        routed=[replace(one, model=names.get(one.model, one.model)) for one in source.routed],
    )


# ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────


def _merged(rows: Sequence[ReportRow], models: Sequence[str]) -> list[CardRow]:
    """Rows of the same metric and protocol as one; of two results of one model in a row the first counts."""
    groups: dict[tuple[str, str], list[ReportRow]] = {}
    for row in rows:
        groups.setdefault((row.key, row.protocol), []).append(row)
    out = []
    for group in groups.values():
        merged, items = group[0], dict.fromkeys(group[0].scores, group[0].items)
        for row in group[1:]:
            items = dict.fromkeys(row.scores, row.items) | items
            merged = replace(
                merged, scores={**row.scores, **merged.scores}, intervals={**row.intervals, **merged.intervals},
                truncated={**row.truncated, **merged.truncated}, scored={**row.scored, **merged.scored},
            )  # fmt: skip
        scores = {model: merged.scores[model] for model in models if model in merged.scores}
        out.append(CardRow(replace(merged, scores=scores), items))
    return sorted(out, key=lambda row: SECTIONS.index(row.row.section))


def _verdict(row: ReportRow, base: str, model: str) -> Verdict | None:
    """The difference of a model from the base on common items, uncorrected; None where they have none."""
    of_base = {item.id: item for item in row.scored.get(base, ())}
    common = [item for item in row.scored.get(model, ()) if item.id in of_base]
    if len(common) < 2 or any(of_base[item.id].reference != item.reference for item in common):
        return None
    d = paired(row.measure, [of_base[item.id] for item in common], common)
    better = (d.b < d.a) if row.lower_is_better else (d.b > d.a)
    return Verdict(base, len(common), round(d.b - d.a, 3), round(d.low, 3), round(d.high, 3), d.p, d.test, better)


def _with_verdicts(rows: Sequence[CardRow], models: Sequence[str]) -> list[CardRow]:
    """Every model beside the first one that a row has, with p-values corrected together (Holm)."""
    found: list[tuple[int, str, Verdict]] = []
    for n, row in enumerate(rows):
        base, *others = [model for model in models if model in row.row.scores]
        for model in others:
            if verdict := _verdict(row.row, base, model):
                found.append((n, model, verdict))
    by_row: dict[int, dict[str, Verdict]] = {}
    for (n, model, verdict), p in zip(found, holm([v.p for _, _, v in found]), strict=True):
        by_row.setdefault(n, {})[model] = replace(verdict, p=float(f"{p:.3g}"))
    return [replace(row, verdicts=by_row.get(n, {})) for n, row in enumerate(rows)]


def _summary(section: str, rows: Sequence[CardRow], all_models: Sequence[str]) -> Summary | None:
    models = [model for model in all_models if any(model in row.row.scores for row in rows)]
    common = [row.row for row in rows if all(model in row.row.scores for model in models)]
    scores = {model: section_score(common, model) for model in models}
    known = {model: round(score, 1) for model, score in scores.items() if score is not None}
    return Summary(section, len(common), known) if known else None


def _examples(sources: Sequence[Source]) -> list[Example]:
    """Examples of all sources; one item that several models answered is one example."""
    out: dict[tuple[str, tuple[str, ...]], Example] = {}
    for example in (example for source in sources for example in source.examples):
        key = example.id, example.rows
        known = out.get(key, example)
        out[key] = replace(known, answers={**example.answers, **known.answers})
    return [*out.values()]


def _history(sources: Sequence[Source], names: Mapping[tuple[Path, str, str], str]) -> list[Series]:
    out = []
    for origin, label in dict.fromkeys((source.origin, source.label) for source in sources):
        for one in series(read_history(origin)):
            out.append(replace(one, model=names.get((origin, label, one.model), one.model)))
    return [one for one in out if one.model in set(names.values())]


def make_card(sources: Sequence[Source]) -> Card:
    """The card of all sources. Raises ValueError when they hold nothing to show."""
    names = _names(sources)
    named = [
        _named(source, {model: names[source.origin, source.label, model] for model in _models_of(source)})
        for source in sources
    ]
    models: dict[str, ModelFacts] = {}
    for source in named:
        for model in _models_of(source):
            models[model] = source.models.get(model) or models.get(model) or ModelFacts()
    rows = _with_verdicts(_merged([row for source in named for row in source.rows], [*models]), [*models])
    maps = [one for source in named for one in source.heat_maps]
    if not rows and not maps:
        raise ValueError("the results have no rows: nothing can be reported")
    sections = [section for section in SECTIONS if any(row.row.section == section for row in rows)]
    summaries = [
        _summary(section, [row for row in rows if row.row.section == section], [*models]) for section in sections
    ]
    return Card(
        models, rows, [one for one in summaries if one], _examples(named), _history(sources, names), maps,
        [one for source in named for one in source.routed], list(dict.fromkeys(note for s in named for note in s.notes)),
    )  # fmt: skip
