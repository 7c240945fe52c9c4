"""Captions of images and videos in several languages: XM-3600, VATEX, YouCook2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from alhena.content import Excerpt
from alhena.evaluate.tasks.extraction import spoken_text
from alhena.evaluate.tasks.items import Form, Item, Reported, Split, Task
from alhena.evaluate.tasks.languages import language_name
from alhena.evaluate.tasks.media.cider import CIDER, with_frequencies
from alhena.evaluate.tasks.media_files import Medium, inside
from alhena.evaluate.tasks.sources import Record, all_records, find, find_split, has, records

# One more than the shots that are asked: an item is no shot of itself.
SHOT_ITEMS = 5
VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi")


def _first_paragraph(item: Item, output: str) -> str:
    return spoken_text(output.strip().split("\n\n")[0])


def _form(what: str) -> Form:
    return Form(
        ask=lambda item: f"Describe the {what} in one sentence in {item.facts['language']}.\nCaption:",
        answer=lambda item: f" {item.reference}",
        extract=_first_paragraph, max_tokens=64, stop=("\n\n",),
    )  # fmt: skip


def _caption_item(id: str, captions: Iterable[str], language: str, medium: Medium) -> Item:
    references = tuple(text for text in captions if text.strip())
    if not references:
        raise ValueError(f"{id} has no caption")
    name = {"cmn": "Chinese"}.get(language, language_name(language))
    return Item(id, "", references, group=language, facts={"language": name}, media=(medium,))


def video_names(stem: str) -> tuple[str, ...]:
    """The files that a video may be in, by their suffix."""
    return tuple(f"{stem}.{suffix}" for suffix in VIDEO_SUFFIXES)


# ── XM-3600 ────────────────────────────────────────────────────────────────────────────────────────────────


def _xm3600_published(folder: Path) -> Iterator[Item]:
    for record in records(find(folder, "captions.jsonl")[0]):
        key = record.text("image/key")
        for language, value in record.values.items():
            if not isinstance(value, dict):
                continue
            captions = record.record(language).texts("caption")
            image = inside(folder, "image", f"images/{key}.jpg", f"{key}.jpg")
            yield _caption_item(f"xm3600-{language}-{key}", captions, language, image)


def _xm3600_hub(record: Record) -> Item:
    # data/LANGUAGE-00000-of-00001.parquet
    language = record.path.stem.split("-")[0]
    id = f"xm3600-{language}-{record.text('image_id')}"
    return _caption_item(id, record.texts("captions"), language, record.medium("image", "image"))


def read_xm3600(folder: Path, split: Split) -> Iterable[Item]:
    """``captions.jsonl`` of the publisher (``image/key``, and by language ``caption``) with the folder ``images``, or ``data/LANGUAGE-*.parquet`` of the
    hub (``image_id``, ``captions``, ``image``). There is one split; shots are its first images."""
    if split == "validation":
        return []
    if has(folder, "captions.jsonl"):
        items = list(_xm3600_published(folder))
    else:
        items = [_xm3600_hub(r) for r in all_records(find(folder, "captions.jsonl", "data/*-*.parquet"))]
    items = with_frequencies("xm3600", items)
    return items if split == "test" else first_of_groups(items)


def first_of_groups(items: Iterable[Item]) -> list[Item]:
    """The first items of each group, as shots."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return [item for group in groups.values() for item in group[:SHOT_ITEMS]]


XM3600 = Task(
    "xm3600", "image", read_xm3600, _form("image"), CIDER, "greedy", 4,
    Reported(58.4, 55.9, "4-shot, mean of 7 languages"), shots_of_group=True, chance=0.0,
    note="the mean of the languages of the folder; shots are other images of the same split",
)  # fmt: skip


# ── VATEX ──────────────────────────────────────────────────────────────────────────────────────────────────


def _read_vatex(folder: Path, split: Split, language: str) -> Iterable[Item]:
    """``language``: en or zh."""
    if split == "validation":
        return []
    field = {"en": "enCap", "zh": "chCap"}[language]
    # The public test files have English captions only.
    asked = {"en": ("*test*.json", "*validation*.json"), "zh": ("*validation*.json",)}[language]
    patterns = asked if split == "test" else ("*training*.json",)
    items = []
    for record in all_records(find_split(folder, split, *patterns)[:1]):
        id = record.text("videoID")
        names = (f"{under}{name}" for under in ("videos/", "") for name in video_names(id))
        items.append(
            _caption_item(f"vatex-{language}-{id}", record.texts(field), language, inside(folder, "video", *names))
        )
        if split == "shots" and len(items) == SHOT_ITEMS:
            break
    return with_frequencies("vatex", items)


