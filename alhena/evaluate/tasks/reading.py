"""Questions about a passage: DROP, XQuAD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alhena.evaluate.tasks import scores
from alhena.evaluate.tasks.extraction import after_announcement, first_line
from alhena.evaluate.tasks.items import Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.sources import Record, all_records, find, has, json_value, read_text


def _extract(item: Item, output: str) -> str:
    return (after_announcement(output) or first_line(output)).strip().rstrip(".")


_FORM = Form(
    ask=lambda item: f"{item.facts['passage']}\nQuestion: {item.question}\nAnswer:",
    answer=lambda item: f" {item.reference}",
    extract=_extract, max_tokens=48, stop=("\n",),
)  # fmt: skip


def _drop_spans(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """The spans of one answer in the publisher's JSON: a number, spans, or a date."""
    if answer.get("number"):
        return (str(answer["number"]),)
    if answer.get("spans"):
        return tuple(map(str, answer["spans"]))
    date = answer.get("date") or {}
    return (" ".join(str(date[key]) for key in ("day", "month", "year") if date.get(key)),)


def _drop_published(path: Path) -> Iterator[Item]:
    passages = json_value(path, read_text(path))
    try:
        for name, passage in passages.items():
            for pair in passage["qa_pairs"]:
                answers = [pair["answer"], *pair.get("validated_answers", [])]
                spans = tuple(filter(lambda s: any(s), map(_drop_spans, answers)))
                yield _drop_item(str(pair.get("query_id", name)), pair["question"], passage["passage"], spans)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the layout of DROP ({type(error).__name__}: {error})") from None


def _drop_item(id: str, question: str, passage: str, spans: tuple[tuple[str, ...], ...]) -> Item:
    if not spans:
        raise ValueError(f"DROP: the question {id} has no answer")
    references = tuple(", ".join(span) for span in spans)
    return Item(f"drop-{id}", question, references, facts={"passage": passage, "spans": spans})


def _drop_hub(record: Record) -> Item:
    spans = record.record("answers_spans").texts("spans")
    id = record.text("query_id") if record.has("query_id") else str(record.number)
    return _drop_item(id, record.text("question"), record.text("passage"), (spans,))


def read_drop(folder: Path, split: Split) -> Iterable[Item]:
    """``drop_dataset_dev.json`` of the publisher or the Parquet files of the hub; the test split is not published, so dev is asked."""
    name, hub = ("dev", "validation") if split == "test" else ("train", "train")
    published, parquet = f"drop_dataset_{name}.json", (f"data/{hub}-*.parquet", f"{hub}-*.parquet")
    if split != "test" and not has(folder, published, *parquet):
        return []
    paths = find(folder, published, *parquet)
    items = list(_drop_published(paths[0])) if paths[0].suffix == ".json" else [*map(_drop_hub, all_records(paths))]
    return items if split == "test" else items[:8] if split == "shots" else items[8:208]


DROP = Task(
    "drop", "text", read_drop, _FORM, Metric("F1", scores.drop_f1, binary=False), "greedy", 3,
    Reported(82.4, 74.1, "variable shots"), note="the development split is asked: the test split is not published",
)  # fmt: skip


def _xquad_published(path: Path, language: str) -> Iterator[Item]:
    value = json_value(path, read_text(path))
    try:
        for article in value["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = tuple(str(answer["text"]) for answer in question["answers"])
                    yield _xquad_item(
                        str(question["id"]), language, question["question"], paragraph["context"], answers
                    )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the layout of SQuAD ({type(error).__name__}: {error})") from None


def _xquad_item(id: str, language: str, question: str, passage: str, answers: tuple[str, ...]) -> Item:  # fmt: skip
    return Item(f"xquad-{language}-{id}", question, answers, group=language, facts={"passage": passage})


def read_xquad(folder: Path, split: Split) -> Iterable[Item]:
    """``xquad.LANGUAGE.json`` of the publisher, or a folder ``xquad.LANGUAGE`` of Parquet files; there is one split."""
    if split != "test":
        return
    for path in find(folder, "xquad.*.json", "xquad.*/*.parquet"):
        language = (path.stem if path.suffix == ".json" else path.parent.name).split(".")[1]
        if path.suffix == ".json":
            yield from _xquad_published(path, language)
            continue
        for record in all_records([path]):
            answers = record.record("answers").texts("text")
            yield _xquad_item(record.text("id"), language, record.text("question"), record.text("context"), answers)


XQUAD = Task(
    "xquad", "multilingual", read_xquad, _FORM, Metric("F1", scores.squad_f1, binary=False), "greedy", 0, Reported(),
)  # fmt: skip

TASKS = (DROP, XQUAD)
