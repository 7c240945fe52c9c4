"""Questions that combine text with images, audio and video, in a format of our own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from alhena.content import MEDIA
from alhena.evaluate.tasks.items import MARK, Item, Split, Task
from alhena.evaluate.tasks.media.image_choices import CHOICE, choice_item
from alhena.evaluate.tasks.media.scores import SAME
from alhena.evaluate.tasks.media_files import Medium, inside
from alhena.evaluate.tasks.sources import Record, all_records, find


def _parts(record: Record, folder: Path) -> tuple[str, tuple[Medium, ...]]:
    """The text of all parts with a mark for each medium, and the media."""
    texts, media = list[str](), list[Medium]()
    for part in record.records("parts"):
        (kind,) = [name for name, value in part.values.items() if value is not None] or ("nothing",)
        if kind == "text":
            texts.append(part.text("text").replace(MARK, ""))
        elif kind in MEDIA:
            texts.append(MARK)
            media.append(inside(folder, kind, part.text(kind)))  # type: ignore[arg-type]
        else:
            raise ValueError(
                f"{record.path}, record {record.number}: a part has {kind!r}; known are text, {', '.join(MEDIA)}"
            )
    return "".join(texts), tuple(media)


def _item(record: Record, folder: Path) -> Item:
    question, media = _parts(record, folder)
    answers, group = record.texts("answers"), record.text("group") if record.has("group") else ""
    if not answers:
        raise ValueError(f"{record.path}, record {record.number}: field 'answers' has no answer")
    id = f"combinations-{record.text('id') if record.has('id') else record.id}"
    if record.has("choices"):
        choices = record.texts("choices")
        right = choices.index(answers[0]) if answers[0] in choices else -1
        return replace(choice_item(id, question, choices, right, group), media=media)
    return Item(id, question, answers, group=group, facts={"options": ()}, media=media)


def read_combinations(folder: Path, split: Split) -> Iterable[Item]:
    """``test.jsonl``, and ``shots.jsonl`` where it is there, with media in the same folder:

    {"id": "1", "parts": [{"image": "a.png"}, {"audio": "question.flac"}, {"text": "Answer it."}], "answers": ["red"]}

    and optionally ``choices``, of which the first answer is one, and ``group``.
    """
    name = f"{split}.jsonl"
    if split != "test" and not (folder / name).exists():
        return []
    return [_item(record, folder) for record in all_records(find(folder, name))]


# Without choices the parts are all that is asked.
_FORM = replace(CHOICE, ask=lambda item: CHOICE.ask(item) if item.choices else item.question, max_tokens=64)

COMBINATIONS = Task("combinations", "combinations", read_combinations, _FORM, SAME, "greedy", 0)

TASKS = (COMBINATIONS,)
