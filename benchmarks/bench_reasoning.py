"""Chain of thought on the starter: bare answers, worked steps, the majority of k, and the majority routed by uncertainty.

    python benchmarks/bench_reasoning.py [runs/starter] [--items 300] [--samples 8]

Writes problems of the source ``reasoning``, half of them longer than any in training, to RUN/reasoning; asks RUN/models/assistant
under each protocol; writes scores with 95 % intervals and paired tests (McNemar, corrected by Holm) to
benchmarks/results/reasoning.json, and the figure by k to docs/reasoning.png.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from alhena.corpus.starter.splits import Split
from alhena.corpus.starter.text.reasoning import LONGER_STEPS, MAX_STEPS, problem
from alhena.evaluate.benchmarks.benchmark_run import MAX_VALIDATION, Options, Run, run_tasks
from alhena.evaluate.benchmarks.routing_figure import plot_routing
from alhena.evaluate.comparison import compare
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.statistics import holm
from alhena.evaluate.tasks.items import Kind
from alhena.evaluate.tasks.reasoning import REASONING
from alhena.files import content_fingerprint, write_atomically, write_json
from alhena.serve.engine import Engine

# The result of the routed protocol has the majority's scores too.
KINDS: tuple[Kind, ...] = ("greedy", "cot", "routed")
PAIRS = (("greedy", "cot"), ("cot", "routed"), ("greedy", "routed"))
ROOT = Path(__file__).parent.parent
SEED = 17


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")  # a run folder
    items: int = 300  # problems of the test split
    samples: int = 8  # chains of thought of each problem
    name: str = "reasoning"  # of the results


def write_problems(path: Path, split: Split, count: int) -> None:
    """Different problems, by turns of two to MAX_STEPS steps and of more."""
    rng, lines = np.random.default_rng([SEED, count]), dict[str, dict[str, Any]]()
    while len(lines) < count:
        steps = int(rng.choice(LONGER_STEPS)) if len(lines) % 2 else int(rng.integers(2, MAX_STEPS + 1))
        made = problem(rng, split, steps)
        lines[made.question] = {"question": made.question, "worked": made.worked, "answer": made.answer, "steps": steps}
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines.values()))


def main(bench: Bench) -> None:
    data, assistant = bench.folder / "reasoning", bench.folder / "models" / "assistant"
    write_problems(data / REASONING.name / "test.jsonl", "test", bench.items)
    write_problems(data / REASONING.name / "validation.jsonl", "validation", MAX_VALIDATION)
    model, options = EngineModel(Engine.load(assistant)), Options(samples=bench.samples)
    results: dict[Kind, dict[str, Any]] = {}
    for kind in KINDS:
        run = Run(model, data / kind, content_fingerprint(assistant))
        (results[kind],) = run_tasks(run, [REASONING], data, replace(options, kind=kind))
    file = f"{REASONING.name}.json"
    compared = [compare(data / a / file, data / b / file)[0] for a, b in PAIRS]
    pairs = zip(PAIRS, compared, holm([c.p for c in compared]), strict=True)
    paired = [asdict(c) | {"a_is": a, "b_is": b, "p": float(f"{p:.3g}")} for (a, b), c, p in pairs]
    write_json(ROOT / "benchmarks" / "results" / f"{bench.name}.json", {"protocols": results, "paired": paired})
    plot_routing(results["routed"], ROOT / "docs" / f"{bench.name}.png")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
