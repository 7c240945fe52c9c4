"""The problems of the starter's source ``reasoning`` as a benchmark, for every protocol: sums and word problems of several steps.

``benchmarks/bench_reasoning.py`` writes its files: ``test.jsonl`` and ``validation.jsonl``, a problem a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from alhena.corpus.starter.text.reasoning import BARE, STEPS
from alhena.evaluate.tasks.extraction import number
from alhena.evaluate.tasks.items import Form, Item, Split, Task
from alhena.evaluate.tasks.mathematics import ACCURACY
from alhena.evaluate.tasks.sources import Record, all_records, find


def _item(record: Record) -> Item:
    answer, steps = str(record.integer("answer")), f"{record.integer('steps')} steps"
    return Item(
        f"reasoning-{record.id}", record.text("question"), (answer,), solution=record.text("worked"), group=steps
    )


def read(folder: Path, split: Split) -> Iterable[Item]:
    """Problems of the test or the validation split; there are no shots, since requests name their form."""
    return [] if split == "shots" else [_item(record) for record in all_records(find(folder, f"{split}.jsonl"))]


def _form(request: str, reasoned: bool) -> Form:
    return Form(
        ask=lambda item: f"{item.question} {request}",
        answer=lambda item: f" {item.solution if reasoned else item.reference}",
        extract=lambda item, output: number(output),
        max_tokens=96 if reasoned else 8,
    )


REASONING = Task(
    "reasoning", "text", read, _form(BARE, False), ACCURACY, "cot", 0, reasoned=_form(STEPS, True),
    note="problems of the starter corpus; begins of sums and numbers of steps that its training does not have",
)  # fmt: skip

TASKS = (REASONING,)
