"""Questions about images with short answers: VQAv2, TextVQA, DocVQA, InfographicVQA, ChartQA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from alhena.evaluate.tasks.extraction import short_answer
from alhena.evaluate.tasks.items import Form, Item, Reported, Split, Task
from alhena.evaluate.tasks.media.scores import ANLS, RELAXED, VQA
from alhena.evaluate.tasks.media_files import Medium, inside
from alhena.evaluate.tasks.sources import Record, all_records, find, has, records

SHORT = Form(
    ask=lambda item: f"{item.question}\nAnswer with a single word or a short phrase.\nAnswer:",
    answer=lambda item: f" {item.reference}",
    extract=lambda item, output: short_answer(output), max_tokens=32, stop=("\n\n",),
)  # fmt: skip
# Of a training split, the first so many items are shots.
SHOT_ITEMS = 8
# Names of the splits of the hub: these benchmarks publish no answers of their test split, so validation is asked.
_HUB = {"test": "validation", "shots": "train", "validation": "train"}


def short_split(items: Iterable[Item], split: Split) -> list[Item]:
    """All items of what is asked; of a training split the first as shots, the others for validation."""
    listed = list(items)
    return listed if split == "test" else listed[:SHOT_ITEMS] if split == "shots" else listed[SHOT_ITEMS:]


def most_frequent_first(answers: Iterable[str]) -> tuple[str, ...]:
    """Answers of annotators with the most frequent one, the reference, first.

    >>> most_frequent_first(["red", "blue", "blue"])
    ('blue', 'blue', 'red')
    """
    given = list(answers)
    return tuple(sorted(given, key=lambda text: -given.count(text)))


def inner_records(paths: Iterable[Path], name: str) -> Iterator[Record]:
    """The objects in a list of each file, with their index there."""
    for path in paths:
        for whole in records(path):
            for number, inner in enumerate(whole.records(name)):
                yield Record(path, number, inner.values)


# ── VQAv2, TextVQA ─────────────────────────────────────────────────────────────────────────────────────────


def _vqa_item(record: Record, answers: Record, image: Medium) -> Item:
    given = most_frequent_first(answer.text("answer") for answer in answers.records("answers"))
    group = answers.text("answer_type") if answers.has("answer_type") else ""
    return Item(
        f"vqav2-{record.number_or_text('question_id')}", record.text("question"), given, group=group, media=(image,)
    )


def _published_vqa(folder: Path, name: str) -> Iterator[Item]:
    annotations = find(folder, f"v2_mscoco_{name}_annotations.json")
    by_id = {a.integer("question_id"): a for a in inner_records(annotations, "annotations")}
    for record in inner_records(find(folder, f"v2_OpenEnded_mscoco_{name}_questions.json"), "questions"):
        id = record.integer("question_id")
        if id not in by_id:
            raise ValueError(f"{record.path}, record {record.number}: question {id} has no annotation")
        image = inside(folder, "image", f"{name}/COCO_{name}_{record.integer('image_id'):012}.jpg")
        yield _vqa_item(record, by_id[id], image)


def read_vqav2(folder: Path, split: Split) -> Iterable[Item]:
    """``v2_OpenEnded_mscoco_val2014_questions.json`` with its annotations and the folder ``val2014`` of the publisher, or Parquet files of
    the hub (``question``, ``answers`` with ``answer``, ``image``)."""
    name, hub = "val2014" if split == "test" else "train2014", _HUB[split]
    published, parquet = f"v2_OpenEnded_mscoco_{name}_questions.json", f"data/{hub}-*.parquet"
    if split != "test" and not has(folder, published, parquet):
        return []
    if has(folder, published):
        return short_split(_published_vqa(folder, name), split)
    paths = find(folder, published, parquet)
    return short_split((_vqa_item(r, r, r.medium("image", "image")) for r in all_records(paths)), split)


VQAV2 = Task(
    "vqav2", "image", read_vqav2, SHORT, VQA, "greedy", 0, Reported(77.8, 71.2, "test-dev, 0-shot"),
    note="the validation split is asked: the test splits have no published answers",
)  # fmt: skip


def _textvqa_item(record: Record, image: Medium) -> Item:
    given = most_frequent_first(record.texts("answers"))
    return Item(f"textvqa-{record.number_or_text('question_id')}", record.text("question"), given, media=(image,))


def read_textvqa(folder: Path, split: Split) -> Iterable[Item]:
    """``TextVQA_0.5.1_val.json`` with the folder ``train_images`` of the publisher, or Parquet files of the hub (``question``,
    ``answers``, ``image``)."""
    name = "val" if split == "test" else "train"
    published, parquet = f"TextVQA_0.5.1_{name}.json", f"data/{_HUB[split]}-*.parquet"
    if split != "test" and not has(folder, published, parquet):
        return []
    paths = find(folder, published, parquet)
    if paths[0].suffix == ".parquet":
        return short_split((_textvqa_item(r, r.medium("image", "image")) for r in all_records(paths)), split)
    read = inner_records(paths, "data")
    items = (_textvqa_item(r, inside(folder, "image", f"train_images/{r.text('image_id')}.jpg")) for r in read)
    return short_split(items, split)


TEXTVQA = Task(
    "textvqa", "image", read_textvqa, SHORT, VQA, "greedy", 0, Reported(82.3, 74.6, "val, 0-shot"),
    note="the validation split is asked, as in the report; no text recognition is given",
)  # fmt: skip


# ── DocVQA, InfographicVQA ─────────────────────────────────────────────────────────────────────────────────


def _document_item(name: str, record: Record, image: Medium) -> Item:
    return Item(
        f"{name}-{record.number_or_text('questionId')}",
        record.text("question"),
        record.texts("answers"),
        media=(image,),
    )


def read_docvqa(folder: Path, split: Split) -> Iterable[Item]:
    """``val_v1.0_withQT.json`` with the folder ``documents`` of the publisher, or Parquet files of the hub (``questionId``, ``question``,
    ``answers``, ``image``)."""
    name = "val" if split == "test" else "train"
    published = (f"{name}_v1.0_withQT.json", f"{name}_v1.0.json")
    parquet = (f"DocVQA/{_HUB[split]}-*.parquet", f"data/{_HUB[split]}-*.parquet")
    return _documents("docvqa", folder, (*published, *parquet), ("image", ""), split)


def read_infographicvqa(folder: Path, split: Split) -> Iterable[Item]:
    """``infographicsVQA_val_v1.0_withQT.json`` with the folder ``infographicsvqa_images`` of the publisher, or Parquet files of the hub, as
    DocVQA's."""
    name = "val" if split == "test" else "train"
    published = (f"infographicsVQA_{name}_v1.0_withQT.json", f"infographicsVQA_{name}_v1.0.json")
    parquet = (f"InfographicVQA/{_HUB[split]}-*.parquet", f"data/{_HUB[split]}-*.parquet")
    image = ("image_local_name", "infographicsvqa_images/")
    return _documents("infographicvqa", folder, (*published, *parquet), image, split)


