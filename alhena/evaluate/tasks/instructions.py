"""Following instructions whose result can be verified by a rule: IFEval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alhena.evaluate.tasks.instruction_checks import CHECKS
from alhena.evaluate.tasks.items import Form, Item, Metric, Split, Task
from alhena.evaluate.tasks.sources import Record, all_records, find


def followed(item: Item, answer: str) -> list[bool]:
    """For each instruction of an item whether it was followed. Raises ValueError for arguments of another form."""
    out = []
    for name, arguments in item.facts["instructions"]:
        try:
            out.append(bool(answer.strip()) and CHECKS[name](answer, arguments))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{item.id}: the arguments of {name} are not of its form ({error!r})") from None
    return out


def follows_all(item: Item, answer: str) -> float:
    """All instructions were followed, strictly."""
    return float(all(followed(item, answer)))


def _arguments(record: Record) -> list[Mapping[str, Any]]:
    return [
        {key: value for key, value in inner.values.items() if value is not None} for inner in record.records("kwargs")
    ]


def read_ifeval(folder: Path, split: Split) -> Iterable[Item]:
    """``input_data.jsonl`` of the publisher, or the Parquet or JSON-lines files of the hub; there is one split."""
    if split != "test":
        return
    for record in all_records(
        find(folder, "input_data.jsonl", "ifeval_input_data.jsonl", "*.parquet", "data/*.parquet")
    ):
        names, arguments = record.texts("instruction_id_list"), _arguments(record)
        if unknown := [name for name in names if name not in CHECKS]:
            raise ValueError(f"{record.path}, record {record.number}: unknown instruction {unknown[0]!r}")
        if len(names) != len(arguments) or not names:
            raise ValueError(
                f"{record.path}, record {record.number}: {len(names)} instructions with {len(arguments)} arguments"
            )
        facts = {"instructions": tuple(zip(names, arguments, strict=True))}
        yield Item(f"ifeval-{record.integer('key')}", record.text("prompt"), ("",), facts=facts)


IFEVAL = Task(
    "ifeval", "text", read_ifeval,
    Form(
        ask=lambda item: item.question, answer=lambda item: "",
        extract=lambda item, output: output.strip(), max_tokens=1024,
    ),
    Metric("prompts followed", follows_all), "greedy", 0, chance=0.0,
    note="strict, by prompt; words and sentences are counted by rules of ours where the publisher uses NLTK",
)  # fmt: skip

TASKS = (IFEVAL,)
