"""Questions about images with choices, and statements that are true or false: AI2D, MMMU, MathVista, NLVR, NLVR2."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from alhena.evaluate.tasks.extraction import canonical_number, first_line, letter, number, short_answer
from alhena.evaluate.tasks.items import MARK, Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.knowledge import lettered
from alhena.evaluate.tasks.mathematics import STEPS
from alhena.evaluate.tasks.media.image_questions import SHOT_ITEMS
from alhena.evaluate.tasks.media.scores import SAME, same_text
from alhena.evaluate.tasks.media_files import Medium, inside
from alhena.evaluate.tasks.sources import Record, all_records, find, find_split, has, lines, records

LETTERS = "ABCDEFGHIJ"
SINGLE = "Answer with the letter of the right choice.\nAnswer:"


def choice_item(id: str, question: str, options: tuple[str, ...], right: int, group: str = "") -> Item:
    """A question that is answered with the letter of an option. Raises ValueError where the answer names none."""
    if not 0 <= right < len(options) <= len(LETTERS):
        raise ValueError(f"{id}: its answer names none of {len(options)} choices")
    letters = tuple(LETTERS[: len(options)])
    return Item(id, question, (letters[right],), letters, group=group, facts={"options": options})


def extract_choice(item: Item, output: str) -> str:
    """The letter of a choice, or a short answer where the item has no choices."""
    return letter(output, item.facts["options"]) if item.choices else short_answer(output)


def _ask(item: Item) -> str:
    if item.choices:
        return f"{item.question}\n{lettered(item.facts['options'])}\n{SINGLE}"
    return f"{item.question}\nAnswer with a single word, phrase or number.\nAnswer:"


CHOICE = Form(ask=_ask, answer=lambda item: f" {item.reference}", extract=extract_choice, max_tokens=32, stop=("\n\n",))


# ── AI2D ───────────────────────────────────────────────────────────────────────────────────────────────────


def _published_ai2d(folder: Path) -> Iterator[Item]:
    under = next(f for f in (folder, folder / "ai2d") if has(f, "questions/*.json"))
    ids = find(folder, "ai2d_test_ids.csv", "ai2d/ai2d_test_ids.csv")[0]
    for name in filter(None, map(str.strip, lines(ids))):
        if not name.isdigit():
            raise ValueError(f"{ids}: {name!r} is no number of an image")
        path = under / "questions" / f"{name}.png.json"
        # A few diagrams have no questions.
        for whole in records(path) if path.exists() else ():
            for question, values in whole.record("questions").values.items():
                record = Record(path, 0, values)
                options = record.texts("answerTexts")
                item = choice_item(f"ai2d-{name}-{question}", question, options, record.integer("correctAnswer"))
                yield replace(item, media=(inside(under, "image", f"images/{name}.png"),))


def _ai2d_hub(record: Record) -> Item:
    item = choice_item(f"ai2d-{record.id}", record.text("question"), record.texts("options"), record.integer("answer"))
    return replace(item, media=(record.medium("image", "image"),))


def read_ai2d(folder: Path, split: Split) -> Iterable[Item]:
    """``questions/N.png.json`` and ``images/N.png`` with ``ai2d_test_ids.csv`` of the publisher, or Parquet files of the hub (``question``,
    ``options``, ``answer`` as an index, ``image``); there is one split."""
    if split != "test":
        return []
    if has(folder, "questions/*.json", "ai2d/questions/*.json"):
        return _published_ai2d(folder)
    return map(_ai2d_hub, all_records(find(folder, "questions/*.json", "data/test-*.parquet")))


AI2D = Task("ai2d", "image", read_ai2d, CHOICE, SAME, "greedy", 0, Reported(79.5, 73.9, "test, 0-shot"))


# ── MMMU ───────────────────────────────────────────────────────────────────────────────────────────────────


def _listed(record: Record, name: str) -> tuple[str, ...]:
    """A list of texts that is written as text. Raises ValueError when it is none."""
    if isinstance(record.values.get(name), list):
        return record.texts(name)
    try:
        value = ast.literal_eval(record.text(name))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{record.path}, record {record.number}: field {name!r} must be a list of texts")
    return tuple(value)


def _marked(record: Record, texts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Medium, ...]]:
    """Texts with a mark where they name an image, and these images in order; without any, the first image."""
    images: list[Medium] = []

    def mark(found: re.Match[str]) -> str:
        images.append(record.medium("image", f"image_{found[1]}"))
        return MARK

    marked = tuple(re.sub(r"<image ([1-7])>", mark, text.replace(MARK, "")) for text in texts)
    return marked, tuple(images) or (record.medium("image", "image_1"),)


def _mmmu_item(record: Record) -> Item:
    id, options, answer = record.text("id"), _listed(record, "options"), record.text("answer")
    (question, *marked), images = _marked(record, (record.text("question"), *options))
    subject = record.path.parent.name
    if record.text("question_type") == "multiple-choice":
        item = choice_item(id, question, tuple(marked), LETTERS.find(answer) if len(answer) == 1 else -1, subject)
    else:
        answers = _listed(record, "answer") if answer.startswith("[") else (answer,)
        item = Item(id, question, answers, group=subject, facts={"options": ()})
    return replace(item, media=images)


def read_mmmu(folder: Path, split: Split) -> Iterable[Item]:
    """Parquet files of the publisher on the hub, a folder a subject: ``question`` and ``options`` with ``<image N>`` in them,
    ``image_1`` to ``image_7``, ``answer``, ``question_type``. Validation is asked: its test split has no answers; shots are of dev."""
    if split == "validation":
        return []
    name = {"test": "validation", "shots": "dev"}[split]
    return map(_mmmu_item, all_records(find_split(folder, split, f"*/{name}-*.parquet")))


def _same_or_number(item: Item, answer: str) -> float:
    if same_text(item, answer):
        return 1.0
    return float(canonical_number(answer) in {canonical_number(text) for text in item.references} - {""})


MMMU = Task(
    "mmmu", "image", read_mmmu, CHOICE, Metric("accuracy", _same_or_number), "greedy", 0,
    Reported(59.4, 47.9, "val, 0-shot, pass@1; Ultra 62.4 with Maj1@32"),
    Form(
        ask=lambda item: f"{item.question}\n{lettered(item.facts['options'])}{STEPS}", max_tokens=512,
        answer=lambda item: f" {item.solution} The answer is {item.reference}.", extract=extract_choice,
    ),
    shots_of_group=True, note="the validation split is asked, as in the report",
)  # fmt: skip


# ── MathVista ──────────────────────────────────────────────────────────────────────────────────────────────


def _mathvista_item(record: Record, image: Medium) -> Item:
    id, answer = f"mathvista-{record.text('pid')}", record.text("answer")
    group = record.record("metadata").text("task") if record.has("metadata") else ""
    if record.text("question_type") == "multi_choice":
        options = record.texts("choices")
        right = options.index(answer) if answer in options else -1
        return replace(choice_item(id, record.text("question"), options, right, group), media=(image,))
    unit = f" (unit: {record.text('unit')})" if record.has("unit") else ""
    precision = record.values.get("precision")
    digits = int(precision) if isinstance(precision, int | float) and not math.isnan(precision) else 0
    facts = {"options": (), "kind": record.text("answer_type"), "digits": digits}
    return Item(id, record.text("question") + unit, (answer,), group=group, facts=facts, media=(image,))


def _mathvista_published(path: Path) -> Iterator[Item]:
    for whole in records(path):
        for pid, values in whole.values.items():
            record = Record(path, 0, {"pid": pid} | values if isinstance(values, dict) else {})
            yield _mathvista_item(record, inside(path.parent, "image", record.text("image")))


def read_mathvista(folder: Path, split: Split) -> Iterable[Item]:
    """``testmini.json`` with the folder ``images`` of the publisher, or Parquet files of the hub (``pid``, ``question``, ``choices``,
    ``answer``, ``question_type``, ``answer_type``, ``precision``, ``decoded_image``). The test split has no published answers."""
    if split != "test":
        return []
    paths = find(folder, "testmini.json", "data/testmini.json", "data/testmini-*.parquet")
    if paths[0].suffix == ".json":
        return _mathvista_published(paths[0])
    return (_mathvista_item(r, r.medium("image", "decoded_image")) for r in all_records(paths))


def same_rounded(item: Item, answer: str) -> float:
    """The letter of the choice; or numbers equal when rounded to the digits of the item; or the same text."""
    kind = item.facts.get("kind")
    if item.choices or kind not in ("integer", "float"):
        return same_text(item, answer)
    given, gold = canonical_number(number(answer)), canonical_number(item.reference)
    digits = item.facts["digits"] if kind == "float" else 0
    if not given or not gold:
        return 0.0
    return float(round(_decimal(given), digits) == round(_decimal(gold), digits))


def _decimal(fraction: str) -> float:
    upper, _, lower = fraction.partition("/")
    return int(upper) / int(lower or 1)


MATHVISTA = Task(
    "mathvista", "image", read_mathvista, CHOICE, Metric("accuracy", same_rounded), "greedy", 0,
    Reported(53.0, 45.2, "testmini, 0-shot"),
    Form(
        ask=lambda item: f"{item.question}\n{lettered(item.facts['options'])}{STEPS}", max_tokens=512,
        answer=lambda item: f" The answer is {item.reference}.", extract=extract_choice,
    ),
    note="answers are extracted by rules, where the publisher asks a language model to",
)  # fmt: skip


# ── NLVR, NLVR2 ────────────────────────────────────────────────────────────────────────────────────────────

_TRUTH = {"true": "true", "yes": "true", "correct": "true", "false": "false", "no": "false", "incorrect": "false"}


def truth(item: Item, output: str) -> str:
    """Whether an output says that the statement is true; empty where it says neither.

    >>> item = Item("1", "There is a circle.", ("true",))
    >>> [truth(item, text) for text in ("True.", "**false**", "Yes, it is.", "The answer is: False", "Perhaps")]
    ['true', 'false', 'true', 'false', '']
    """
    for text in (short_answer(output), first_line(output)):
        words = re.findall(r"[a-z]+", text.lower())
        if words and words[0] in _TRUTH:
            return _TRUTH[words[0]]
    named = {_TRUTH[word] for word in re.findall(r"\b(?:true|false)\b", output.lower())}
    return named.pop() if len(named) == 1 else ""


_STATEMENT = Form(
    ask=lambda item: f"Is this statement about the image true or false? {item.question}\nAnswer:",
    answer=lambda item: f" {item.reference}", extract=truth, max_tokens=8,
)  # fmt: skip


def _statement(name: str, record: Record, images: tuple[Medium, ...]) -> Item:
    label = str(record.values.get("label")).lower()
    if label not in ("true", "false"):
        raise ValueError(f"{record.path}, record {record.number}: field 'label' must be true or false")
    id = f"{name}-{record.text('identifier')}"
    return Item(id, record.text("sentence"), (label,), ("true", "false"), media=images)


def read_nlvr(folder: Path, split: Split) -> Iterable[Item]:
    """``dev/dev.json`` (JSON lines with ``identifier``, ``sentence``, ``label``, ``directory``) and ``dev/images/DIRECTORY/dev-ID-0.png`` of the
    publisher; ``test`` where the folder has it. Shots are of ``train``, validation is of ``dev`` where test is asked."""
    asked = "test" if has(folder, "test/test.json") else "dev"
    name = {"test": asked, "shots": "train", "validation": "dev"}[split]
    if split != "test" and (name == asked or not has(folder, f"{name}/{name}.json")):
        return []
    (path,) = find(folder, f"{name}/{name}.json")
    items = []
    for r in records(path, suffix=".jsonl"):
        image = f"images/{r.text('directory')}/{name}-{r.text('identifier')}-0.png"
        items.append(_statement("nlvr", r, (inside(path.parent, "image", image),)))
    return items[:SHOT_ITEMS] if split == "shots" else items


NLVR = Task("nlvr", "image", read_nlvr, _STATEMENT, SAME, "greedy", 0, Reported())


def read_nlvr2(folder: Path, split: Split) -> Iterable[Item]:
    """``data/test1.json`` (JSON lines with ``identifier``, ``sentence``, ``label``) and the images ``test1/PAIR-img0.png`` and ``-img1.png`` of the
    publisher; ``dev`` validates, ``train`` has shots."""
    name = {"test": "test1", "shots": "train", "validation": "dev"}[split]
    patterns = (f"data/{name}.json", f"{name}.json")
    if split != "test" and not has(folder, *patterns):
        return []
    items = []
    for r in records(find(folder, *patterns)[0], suffix=".jsonl"):
        # The last number is that of the sentence.
        pair = r.text("identifier").rpartition("-")[0]
        names = [(f"{name}/{pair}-img{side}.png", f"images/{name}/{pair}-img{side}.png") for side in (0, 1)]
        items.append(_statement("nlvr2", r, tuple(inside(folder, "image", *of_side) for of_side in names)))
    return items[:SHOT_ITEMS] if split == "shots" else items


NLVR2 = Task(
    "nlvr2", "image", read_nlvr2,
    Form(
        ask=lambda item: f"Is this statement about the left image {MARK} and the right image {MARK} true or false? {item.question}\nAnswer:",
        answer=lambda item: f" {item.reference}", extract=truth, max_tokens=8,
    ),
    SAME, "greedy", 0, Reported(),
)  # fmt: skip

TASKS = (AI2D, MMMU, MATHVISTA, NLVR, NLVR2)