def _documents(
    name: str, folder: Path, patterns: tuple[str, ...], image: tuple[str, str], split: Split
) -> Iterable[Item]:
    """``image``: the field of a record of the publisher that names its image, and the folder of these."""
    if split != "test" and not has(folder, *patterns):
        return []
    paths = find(folder, *patterns)
    if paths[0].suffix == ".parquet":
        return short_split((_document_item(name, r, r.medium("image", "image")) for r in all_records(paths)), split)
    field, under = image
    read = inner_records(paths, "data")
    return short_split((_document_item(name, r, inside(folder, "image", under + r.text(field))) for r in read), split)


DOCVQA = Task(
    "docvqa", "image", read_docvqa, SHORT, ANLS, "greedy", 0, Reported(90.9, 88.1, "test, 0-shot"),
    note="the validation split is asked: the test split has no published answers",
)  # fmt: skip

INFOGRAPHICVQA = Task(
    "infographicvqa", "image", read_infographicvqa, SHORT, ANLS, "greedy", 0, Reported(80.3, 75.2, "test, 0-shot"),
    note="the validation split is asked: the test split has no published answers",
)  # fmt: skip


# ── ChartQA ────────────────────────────────────────────────────────────────────────────────────────────────


def _chart_item(record: Record, group: str, image: Medium) -> Item:
    label = next((name for name in ("label", "answer") if record.has(name)), "label")
    answers = record.texts(label) if isinstance(record.values.get(label), list) else (record.text(label),)
    question = record.text("query" if record.has("query") else "question")
    return Item(f"chartqa-{group}-{record.id}", question, answers, group=group, media=(image,))


def _chart_hub(record: Record) -> Item:
    kind = str(record.values.get("type", record.values.get("human_or_machine", "")))
    return _chart_item(
        record, "augmented" if kind in ("augmented_test", "1") else "human", record.medium("image", "image")
    )


def read_chartqa(folder: Path, split: Split) -> Iterable[Item]:
    """``test/test_human.json`` and ``test_augmented.json`` with ``test/png`` of the publisher (``imgname``, ``query``, ``label``), or Parquet
    files of the hub (``question`` or ``query``, ``answer`` or ``label``, ``image``)."""
    name = {"test": "test", "validation": "val", "shots": "train"}[split]
    published = (f"{name}/{name}_*.json", f"ChartQA Dataset/{name}/{name}_*.json")
    parquet = f"data/{name}-*.parquet"
    if split != "test" and not has(folder, *published, parquet):
        return []
    paths = find(folder, *published, parquet)
    if paths[0].suffix == ".parquet":
        items = list(map(_chart_hub, all_records(paths)))
    else:
        items = [
            _chart_item(r, path.stem.rpartition("_")[2], inside(path.parent, "image", f"png/{r.text('imgname')}"))
            for path in paths
            for r in records(path)
        ]
    return items[:SHOT_ITEMS] if split == "shots" else items


CHARTQA = Task(
    "chartqa", "image", read_chartqa, SHORT, RELAXED, "greedy", 0, Reported(80.8, 74.1, "test, 0-shot"),
)  # fmt: skip

TASKS = (VQAV2, TEXTVQA, DOCVQA, INFOGRAPHICVQA, CHARTQA)
