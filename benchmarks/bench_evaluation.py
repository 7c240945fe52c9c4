"""Items a second of evaluation: in full batches with shared beginnings, and one request after the other.

    python benchmarks/bench_evaluation.py MODEL --data FOLDER --out benchmarks/results/evaluation.json

FOLDER has gsm8k/ in its public layout. Two kinds of items: GSM8K, 8 shots, chain of thought of at most --tokens tokens; and choices: the same prompts
with four answers each, by log-likelihood. One after the other means: one prompt at a time in the same engine, whose cache of known beginnings
works there too; and one choice at a time, its prompt read again. Rounds alternate; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax

from alhena.evaluate.benchmark_run import Options, read_task
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Completion, Continuation
from alhena.evaluate.models.likelihood import Scorer
from alhena.evaluate.tasks.mathematics import GSM8K
from alhena.files import write_json
from alhena.serve.engine import Engine

# Items that are measured one after the other.
ALONE = 2


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = EngineModel(Engine.load(options.model), turns=False)
    asked, _, _ = read_task(GSM8K, options.data / "gsm8k", Options(limit=options.items))
    assert GSM8K.reasoned
    prompts = [GSM8K.reasoned.prompt(item, asked.shots_of(item, 8)) for item in asked.items]
    completions = [Completion(prompt, options.tokens, ("\nQ:",)) for prompt in prompts]
    choices = [Continuation(prompt, f" {n}") for prompt in prompts for n in (7, 18, 24, 120)]
    requests = [model.tokens_of(choice) for choice in choices]

    def likelihoods_alone() -> None:
        for request in requests[: 4 * ALONE]:
            alone._held = ()
            alone([request])

    alone = Scorer(model.engine.params, model.engine.config, 1)
    work: dict[str, tuple[Callable[[], object], int]] = {
        "completions, one after the other": (lambda: [model.complete([c]) for c in completions[:ALONE]], ALONE),
        "completions, together": (lambda: model.complete(completions), options.items),
        "choices, one after the other": (likelihoods_alone, ALONE),
        "choices, together": (lambda: model.log_likelihoods(choices), options.items),
    }
    for one, _ in work.values():
        one()
    speeds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.rounds):
        for name, (one, items) in work.items():
            speeds[name].append(items / seconds(one))
            print(f"{name}: {speeds[name][-1]:.3f} items/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        kind: round(medians[f"{kind}, together"] / medians[f"{kind}, one after the other"], 2)
        for kind in ("completions", "choices")
    }
    facts = {
        "model": model.name, "items": options.items, "tokens": options.tokens, "prompt_tokens": len(requests[0][0]), "jax": jax.__version__,
        "items_per_second": {name: [round(v, 4) for v in values] for name, values in speeds.items()}, "ratios": ratios,
    }  # fmt: skip
    write_json(options.out, facts)
    print(facts)


if __name__ == "__main__":
    main()
