"""Media that items name, read when they are asked: files below the data folder, and cells of Parquet files.

Bounds and refusals are those of a corpus (alhena/corpus/records.py): no URL, no path outside the folder, no file above the limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from alhena.content import Excerpt, Part, Video
from alhena.corpus.records import MediaReader
from alhena.parquet import Lost, read_column

MediaKind = Literal["image", "audio", "video"]


@dataclass(frozen=True)
class Cell:
    """A value of a Parquet file that was not read with its row: binary columns are not held in memory."""

    path: Path
    row: int
    column: str


@dataclass(frozen=True)
class Medium:
    """An image, audio or video of an item. ``value`` is a path relative to ``folder``, or a cell; ``excerpt`` is of a video."""

    kind: MediaKind
    folder: Path
    value: str | Cell
    excerpt: Excerpt = Excerpt()

    def part(self, value: Any) -> Part:
        """The medium with its bytes. Raises ValueError that names what cannot be read."""
        part = MediaReader(self.folder).read(self.kind, value)
        return replace(part, excerpt=self.excerpt) if isinstance(part, Video) else part


def inside(folder: Path, kind: MediaKind, *names: str, excerpt: Excerpt = Excerpt()) -> Medium:
    """The first of these files that the folder has; the first name where it has none, and asking the item says so."""
    found = next((name for name in names if ".." not in Path(name).parts and os.path.isfile(folder / name)), names[0])
    return Medium(kind, folder, found, excerpt)


def load(media: Iterable[Medium]) -> dict[Medium, Part | str]:
    """Each medium with its bytes, or why it cannot be read. Rows of a Parquet file are read in one pass."""
    out: dict[Medium, Part | str] = {}
    cells: dict[Cell, list[Medium]] = {}
    for medium in dict.fromkeys(media):
        if isinstance(medium.value, Cell):
            cells.setdefault(medium.value, []).append(medium)
        else:
            out[medium] = _or_reason(medium, medium.value)
    for cell, value in _values(cells):
        for medium in cells[cell]:
            out[medium] = value.detail if isinstance(value, Lost) else _or_reason(medium, value)
    return out


def _or_reason(medium: Medium, value: Any) -> Part | str:
    try:
        return medium.part(value)
    except ValueError as error:
        return str(error)


def _values(cells: Iterable[Cell]) -> Iterator[tuple[Cell, Any]]:
    """Cells with their values, or ``Lost``."""

    def column(cell: Cell) -> tuple[Path, str]:
        return cell.path, cell.column

    for (path, name), group in groupby(sorted(cells, key=lambda c: (*column(c), c.row)), column):
        of_row = {cell.row: cell for cell in group}
        for row, value in read_column(path, name, frozenset(of_row)):
            yield of_row[row], value
