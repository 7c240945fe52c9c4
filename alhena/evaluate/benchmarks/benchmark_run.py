"""Runs benchmarks on a model; of each writes TASK.json (score, interval, settings) and TASK.jsonl (the outcome of every item).

    OUT/gsm8k.json, gsm8k.jsonl, and gsm8k.png for the routed protocol      what `alhena compare` reads

A task whose result is there under the same settings, data and model is not asked again.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from alhena.evaluate.benchmarks.contamination import Contamination, contamination
from alhena.evaluate.benchmarks.protocols import Asked, Outcome, Protocol, Result, outcome_of, run
from alhena.evaluate.benchmarks.routing_figure import plot_routing
from alhena.evaluate.card.examples import MAX_ANSWER, Example, ShownAnswer, chosen, image_url, lines, pieces_of, short
from alhena.evaluate.card.history import add_to_history
from alhena.evaluate.card.sources import origin_of, read_source
from alhena.evaluate.card.write import write_card
from alhena.evaluate.measure import Measure, Scored, interval_of, score_of
from alhena.evaluate.models.facts import ModelFacts
from alhena.evaluate.models.interface import LanguageModel
from alhena.evaluate.results import row_key
from alhena.evaluate.tasks.items import Item, Kind, Metric, Split, Task, loaded
from alhena.files import content_fingerprint, fingerprint, read_json, write_atomically, write_json
from alhena.progress import progress_bar

# Constant answers that are tried for the chance level.
CONSTANTS = 10
# Items of the validation split that choose a threshold.
MAX_VALIDATION = 200


@dataclass(frozen=True)
class Options:
    """How benchmarks are run; None: as the benchmark is published."""

    kind: Kind | None = None
    shots: int | None = None
    samples: int = 8
    temperature: float = 0.7
    threshold: float | None = None
    # Items of each benchmark, drawn at random; None: all.
    limit: int | None = None
    seed: int = 0
    max_tokens: int | None = None
    # A curated training corpus, in which the items are looked for.
    corpus: Path | None = None

    def protocol(self, task: Task) -> Protocol:
        shots = task.shots if self.shots is None else self.shots
        kind = self.kind or task.kind
        return Protocol(kind, shots, self.samples, self.temperature, self.seed, self.threshold, self.max_tokens)


def drawn(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """That many items at random, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def read_task(task: Task, folder: Path, options: Options) -> tuple[Asked, Asked, int]:
    """The items of test and validation that are asked, with their shots; and the number of all items of the test split."""

    def items(split: Split) -> list[Item]:
        return list(task.read(folder, split))

    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; --data names a folder with one for each benchmark")
    test, p = items("test"), options.protocol(task)
    if not test:
        raise ValueError(f"{folder}: its files hold no test item of {task.name}")
    shots = items("shots") if p.shots else []
    is_routed = p.kind == "routed" and p.threshold is None
    validation = (
        drawn(items("validation"), min(MAX_VALIDATION, options.limit or MAX_VALIDATION), p.seed) if is_routed else []
    )
    return Asked(task, drawn(test, options.limit, p.seed), shots), Asked(task, validation, shots), len(test)


def chance_level(task: Task, items: Sequence[Item], kind: Kind) -> float:
    """The score of guessing a choice, or of the best constant answer, in percent."""
    if task.chance is not None:
        return 100 * task.chance
    if kind == "choices" or all(item.choices for item in items):
        return 100 * float(np.mean([1 / len(item.choices) for item in items]))
    counts = Counter(item.reference for item in items)
    common = sorted(counts, key=lambda text: (-counts[text], text))[:CONSTANTS]
    measure, best = measure_of(task.metric), min if task.metric.lower_is_better else max
    return best(score_of(measure, scored([outcome_of(task, item, answer) for item in items])) for answer in common)


def measure_of(metric: Metric) -> Measure:
    return Measure(metric.name, metric.lower_is_better, metric.binary, metric.corpus, metric.by_group)


def scored(outcomes: Sequence[Outcome]) -> list[Scored]:
    return [Scored(o.id, o.score, o.weight, o.answer, o.reference, o.group) for o in outcomes]


def _by_group(measure: Measure, outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Scored]] = {}
    for outcome in scored(outcomes):
        groups.setdefault(outcome.group, []).append(outcome)
    return {
        name: {"items": len(of_group), "score": round(score_of(measure, of_group), 2)}
        for name, of_group in sorted(groups.items())
        if name
    }


def task_result(task: Task, p: Protocol, result: Result, held: Contamination | None) -> dict[str, Any]:
    """The content of TASK.json but for what is known of the run."""
    outcomes = result.outcomes
    measure = measure_of(task.metric)
    score = score_of(measure, scored(outcomes))
    low, high = interval_of(measure, scored(outcomes), p.seed) or (score, score)
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.reason:
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    out = {
        "task": task.name,
        "family": task.family,
        "metric": task.metric.name,
        "binary": task.metric.binary,
        "corpus_metric": task.metric.corpus,
        "lower_is_better": task.metric.lower_is_better,
        "by_group": task.metric.by_group,
        "protocol": asdict(p),
        "items": len(outcomes),
        "score": round(score, 2),
        "interval": [round(low, 2), round(high, 2)],
        "without_answer": sum(not outcome.answer for outcome in outcomes),
        "truncated": sum(outcome.truncated for outcome in outcomes),
        "not_asked": reasons,
        "groups": _by_group(measure, outcomes),
        "reported": asdict(task.reported),
        "note": task.note,
        **result.facts,
    }
    if held is not None:
        out["contamination"] = held.facts({outcome.id: outcome.score for outcome in outcomes})
    return out


