"""The starter with a teacher: the same model, data and steps; it also learns what `starter_large` predicts at every position.

`alhena demo runs/starter_distilled --recipe starter_distilled`, after `alhena demo runs/starter_large --recipe starter_large`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alhena.compress.distill import Distill
from alhena.recipe import Recipe
from recipes import starter

TEACHER = Path("runs/starter_large/models/base")


def run() -> Recipe:
    """2.6 million parameters, with the tokenizers of the teacher."""
    return distilled(starter.run(), TEACHER)


def distilled(student: Recipe, teacher: Path) -> Recipe:
    """A recipe whose pre-training has a teacher."""
    return replace(student, name=f"{student.name}-distilled", distill=Distill(teacher))
