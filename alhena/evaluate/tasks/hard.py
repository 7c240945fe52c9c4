"""BIG-Bench-Hard: 23 kinds of reasoning in 27 files, with the publisher's prompts of three worked examples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from alhena.evaluate.tasks import scores
from alhena.evaluate.tasks.extraction import after_announcement, first_line
from alhena.evaluate.tasks.items import Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.sources import find, read_text, records

_SHOT = re.compile(r"^Q: (.*?)\nA: Let's think step by step\.\s*(.*?)(?=\n\nQ: |\Z)", re.DOTALL | re.MULTILINE)


def _parts(path: Path) -> tuple[str, str]:
    """The description of a task, and its examples."""
    description, _, examples = read_text(path).split("-----\n", 1)[-1].strip().partition("\n\n")
    return description, examples


def _shots(path: Path) -> Iterable[Item]:
    """The worked examples of one file."""
    examples = _SHOT.findall(_parts(path)[1])
    if not examples:
        raise ValueError(f"{path}: no example that begins with Q: and A: Let's think step by step.")
    for number, (question, steps) in enumerate(examples):
        answer = after_announcement(steps).rstrip(".")
        if not answer:
            raise ValueError(f'{path}: example {number} does not end with "the answer is"')
        yield Item(f"bbh-{path.stem}-shot-{number}", question, (answer,), solution=steps.strip(), group=path.stem)


def read_bbh(folder: Path, split: Split) -> Iterable[Item]:
    """``bbh/TASK.json`` (or ``tasks/``) and ``cot-prompts/TASK.txt`` of the publisher."""
    if split == "shots":
        for path in find(folder, "cot-prompts/*.txt"):
            yield from _shots(path)
    if split != "test":
        return
    for path in find(folder, "bbh/*.json", "tasks/*.json"):
        prompt = folder / "cot-prompts" / f"{path.stem}.txt"
        facts = {"header": _parts(prompt)[0] + "\n\n"} if prompt.exists() else {}
        for whole in records(path):
            for number, example in enumerate(whole.records("examples")):
                answer, question = example.text("target").strip(), example.text("input")
                options = re.findall(r"^\(([A-Z])\) ", question, re.MULTILINE)
                choices = tuple(f"({name})" for name in options) if answer.startswith("(") else ()
                yield Item(f"bbh-{path.stem}-{number}", question, (answer,), choices, group=path.stem, facts=facts)


def _extract(item: Item, output: str) -> str:
    """The announced answer in the form of the references: a letter in parentheses where there are options."""
    answer = (after_announcement(output) or first_line(output)).strip().strip("*").rstrip(".").strip()
    if item.choices:
        found = re.search(r"\(?([A-Z])\)", answer) or re.match(r"([A-Z])(?:\W|$)", answer)
        return f"({found[1]})" if found else ""
    return answer.lower() if item.reference.islower() else answer


def _header(item: Item) -> str:
    return str(item.facts.get("header", ""))


BBH = Task(
    "bbh", "text", read_bbh,
    Form(
        ask=lambda item: f"Q: {item.question}\nA:",
        answer=lambda item: f" {item.reference}",
        extract=_extract, max_tokens=48, stop=("\nQ:",), header=_header,
    ),
    Metric("accuracy", scores.exact), "cot", 3, Reported(83.6, 75.0, "3-shot"),
    Form(
        ask=lambda item: f"Q: {item.question}\nA: Let's think step by step.",
        answer=lambda item: f"\n{item.solution}",
        extract=_extract, max_tokens=512, stop=("\nQ:",), header=_header,
    ),
    shots_of_group=True,
)  # fmt: skip

TASKS = (BBH,)
