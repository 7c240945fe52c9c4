"""Questions with choices: MMLU, HellaSwag, XCOPA."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from alhena.evaluate.tasks import scores
from alhena.evaluate.tasks.extraction import first_line, letter
from alhena.evaluate.tasks.items import Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.sources import Record, all_records, find, has, records

ACCURACY = Metric("accuracy", scores.exact)
COLUMNS = ("question", "A", "B", "C", "D", "answer")


def lettered(choices: Iterable[str]) -> str:
    """Choices as lines.

    >>> lettered(("red", "blue"))
    '(A) red\\n(B) blue'
    """
    return "\n".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices))


def _extract_letter(item: Item, output: str) -> str:
    return letter(output, item.facts["options"])


def _mmlu_item(record: Record, subject: str) -> Item:
    if record.has("choices"):
        choices, answer = record.texts("choices"), record.integer("answer")
    else:
        choices, answer = tuple(record.text(name) for name in "ABCD"), "ABCD".find(record.text("answer").strip())
    if not 0 <= answer < len(choices):
        raise ValueError(f"{record.path}, record {record.number}: field 'answer' names none of {len(choices)} choices")
    letters, facts = tuple("ABCDEFGHIJ"[: len(choices)]), {"options": choices}
    question = record.text("question").strip()
    return Item(f"mmlu-{subject}-{record.number}", question, (letters[answer],), letters, group=subject, facts=facts)


def read_mmlu(folder: Path, split: Split) -> Iterable[Item]:
    """``test/SUBJECT_test.csv`` of the publisher, or the Parquet files of the hub (``all/`` or a folder a subject)."""
    name = {"test": "test", "validation": "val", "shots": "dev"}[split]
    hub = "validation" if split == "validation" else name
    for path in find(
        folder, f"{name}/*_{name}.csv", f"data/{name}/*_{name}.csv", f"all/{hub}-*.parquet", f"*/{hub}-*.parquet"
    ):
        is_csv = path.suffix == ".csv"
        for record in records(path, COLUMNS if is_csv else ()):
            yield _mmlu_item(record, path.stem.removesuffix(f"_{name}") if is_csv else _subject(record))


def _subject(record: Record) -> str:
    return record.text("subject") if record.has("subject") else record.path.parent.name


def _mmlu_header(item: Item) -> str:
    return f"The following are multiple choice questions (with answers) about {item.group.replace('_', ' ')}.\n\n"


MMLU = Task(
    "mmlu", "text", read_mmlu,
    Form(
        ask=lambda item: f"{item.question}\n{lettered(item.facts['options'])}\nAnswer:",
        answer=lambda item: f" ({item.reference})",
        extract=_extract_letter, max_tokens=16, stop=("\n\n",), header=_mmlu_header,
    ),
    ACCURACY, "choices", 5, Reported(83.7, 71.8, "5-shot; 90.0 and 79.1 with CoT@32 and CoT@8, routed"),
    Form(
        ask=lambda item: f"Q: {item.question}\n{lettered(item.facts['options'])}\nA: Let's think step by step.",
        # The development split has no worked steps: shots show the form of the answer.
        answer=lambda item: f" {item.solution} The answer is ({item.reference}).",
        extract=_extract_letter, max_tokens=512, stop=("\nQ:",), header=_mmlu_header,
    ),
    shots_of_group=True,
)  # fmt: skip


def _clean_hellaswag(text: str) -> str:
    """Text without the marks of the WikiHow part."""
    return " ".join(re.sub(r"\[[^\]]*\]", "", text.replace(" [title]", ". ")).split())


def _hellaswag_item(record: Record) -> Item:
    endings, label = record.texts("endings"), record.integer("label")
    if not 0 <= label < len(endings):
        raise ValueError(f"{record.path}, record {record.number}: field 'label' names none of {len(endings)} endings")
    choices = tuple(map(_clean_hellaswag, endings))
    context = record.text("ctx") if record.has("ctx") else f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
    activity = record.text("activity_label") if record.has("activity_label") else ""
    question = _clean_hellaswag(f"{activity}: {context}" if activity else context)
    return Item(f"hellaswag-{record.number}", question, (choices[label],), choices)


def read_hellaswag(folder: Path, split: Split) -> Iterable[Item]:
    """``hellaswag_val.jsonl`` of the publisher or the Parquet files of the hub; its test split has no labels, so val is asked."""
    name = "val" if split == "test" else "train"
    if split != "test" and not has(folder, "hellaswag_train.jsonl", "*train*.parquet", "data/train*.parquet"):
        return []
    paths = find(folder, f"hellaswag_{name}.jsonl", f"*{name}*.parquet", f"data/{name}*.parquet")
    items = [_hellaswag_item(record) for record in all_records(paths)]
    return items if split == "test" else items[:20] if split == "shots" else items[20:1020]


HELLASWAG = Task(
    "hellaswag", "text", read_hellaswag,
    Form(
        ask=lambda item: item.question,
        answer=lambda item: f" {item.reference}",
        extract=lambda item, output: first_line(output), max_tokens=64, stop=("\n",),
    ),
    ACCURACY, "choices", 10, Reported(87.8, 84.7, "10-shot"), normalization="bytes",
    note="the published test split has no labels: the validation split is asked",
)  # fmt: skip


def _xcopa_item(record: Record) -> Item:
    choices, label = (record.text("choice1"), record.text("choice2")), record.integer("label")
    if label not in (0, 1):
        raise ValueError(f"{record.path}, record {record.number}: field 'label' must be 0 or 1")
    kind = record.text("question")
    if kind not in ("cause", "effect"):
        raise ValueError(f"{record.path}, record {record.number}: field 'question' must be cause or effect")
    language = record.path.parent.name
    facts = {"link": "because" if kind == "cause" else "so"}
    return Item(
        f"xcopa-{language}-{record.number}",
        record.text("premise"),
        (choices[label],),
        choices,
        group=language,
        facts=facts,
    )


def _choice(item: Item, output: str) -> str:
    """The choice that an output begins with, in upper or lower case."""
    line = first_line(output).lower()
    return next((choice for choice in item.choices if line.startswith(choice.lower())), line)


def read_xcopa(folder: Path, split: Split) -> Iterable[Item]:
    """``data/LANGUAGE/test.LANGUAGE.jsonl`` of the publisher, or a folder a language of Parquet files."""
    name = "test" if split == "test" else "val"
    hub = "test" if split == "test" else "validation"
    paths = find(folder, f"data/??/{name}.*.jsonl", f"??/{name}.*.jsonl", f"??/{hub}-*.parquet")
    items = [_xcopa_item(record) for record in all_records(paths)]
    groups = {item.group: [other for other in items if other.group == item.group] for item in items}
    of_split = {"test": slice(None), "shots": slice(0, 20), "validation": slice(20, None)}[split]
    return [item for group in groups.values() for item in group[of_split]]


XCOPA = Task(
    "xcopa", "multilingual", read_xcopa,
    Form(
        ask=lambda item: f"{item.question.rstrip('.')} {item.facts['link']}",
        answer=lambda item: f" {item.reference[:1].lower()}{item.reference[1:]}",
        extract=_choice, max_tokens=32, stop=("\n",),
    ),
    ACCURACY, "choices", 4, Reported(), shots_of_group=True,
    note="the link is the English because or so, as in the publisher's baseline",
)  # fmt: skip

TASKS = (MMLU, HELLASWAG, XCOPA)
