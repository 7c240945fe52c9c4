"""Mathematics in words: GSM8K, MATH, MGSM."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from alhena.evaluate.tasks import scores
from alhena.evaluate.tasks.extraction import after_announcement, boxed, first_line, number
from alhena.evaluate.tasks.items import Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.sources import Record, all_records, find, has, records

STEPS = " Let's think step by step."
# Of the training split, the first so many are shots, and the last so many validate.
SHOT_ITEMS, VALIDATION_ITEMS = 8, 200
ACCURACY = Metric("accuracy", scores.same_number)


def _split_of_training(items: list[Item], split: Split) -> list[Item]:
    """Shots and validation where a benchmark has a training split and no other."""
    return items[:SHOT_ITEMS] if split == "shots" else items[SHOT_ITEMS:][-VALIDATION_ITEMS:]


def _gsm8k_item(record: Record) -> Item:
    steps, found, answer = record.text("answer").rpartition("####")
    if not found:
        raise ValueError(f"{record.path}, record {record.number}: field 'answer' has no ####")
    # <<3*4=12>> are notes of a calculator.
    steps = re.sub(r"<<[^<>]*>>", "", steps).strip().replace("\n", " ")
    return Item(f"gsm8k-{record.id}", record.text("question"), (answer.strip(),), solution=steps)


def read_gsm8k(folder: Path, split: Split) -> Iterable[Item]:
    """``test.jsonl`` and ``train.jsonl`` of the publisher, or the Parquet files of the hub."""
    name = "test" if split == "test" else "train"
    patterns = (f"{name}.jsonl", f"main/{name}-*.parquet", f"{name}-*.parquet")
    items = [_gsm8k_item(record) for record in all_records(find(folder, *patterns))]
    return items if split == "test" else _split_of_training(items, split)


def _extract_number(item: Item, output: str) -> str:
    return number(output)


def _number_form(reasoned: bool) -> Form:
    """Questions with a number as the answer."""
    return Form(
        ask=lambda item: f"Q: {item.question}\nA:" + STEPS * reasoned,
        answer=lambda item: f" {item.solution} The answer is {item.reference}." if reasoned else f" The answer is {item.reference}.",
        extract=_extract_number,
        max_tokens=400 if reasoned else 32,
        stop=("\nQ:",),
    )  # fmt: skip


GSM8K = Task(
    "gsm8k", "mathematics", read_gsm8k, _number_form(False), ACCURACY, "cot", 8,
    Reported(94.4, 86.5, "Maj1@32"), _number_form(True),
    note="shots are the first 8 problems of the training split; the report's are not published",
)  # fmt: skip


def _last_sentence_math(item: Item, output: str) -> str:
    """The boxed expression, what is announced, or the last expression between dollars."""
    announced = after_announcement(output).rstrip(".")
    formulas = re.findall(r"\$([^$]+)\$", output)
    return boxed(output) or announced.strip("$") or (formulas[-1] if formulas else first_line(output))


def _math_item(record: Record, number_in_file: str) -> Item:
    solution = record.text("solution")
    answer = record.text("answer") if record.has("answer") else boxed(solution)
    if not answer:
        raise ValueError(f"{record.path}, record {record.number}: the solution has no \\boxed answer")
    subject = next((record.text(name) for name in ("type", "subject") if record.has(name)), record.path.parent.name)
    return Item(f"math-{number_in_file}", record.text("problem"), (answer,), solution=solution, group=subject)


def read_math(folder: Path, split: Split) -> Iterable[Item]:
    """A file a problem (``test/algebra/1.json``), or the Parquet or JSON-lines files of the hub."""
    name = "test" if split == "test" else "train"
    patterns = (
        f"{name}/*/*.json",
        f"MATH/{name}/*/*.json",
        f"*/{name}-*.parquet",
        f"{name}-*.parquet",
        f"{name}.jsonl",
    )
    paths = find(folder, *patterns)
    items = [_math_item(record, f"{record.path.parent.name}-{record.id}") for path in paths for record in records(path)]
    return items if split == "test" else _split_of_training(items, split)


def _math_form(reasoned: bool) -> Form:
    return Form(
        ask=lambda item: f"Problem:\n{item.question}\n\nSolution:",
        answer=lambda item: f" {item.solution}\nFinal Answer: The final answer is ${item.reference}$." if reasoned
        else f" The final answer is ${item.reference}$.",
        extract=_last_sentence_math,
        max_tokens=800 if reasoned else 64,
        stop=("\nProblem:",),
    )  # fmt: skip


MATH = Task(
    "math", "mathematics", read_math, _math_form(False), Metric("accuracy", scores.same_expression), "cot", 4,
    Reported(53.2, 32.6, "4-shot"), _math_form(True), note="shots are of the training split",
    vote_key=scores.expression_value,
)  # fmt: skip


def read_mgsm(folder: Path, split: Split) -> Iterable[Item]:
    """``mgsm_LANGUAGE.tsv`` of the publisher, or a folder a language of Parquet files.

    Shots are the training split of a language where the folder has it, else problems of GSM8K beside it, in English.
    """
    if split != "test":
        return _mgsm_shots(folder) if split == "shots" else []
    if has(folder, "mgsm_*.tsv"):
        return [
            Item(f"mgsm-{record.id}", record.text("question"), (record.text("answer"),), group=path.stem[5:])
            for path in find(folder, "mgsm_??.tsv")
            for record in records(path, ("question", "answer"))
        ]
    return [_mgsm_item(record) for record in all_records(find(folder, "*/test-*.parquet"))]


def _mgsm_item(record: Record) -> Item:
    language = record.path.parent.name
    answer, solution = str(record.integer("answer_number")), record.text("answer") if record.has("answer") else ""
    # Exemplars begin with a word for "Question:" and "Step-by-Step Answer:" of their language.
    question, solution = (
        text.split(":", 1)[-1].strip() if record.has("answer") else text for text in (record.text("question"), solution)
    )
    return Item(f"mgsm-{language}-{record.id}", question, (answer,), solution=solution, group=language)


def _mgsm_shots(folder: Path) -> Iterable[Item]:
    if has(folder, "*/train-*.parquet"):
        return [_mgsm_item(record) for record in all_records(find(folder, "*/train-*.parquet"))]
    return read_gsm8k(folder.parent / "gsm8k", "shots")


MGSM = Task(
    "mgsm", "multilingual", read_mgsm, _number_form(False), ACCURACY, "cot", 8,
    Reported(79.0, 63.5, "8-shot"), _number_form(True), shots_of_group=True,
    note="shots of the language where the folder has its training split, else of GSM8K in English",
)  # fmt: skip

TASKS = (GSM8K, MATH, MGSM)
