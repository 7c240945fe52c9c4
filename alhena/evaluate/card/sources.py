"""Sources of a report card: results.json of an evaluation, TASK.json of a benchmark, and maps of accuracy by length and depth.

RUN/report, RUN/reports/NAME    results.json, answers.jsonl, examples.jsonl        `alhena evaluate`
RUN/held_out/NAME               the same                                           `alhena evaluate --data`
RUN/benchmarks/NAME             TASK.json, TASK.jsonl, TASK.examples.jsonl         `alhena evaluate --tasks`
RUN/context/NAME                retrieval*.json: {"lengths", "depths", "accuracy": [[percent]], "items", …}     `alhena context`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alhena.evaluate.benchmarks.protocols import Protocol
from alhena.evaluate.card.examples import Example, read_examples
from alhena.evaluate.card.heat_map import HeatMap
from alhena.evaluate.measure import Scored
from alhena.evaluate.models.facts import ModelFacts
from alhena.evaluate.results import ReportRow
from alhena.evaluate.tasks.items import Reported
from alhena.files import read_json, read_lines
from alhena.schema import parsed

RESULTS, ANSWERS, EXAMPLES = "results.json", "answers.jsonl", "examples.jsonl"
# Folders of a run in which evaluations write, in the order in which they are read.
FOLDERS = ("report", "reports/*", "held_out/*", "benchmarks/*", "context/*")
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class RoutedPoint:
    """Scores of the routed protocol at one k, in percent."""

    k: int
    threshold: float
    greedy: float
    majority: float
    routed: float


@dataclass(frozen=True)
class Routed:
    """Scores of a benchmark without chain of thought, of the majority of k, and routed by uncertainty."""

    task: str
    model: str
    items: int
    chance: float
    by_k: tuple[RoutedPoint, ...]


@dataclass(frozen=True)
class _OfRow:
    """What an item counts in a row, and its score by model."""

    weight: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Source:
    """What one file holds. ``origin`` is the run folder that it belongs to, ``label`` the name that the user gave it."""

    path: Path
    origin: Path
    label: str
    rows: Sequence[ReportRow] = ()
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    routed: Sequence[Routed] = ()
    heat_maps: Sequence[HeatMap] = ()
    notes: Sequence[str] = ()


def origin_of(folder: Path) -> Path:
    """The run folder of a folder of results."""
    if folder.name == "report":
        return folder.parent
    return folder.parent.parent if folder.parent.name in ("reports", "held_out", "benchmarks", "context") else folder


def _read(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; results of at most {MAX_BYTES:,} are read")
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _is_heat_map(value: Mapping[str, Any]) -> bool:
    return {"lengths", "depths", "accuracy"} <= value.keys()


def result_files(path: Path) -> list[Path]:
    """Files of results at a path: a file, a folder of them, or a run. Raises ValueError when there are none."""
    if path.is_file():
        return [path]
    folders = [path, *(folder for pattern in FOLDERS for folder in sorted(path.glob(pattern)))]
    found = [file for folder in folders if folder.is_dir() for file in _files_in(folder)]
    if not found:
        raise ValueError(
            f"{path}: no results here; `alhena evaluate` writes them (results.json, or TASK.json with TASK.jsonl)"
        )
    return found


def _files_in(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.glob("*.json")):
        if file.name == RESULTS or file.with_suffix(".jsonl").exists() or file.name.startswith("retrieval"):
            yield file


def read_source(path: Path, label: str = "") -> Source:
    """Reads one file of results. Raises ValueError that names file and field."""
    value, origin = _read(path), origin_of(path.parent)
    if _is_heat_map(value):
        known = {name: value[name] for name in HeatMap.__dataclass_fields__ if name in value}
        one = parsed(HeatMap, known, path)
        row = one.row()
        return Source(path, origin, label, [row] if row else [], _facts(value, one.model, path), heat_maps=(one,))
    if "task" in value:
        return _benchmark(value, path, origin, label)
    if "rows" not in value:
        raise ValueError(
            f"{path}: neither results.json of an evaluation, nor TASK.json of a benchmark, nor a map by length and depth"
        )
    value = read_json(path, rows=list, models=list)
    by_row = _scored_by_row(path.with_name(ANSWERS))
    rows = [parsed(ReportRow, row, path, f"rows.{n}") for n, row in enumerate(value["rows"])]
    reasons = value.get("skipped", {}).items()
    return Source(
        path, origin, label,
        [replace(row, scored=by_row.get(row.key, {})) for row in rows],
        _models(value["models"], path),
        read_examples(path.with_name(EXAMPLES)),
        notes=[f"not measured: {count} × {reason}" for reason, count in reasons],
    )  # fmt: skip


def _models(listed: Sequence[Any], path: Path) -> dict[str, ModelFacts]:
    """Facts by name, in order: the first model is the one that others are compared with."""
    if not all(isinstance(facts, dict) and isinstance(facts.get("name"), str) for facts in listed):
        raise ValueError(f"{path}: models: each is an object with a name")
    return {m["name"]: parsed(ModelFacts, {n: v for n, v in m.items() if n != "name"}, path, "models") for m in listed}


def _facts(value: Mapping[str, Any], model: str, path: Path) -> dict[str, ModelFacts]:
    """What a result says of its one model."""
    return {model: parsed(ModelFacts, value["model_facts"], path, "model_facts")} if "model_facts" in value else {}


def _scored_by_row(path: Path) -> dict[str, dict[str, list[Scored]]]:
    """Items of answers.jsonl by row and model."""
    out: dict[str, dict[str, list[Scored]]] = {}
    for number, line in enumerate(read_lines(path, id=str), 1):
        rows = parsed(dict[str, _OfRow], line.get("rows", {}), path, f"line {number}, rows")
        answers, reference = line.get("answers", {}), str(line.get("reference", ""))
        for key, of_row in rows.items():
            for model, score in of_row.scores.items():
                item = Scored(line["id"], score, of_row.weight, str(answers.get(model, "")), reference)
                out.setdefault(key, {}).setdefault(model, []).append(item)
    return out


def _benchmark(value: Mapping[str, Any], path: Path, origin: Path, label: str) -> Source:
    value = read_json(
        path, task=str, family=str, metric=str, binary=bool, protocol=dict, items=int, score=float, interval=list,
        chance=float, reported=dict, model=str, truncated=int,
    )  # fmt: skip
    task, model, p = value["task"], value["model"], parsed(Protocol, value["protocol"], path, "protocol")
    reported = parsed(Reported, value["reported"], path, "reported")
    asked = f"{p.kind}@{p.samples}" if p.kind in ("majority", "routed") else p.kind
    row = parsed(
        ReportRow,
        {
            "section": value["family"], "name": task, "metric": value["metric"], "chance": value["chance"], "items": value["items"],
            "lower_is_better": value.get("lower_is_better", False), "scores": {model: value["score"]},
            "intervals": {model: value["interval"]}, "truncated": {model: value["truncated"]}, "binary": value["binary"],
            "corpus": value.get("corpus_metric"), "by_group": value.get("by_group", False), "protocol": f"{asked}, {p.shots}-shot",
            "note": value.get("note", ""), "ultra": reported.ultra, "pro": reported.pro, "reported": reported.protocol,
        },
        path,
    )  # fmt: skip
    curve = {name: value[name] for name in Routed.__dataclass_fields__ if name in value}
    return Source(
        path, origin, label, [replace(row, scored={model: read_outcomes(path.with_suffix(".jsonl"))})],
        _facts(value, model, path),
        read_examples(path.with_name(f"{path.stem}.{EXAMPLES}")),
        [parsed(Routed, curve, path)] if "by_k" in value else (),
        notes=[f"{task}, {model}: {count} × not asked: {reason}" for reason, count in value.get("not_asked", {}).items()],
    )  # fmt: skip


def read_outcomes(path: Path) -> list[Scored]:
    """The items of TASK.jsonl."""
    return [
        Scored(
            line["id"], line["score"], line.get("weight", 1.0), line["answer"], line["reference"], line.get("group", "")
        )
        for line in read_lines(path, id=str, score=float, answer=str, reference=str)
    ]