def read_vatex(folder: Path, split: Split) -> Iterable[Item]:
    """``vatex_public_test_english_v1.1.json`` of the publisher (``videoID``, ``enCap``), and ``vatex_training_v1.0.json`` for shots, with videos
    ``videos/VIDEOID.mp4``."""
    return _read_vatex(folder, split, "en")


def read_vatex_zh(folder: Path, split: Split) -> Iterable[Item]:
    """``vatex_validation_v1.0.json`` of the publisher (``videoID``, ``chCap``), as VATEX."""
    return _read_vatex(folder, split, "zh")


VATEX = Task(
    "vatex", "video", read_vatex, _form("video"), CIDER, "greedy", 4, Reported(62.7, 57.4, "test, 4-shot"), chance=0.0,
)  # fmt: skip

VATEX_ZH = Task(
    "vatex_zh", "video", read_vatex_zh, _form("video"), CIDER, "greedy", 4, Reported(51.3, 50.0, "test, 4-shot"), chance=0.0,
    note="the validation split is asked: the test split has no published Chinese captions; words are counted in characters",
)  # fmt: skip


# ── YouCook2 ───────────────────────────────────────────────────────────────────────────────────────────────


def _segment(record: Record) -> Excerpt:
    value = record.values.get("segment")
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, int | float) for v in value):
        raise ValueError(f"{record.path}, record {record.number}: field 'segment' must be two times in seconds")
    return Excerpt(float(value[0]), float(value[1]))


def _youcook2_item(record: Record, id: str, names: Iterable[str]) -> Item:
    # Videos lie under the folder of the benchmark, of which the Parquet files have one of their own.
    folder = record.path.parent.parent if record.path.suffix == ".parquet" else record.path.parent
    video = inside(folder, "video", *names, excerpt=_segment(record))
    return _caption_item(id, (record.text("sentence"),), "en", video)


def _youcook2_published(path: Path, subset: str) -> Iterator[Item]:
    for whole in records(path):
        for youtube, values in whole.record("database").values.items():
            video = Record(path, 0, values if isinstance(values, dict) else {})
            if video.text("subset") != subset:
                continue
            recipe = video.values.get("recipe_type")
            stems = (f"raw_videos/{subset}/{recipe}/{youtube}", f"{subset}/{recipe}/{youtube}", f"videos/{youtube}")
            names = [name for stem in stems for name in video_names(stem)]
            for inner in video.records("annotations"):
                yield _youcook2_item(inner, f"youcook2-{youtube}-{inner.integer('id')}", names)


def _youcook2_hub(record: Record) -> Item:
    path = record.text("video_path")
    return _youcook2_item(record, f"youcook2-{record.id}", (f"YouCookIIVideos/{path}", path))


def read_youcook2(folder: Path, split: Split) -> Iterable[Item]:
    """``youcookii_annotations_trainval.json`` of the publisher (by video ``subset``, ``recipe_type`` and ``annotations`` with ``segment`` and
    ``sentence``) with ``raw_videos/SUBSET/RECIPE/ID.mp4``, or ``data/val-*.parquet`` of the hub (``video_path``, ``segment``, ``sentence``)."""
    if split == "validation":
        return []
    patterns = ("youcookii_annotations_trainval.json", "annotations/youcookii_annotations_trainval.json")
    if has(folder, *patterns):
        items = list(_youcook2_published(find(folder, *patterns)[0], "validation" if split == "test" else "training"))
    elif split == "test":
        items = [_youcook2_hub(r) for r in all_records(find(folder, *patterns, "data/val-*.parquet"))]
    else:
        items = []
    return with_frequencies("youcook2", items if split == "test" else items[:SHOT_ITEMS])


YOUCOOK2 = Task(
    "youcook2", "video", read_youcook2, _form("video"), CIDER, "greedy", 4, Reported(135.4, 123.2, "val, 4-shot"), chance=0.0,
    note="of each video the segment of a step is asked",
)  # fmt: skip

TASKS = (XM3600, VATEX, VATEX_ZH, YOUCOOK2)
