"""Items a second of evaluation: all together, and one request after the other in the same engine.

    python benchmarks/bench_evaluation.py MODEL --data FOLDER --test SPLIT --out benchmarks/results/evaluation.json

Three kinds of items: GSM8K with 8 shots and at most --tokens tokens of chain of thought (FOLDER has gsm8k/ in its public layout); choices:
the same prompts with four answers each, by log-likelihood; and questions of a test split such as runs/starter/curated/test, with their media.
One after the other means: one request at a time, which finds the beginnings of earlier ones in the cache; of choices the prompt is read once
for each. Every measurement has questions and shots that no earlier one had. Rounds alternate; medians.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from alhena.content import Document
from alhena.documents import read_documents
from alhena.evaluate.answers import answer_limits, generate_answers, is_question, prompt_of, sampling_of
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Completion, Continuation, Prompt
from alhena.evaluate.models.likelihood import Scorer
from alhena.evaluate.tasks.items import Item
from alhena.evaluate.tasks.mathematics import GSM8K
from alhena.files import write_json
from alhena.serve.engine import Engine

SHOTS, CHOICES = 8, (7, 18, 24, 120)
Work = Callable[[int], object]


@dataclass
class Data:
    """Items that are given out once: GSM8K with shots of its training split, and questions of a test split in random order."""

    items: list[Item]
    shots: list[Item]
    questions: list[Document]
    given: int = 0
    rounds: int = 0

    @classmethod
    def read(cls, folder: Path, test: Path, seed: int = 0) -> Data:
        questions = [document for document in read_documents(test) if is_question(document)]
        random.Random(seed).shuffle(questions)
        items, shots = ([*GSM8K.read(folder / "gsm8k", split)] for split in ("test", "validation"))
        return cls(items, shots, questions)

    def prompts(self, count: int) -> list[Prompt]:
        """Prompts of the next items, after shots that no earlier ones had."""
        assert GSM8K.reasoned
        items = [self.items[(self.given + i) % len(self.items)] for i in range(count)]
        shots = [self.shots[(SHOTS * self.rounds + i) % len(self.shots)] for i in range(SHOTS)]
        self.given, self.rounds = self.given + count, self.rounds + 1
        return [GSM8K.reasoned.prompt(item, shots) for item in items]

    def next_questions(self, count: int) -> list[Document]:
        """The next questions; the first ones again once all were given."""
        out = [self.questions[(self.given + i) % len(self.questions)] for i in range(count)]
        self.given += count
        return out


def kinds(model: EngineModel, data: Data, tokens: int) -> dict[str, tuple[Work, Work]]:
    """Of each kind of items what measures that many of them one after the other, and together."""
    one_row = Scorer(model.engine.params, model.engine.config, 1)

    def completions(count: int) -> list[Completion]:
        return [Completion(prompt, tokens, ("\nQ:",)) for prompt in data.prompts(count)]

    def choices(count: int) -> list[Continuation]:
        return [Continuation(prompt, f" {n}") for prompt in data.prompts(count) for n in CHOICES]

    def choices_alone(count: int) -> None:
        for request in choices(count):
            one_row.forget()
            one_row([model.tokens_of(request)])

    def questions_alone(count: int) -> None:
        documents = data.next_questions(count)
        limits = answer_limits(model.engine.encoder, documents)
        for i, document in enumerate(documents):
            model.engine.generate([prompt_of(model.engine, document)], sampling_of(document, i, limits))

    return {
        "completions": (
            lambda n: [model.complete([c]) for c in completions(n)],
            lambda n: model.complete(completions(n)),
        ),
        "choices": (choices_alone, lambda n: model.log_likelihoods(choices(n))),
        "questions": (questions_alone, lambda n: generate_answers(model.engine, data.next_questions(n))),
    }


def rate(work: Work, count: int) -> float:
    """Items a second."""
    began = time.monotonic()
    work(count)
    return count / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--test", type=Path, required=True, help="a test split of documents that the model can be asked"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=64, help="measured together")
    parser.add_argument("--alone", type=int, default=8, help="measured one after the other")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="kinds of items; left out: all")
    o = parser.parse_args()
    model = EngineModel(Engine.load(o.model), turns=False)
    work = {k: v for k, v in kinds(model, Data.read(o.data, o.test), o.tokens).items() if not o.only or k in o.only}
    rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in work}
    # The first round compiles.
    for n in range(o.rounds + 1):
        for kind, (alone, together) in work.items():
            found = rate(alone, o.alone), rate(together, o.items)
            print(f"{kind}: {found[0]:.3f} items/s one after the other, {found[1]:.3f} together", flush=True)
            rates[kind] += [found] if n else []
    rows = {
        kind: {
            "alone": [round(a, 4) for a, _ in found],
            "together": [round(t, 4) for _, t in found],
            "ratio": round(statistics.median(t / a for a, t in found), 2),
        }
        for kind, found in rates.items()
    }
    facts = {
        "items": o.items,
        "alone": o.alone,
        "tokens": o.tokens,
        "load": round(os.getloadavg()[0], 1),
        "jax": jax.__version__,
    }
    write_json(o.out, {"model": model.name, **facts, "items_per_second": rows})
    print(rows)


if __name__ == "__main__":
    main()
