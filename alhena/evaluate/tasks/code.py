"""Programs from descriptions, judged by running their tests in a sandbox: HumanEval, MBPP."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from alhena.evaluate.benchmarks.sandbox import run_program
from alhena.evaluate.tasks.extraction import code_block
from alhena.evaluate.tasks.items import Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.sources import Record, all_records, find

# A line that begins with one of these is no longer part of a function that is being completed.
_AFTER_FUNCTION = re.compile(r"^(?:def |class |if __name__|print\(|assert |@|#|```|[A-Za-z][^\n]*:\s*$)", re.MULTILINE)


def passes_tests(item: Item, answer: str) -> float:
    """The program runs its tests without an error."""
    return float(bool(answer.strip()) and run_program(f"{answer}\n\n{item.facts['tests']}").passed)


PASS = Metric("pass@1", passes_tests)


def _human_eval_item(record: Record) -> Item:
    name = record.text("entry_point")
    if not name.isidentifier():
        raise ValueError(f"{record.path}, record {record.number}: field 'entry_point' must be a name")
    tests = f"{record.text('test')}\ncheck({name})\n"
    facts = {"entry_point": name, "tests": tests}
    return Item(record.text("task_id"), record.text("prompt"), (record.text("canonical_solution"),), facts=facts)


def read_human_eval(folder: Path, split: Split) -> Iterable[Item]:
    """``HumanEval.jsonl.gz`` of the publisher, or the Parquet file of the hub; there is one split."""
    if split != "test":
        return []
    return map(
        _human_eval_item,
        all_records(find(folder, "HumanEval.jsonl*", "openai_humaneval/test-*.parquet", "test-*.parquet")),
    )


def _function(item: Item, output: str) -> str:
    """The program of an output: a complete function, in a block of code or not, or the rest of the one that was begun."""
    code = code_block(output)
    if re.search(rf"^\s*def {re.escape(item.facts['entry_point'])}\b", code, re.MULTILINE):
        # What stands before the function in the question, such as imports, may be missing.
        return f"{item.question}    pass\n\n{code}"
    rest = code if code.startswith((" ", "\t", "\n")) else "    " + code
    end = _AFTER_FUNCTION.search(rest)
    return item.question + (rest[: end.start()] if end else rest)


HUMAN_EVAL = Task(
    "humaneval", "code", read_human_eval,
    Form(
        ask=lambda item: item.question,
        answer=lambda item: item.reference,
        extract=_function, max_tokens=512, stop=("\nif __name__",),
    ),
    PASS, "greedy", 0, Reported(74.4, 67.7, "0-shot, instruction-tuned"), chance=0.0,
)  # fmt: skip


def _mbpp_item(record: Record) -> Item:
    text = record.text("prompt" if record.has("prompt") else "text")
    imports = record.texts("test_imports") if record.has("test_imports") else ()
    setup = record.text("test_setup_code") if record.has("test_setup_code") else ""
    checks = record.texts("test_list")
    tests = "\n".join((*imports, setup, *checks))
    return Item(
        f"mbpp-{record.integer('task_id')}",
        text,
        (record.text("code"),),
        facts={"tests": tests, "shown": "\n".join(checks)},
    )


# Of the published numbering: tests, shots and validation.
_MBPP_RANGES = {"test": range(11, 511), "shots": range(2, 5), "validation": range(511, 601)}


def read_mbpp(folder: Path, split: Split) -> Iterable[Item]:
    """``mbpp.jsonl`` of the publisher or the Parquet files of the hub; the number of a task says its split."""
    patterns = ("mbpp.jsonl", "full/*.parquet", "*.parquet")
    for record in all_records(find(folder, *patterns)):
        if record.integer("task_id") in _MBPP_RANGES[split]:
            yield _mbpp_item(record)


def _mbpp_extract(item: Item, output: str) -> str:
    return code_block(output.split("[DONE]")[0])


MBPP = Task(
    "mbpp", "code", read_mbpp,
    Form(
        ask=lambda item: "You are an expert Python programmer, and here is your task: "
        f"{item.question} Your code should pass these tests:\n\n{item.facts['shown']}\n[BEGIN]\n",
        answer=lambda item: f"{item.reference}\n[DONE]",
        extract=_mbpp_extract, max_tokens=512, stop=("[DONE]",),
    ),
    PASS, "greedy", 3, Reported(), chance=0.0,
)  # fmt: skip

TASKS = (HUMAN_EVAL, MBPP)
