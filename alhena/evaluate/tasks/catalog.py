"""All benchmarks by name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from alhena.evaluate.tasks import code, hard, instructions, knowledge, languages, mathematics, reading, reasoning
from alhena.evaluate.tasks.items import Task
from alhena.evaluate.tasks.media import (
    captions,
    combinations,
    image_choices,
    image_generation,
    image_questions,
    speech,
    video_questions,
)

FAMILIES = (
    knowledge, mathematics, hard, code, reading, languages, instructions, reasoning,
    image_questions, image_choices, captions, video_questions, image_generation, speech, combinations,
)  # fmt: skip
BENCHMARKS = {task.name: task for family in FAMILIES for task in family.TASKS}


def tasks_named(names: Sequence[str]) -> list[Task]:
    """Benchmarks in the order of their names. Raises ValueError that suggests the nearest name."""
    for name in names:
        if name not in BENCHMARKS:
            near = get_close_matches(name, BENCHMARKS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no benchmark {name!r}{hint} Known are {', '.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in dict.fromkeys(names)]
