"""Questions about videos: NExT-QA, ActivityNet-QA, Perception Test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from alhena.evaluate.tasks.items import Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.media.captions import video_names
from alhena.evaluate.tasks.media.image_choices import CHOICE, choice_item
from alhena.evaluate.tasks.media.image_questions import SHORT, SHOT_ITEMS, short_split
from alhena.evaluate.tasks.media.scores import SAME, normal_answer
from alhena.evaluate.tasks.media_files import Medium, inside
from alhena.evaluate.tasks.sources import Record, all_records, find, find_split, has, json_value, read_text, records

# Of a question with five choices.
_NEXTQA_OPTIONS = tuple(f"a{i}" for i in range(5))


def _video(folder: Path, *stems: str) -> Medium:
    return inside(folder, "video", *(name for stem in stems for name in video_names(stem)))


# ── NExT-QA ────────────────────────────────────────────────────────────────────────────────────────────────


def _video_paths(folder: Path) -> dict[str, str]:
    """The paths of videos by their ids, where the publisher's map is there."""
    for path in (folder / "map_vid_vidorID.json", folder / "nextqa" / "map_vid_vidorID.json"):
        if path.exists():
            value: Any = json_value(path, read_text(path))
            if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
                raise ValueError(f"{path}: it must map ids of videos to paths")
            return value
    return {}


def _nextqa_item(record: Record, folder: Path, paths: dict[str, str]) -> Item:
    id = record.number_or_text("video")
    options = tuple(record.text(name).strip().rstrip(".") for name in _NEXTQA_OPTIONS)
    question = record.text("question").strip().rstrip("?") + "?"
    item = choice_item(
        f"nextqa-{id}-{record.number_or_text('qid')}", question, options, record.integer("answer"), record.text("type")
    )
    names = [f"{under}/{name}" for under in ("NExTVideo", "videos") for name in (paths.get(id, id), id)]
    return replace(item, media=(_video(folder, *names),))


def read_nextqa(folder: Path, split: Split) -> Iterable[Item]:
    """``test.csv`` of the publisher's questions with choices (``video``, ``question``, ``a0`` to ``a4``, ``answer``, ``qid``, ``type``) with
    ``map_vid_vidorID.json`` and ``NExTVideo/``, or ``MC/test-*.parquet`` of the hub with the same columns."""
    name = {"test": "test", "shots": "train", "validation": "val"}[split]
    patterns = (f"{name}.csv", f"nextqa/{name}.csv", f"MC/{name}-*.parquet")
    files, paths = find_split(folder, split, *patterns), _video_paths(folder)
    items = [_nextqa_item(record, folder, paths) for record in all_records(files)]
    return items[:SHOT_ITEMS] if split == "shots" else items


NEXTQA = Task(
    "nextqa", "video", read_nextqa, CHOICE, SAME, "greedy", 0, Reported(29.9, 28.0, "test, 0-shot, open-ended, WUPS"),
    note="with choices: the report's figure is WUPS of open answers, which needs WordNet, and does not compare",
)  # fmt: skip


# ── ActivityNet-QA ─────────────────────────────────────────────────────────────────────────────────────────


def _activitynet_item(folder: Path, question: Record, answer: Record) -> Item:
    text, video = question.text("question").strip().rstrip("?").capitalize() + "?", question.text("video_name")
    group = str(answer.values.get("type", ""))
    media = (_video(folder, f"all_test/v_{video}", f"videos/v_{video}", f"v_{video}"),)
    id = f"activitynetqa-{question.text('question_id')}"
    return Item(id, text, (answer.text("answer"),), group=group, media=media)


def read_activitynetqa(folder: Path, split: Split) -> Iterable[Item]:
    """``test_q.json`` (``video_name``, ``question``, ``question_id``) and ``test_a.json`` (``answer``, ``type``) of the publisher, or
    ``data/test-*.parquet`` of the hub with all of these; videos ``all_test/v_NAME.mp4``."""
    name = {"test": "test", "shots": "train", "validation": "val"}[split]
    patterns = (f"{name}_q.json", f"dataset/{name}_q.json", f"data/{name}-*.parquet")
    if split != "test" and not has(folder, *patterns):
        return []
    paths = find(folder, *patterns)
    if paths[0].suffix == ".parquet":
        items = [_activitynet_item(folder, record, record) for record in all_records(paths)]
    else:
        answers = {r.text("question_id"): r for r in records(paths[0].with_name(f"{name}_a.json"))}
        items = []
        for question in records(paths[0]):
            if question.text("question_id") not in answers:
                raise ValueError(f"{paths[0]}: question {question.text('question_id')} has no answer")
            items.append(_activitynet_item(folder, question, answers[question.text("question_id")]))
    return items[:SHOT_ITEMS] if split == "shots" else items


def _same_normal(item: Item, answer: str) -> float:
    return float(bool(answer.strip()) and normal_answer(answer) == normal_answer(item.reference))


ACTIVITYNETQA = Task(
    "activitynetqa", "video", read_activitynetqa, SHORT, Metric("accuracy", _same_normal), "greedy", 0,
    Reported(52.2, 49.8, "test, 0-shot"), note="an answer is right when it equals the reference in VQA's normal form",
)  # fmt: skip


# ── Perception Test ────────────────────────────────────────────────────────────────────────────────────────


def _perception_item(folder: Path, record: Record, video: str) -> Item:
    number = record.number_or_text("question_id" if record.has("question_id") else "id")
    group = record.text("area") if record.has("area") else ""
    options, right = record.texts("options"), record.integer("answer_id")
    item = choice_item(f"perception_test-{video}-{number}", record.text("question"), options, right, group)
    return replace(item, media=(_video(folder, f"videos/{video}", video),))


def _perception_published(folder: Path, path: Path) -> Iterator[Item]:
    for whole in records(path):
        for video, values in whole.values.items():
            record = Record(path, 0, values if isinstance(values, dict) else {})
            for question in record.records("mc_question") if record.has("mc_question") else ():
                yield _perception_item(folder, question, video)


def read_perception_test(folder: Path, split: Split) -> Iterable[Item]:
    """``mc_question_valid.json`` of the publisher (by video ``mc_question`` with ``question``, ``options``, ``answer_id``) with ``videos/NAME.mp4``, or
    ``mc_question_val/validation-*.parquet`` of the hub (``video_name`` and the same). The answers of test are not published."""
    name = "valid" if split == "test" else "train"
    patterns = (f"mc_question_{name}.json", f"all_{name}.json")
    parquet = "mc_question_val/validation-*.parquet"
    if split != "test" and not has(folder, *patterns):
        return []
    paths = find(folder, *patterns, *([parquet] if split == "test" else []))
    if paths[0].suffix == ".parquet":
        return [_perception_item(folder, record, record.text("video_name")) for record in all_records(paths)]
    return short_split(_perception_published(folder, paths[0]), split)


PERCEPTION_TEST = Task(
    "perception_test", "video", read_perception_test, CHOICE, SAME, "greedy", 0, Reported(54.7, 51.1, "test, 0-shot"),
    note="the validation split is asked: the test split has no published answers",
)  # fmt: skip

TASKS = (NEXTQA, ACTIVITYNETQA, PERCEPTION_TEST)