def outcome_lines(outcomes: Sequence[Outcome], held: Contamination | None) -> str:
    """The content of TASK.jsonl; generated images are in the examples."""
    lines = [asdict(o) | ({"held": o.id in held.held} if held else {}) for o in outcomes]
    for line in lines:
        del line["image"]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def task_examples(asked: Asked, outcomes: Sequence[Outcome], model: str) -> str:
    """The content of TASK.examples.jsonl: questions without their shots, and what was answered."""
    task, items = asked.task, {item.id: item for item in asked.items}
    key = row_key(task.family, task.name, task.metric.name)
    by_id = {outcome.id: outcome for outcome in outcomes}
    examples = []
    ids = chosen([scored(outcomes)], task.metric.lower_is_better)
    for item, with_media in zip([items[id] for id in ids], loaded([items[id] for id in ids]), strict=True):
        outcome = by_id[item.id]
        # Media that cannot be read are left out: the answer has the reason.
        parts = task.direct.prompt(replace(item, media=()) if isinstance(with_media, str) else with_media, [])
        prompt = [piece for part in parts for piece in pieces_of(part)]
        answer = ShownAnswer(
            short(outcome.output or outcome.answer or f"({outcome.reason or 'no answer'})", MAX_ANSWER),
            image_url(outcome.image, "image/png") if outcome.image else "",
        )
        examples.append(Example(item.id, (key,), tuple(prompt), short(item.reference, MAX_ANSWER), {model: answer}))
    return lines(examples)


def run_task(model: LanguageModel, task: Task, folder: Path, out: Path, options: Options) -> dict[str, Any]:
    """Runs one benchmark, and writes its results."""
    test, validation, total = read_task(task, folder, options)
    p, held = options.protocol(task), contamination(test.items, options.corpus) if options.corpus else None
    began = time.monotonic()
    with progress_bar() as progress:
        bar = progress.add_task(f"{task.name}, requests", total=None)
        result = run(model, test, validation, p, lambda done: progress.update(bar, advance=done))
    seconds = time.monotonic() - began
    facts = task_result(task, p, result, held) | {
        "model": model.name,
        "items_of_test_split": total,
        "chance": round(chance_level(task, test.items, p.kind), 2),
        "items_per_second": round(len(test.items) / max(seconds, 1e-9), 3),
    }
    write_atomically(out / f"{task.name}.jsonl", outcome_lines(result.outcomes, held))
    write_atomically(out / f"{task.name}.examples.jsonl", task_examples(test, result.outcomes, model.name))
    if "by_k" in facts:
        plot_routing(facts, out / f"{task.name}.png")
    return facts


@dataclass(frozen=True)
class Run:
    """A model, where its results are written, and what they depend on beside the settings and the data."""

    model: LanguageModel
    out: Path
    identity: str
    facts: ModelFacts = ModelFacts()


def run_tasks(r: Run, tasks: Sequence[Task], data: Path, options: Options) -> list[dict[str, Any]]:
    """Runs benchmarks, each in the folder of its name under ``data``; prints a table and returns the content of each TASK.json."""
    results = []
    for task in tasks:
        folder, path = data / task.name, r.out / f"{task.name}.json"
        corpus = content_fingerprint(options.corpus) if options.corpus else ""
        data_print = content_fingerprint(folder) if folder.is_dir() else ""
        settings = fingerprint(
            r.identity, asdict(replace(options, corpus=None)), options.protocol(task), data_print, corpus
        )
        if path.exists() and (known := read_json(path)).get("fingerprint") == settings:
            Console().print(f"{task.name}: measured before, skipped ({path})", highlight=False)
            results.append(known)
            continue
        facts = run_task(r.model, task, folder, r.out, options)
        write_json(path, facts | {"model_facts": asdict(r.facts), "fingerprint": settings})
        results.append(facts)
        add_to_history(origin_of(r.out), read_source(path).rows)
    print_results(results)
    write_card([r.out], r.out)
    return results


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """A table of scores with intervals and chance, beside the figures of the Gemini 1.0 report."""
    table = Table(title="Benchmarks", title_justify="left", title_style="bold")
    for column in ("task", "protocol", "items", "chance", "score [95 %]", "Ultra", "Pro"):
        table.add_column(column, justify="left" if column in ("task", "protocol") else "right")
    for r in results:
        p, (low, high), reported = r["protocol"], r["interval"], r["reported"]
        asked = f"{p['kind']}@{p['samples']}" if p["kind"] in ("majority", "routed") else p["kind"]
        table.add_row(
            f"{r['task']}\n[dim]{r['metric']}[/dim]", f"{asked}, {p['shots']}-shot", str(r["items"]), _figure(r["chance"]),
            f"{r['score']:.1f} [{low:.1f}, {high:.1f}]", _figure(reported["ultra"]), _figure(reported["pro"]),
        )  # fmt: skip
    console = Console()
    console.print(table)
    for r in results:
        for reason, count in r["not_asked"].items():
            console.print(f"{r['task']}: {count} × not asked: {reason}", style="yellow", markup=False)
        if "contamination" in r:
            c = r["contamination"]
            without = _figure(c["score_without"])
            console.print(f"{r['task']}: the corpus holds {c['items_held']} of its items; {without} without them")
