"""Generated images, judged by what they show: prompts with a judge and what it should see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from alhena.corpus.starter.splits import COLORS
from alhena.evaluate.judges import colour_of, digit_judge, shape_of
from alhena.evaluate.tasks.items import Form, Item, Split, Task
from alhena.evaluate.tasks.media.scores import SAME
from alhena.evaluate.tasks.sources import all_records, find
from alhena.media import decode_image
from alhena.tokens.images import Pixels

JUDGES: dict[str, Callable[[Pixels], str]] = {
    "digit": lambda pixels: str(digit_judge()[0](pixels)),
    "color": lambda pixels: str(colour_of(pixels, dict(COLORS))),
    "shape": lambda pixels: str(shape_of(pixels)),
    "color and shape": lambda pixels: f"{colour_of(pixels, dict(COLORS))} {shape_of(pixels)}",
}


def read_image_generation(folder: Path, split: Split) -> Iterable[Item]:
    """``prompts.jsonl``, a format of our own: ``{"prompt": "Draw a red circle.", "judge": "color and shape", "expected": "red circle"}``.

    Judges are digit, color, shape, and color and shape (alhena/evaluate/judges.py).
    """
    if split != "test":
        return
    for record in all_records(find(folder, "prompts.jsonl")):
        judge = record.text("judge")
        if judge not in JUDGES:
            raise ValueError(
                f"{record.path}, record {record.number}: no judge {judge!r}; known are {', '.join(JUDGES)}"
            )
        expected = (record.text("expected"),)
        yield Item(f"image-{record.number}", record.text("prompt"), expected, group=judge, facts={"judge": judge})


def judged(item: Item, image: bytes) -> str:
    """What the judge of an item sees; empty where the image does not decode."""
    try:
        return JUDGES[item.facts["judge"]](decode_image(image))
    except ValueError:
        return ""


IMAGE_GENERATION = Task(
    "image_generation", "image generation", read_image_generation,
    Form(
        ask=lambda item: item.question, answer=lambda item: "",
        extract=lambda item, output: "", max_tokens=1024, judge=judged,
    ),
    SAME, "greedy", 0,
)  # fmt: skip

TASKS = (IMAGE_GENERATION,)
