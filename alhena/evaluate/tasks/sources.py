"""Records of benchmark files from a local folder: Parquet, JSON, JSON lines, CSV, TSV and lines of text, bounded and checked field by field.

find(folder, "test.jsonl", "main/test-*.parquet")   the first of these layouts that the folder has
records(path)                                       its records, each with checked access to its fields
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.evaluate.tasks.items import Split
from alhena.evaluate.tasks.media_files import Cell, MediaKind, Medium
from alhena.model.storage.tensors import regular
from alhena.parquet import Lost, binary_columns, read_rows
from alhena.schema import shown

# Of a file that is held in memory, and of its text after decompression.
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Record:
    """One record of a file. A field that is missing or of another type raises ValueError that names file, record and field."""

    path: Path
    number: int
    values: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.path.stem}-{self.number}"

    def _typed(self, name: str, kind: type | tuple[type, ...], described: str) -> Any:
        value = self.values.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            what = "is missing" if value is None else f"is {shown(value)}"
            raise ValueError(f"{self.path}, record {self.number}: field {name!r} {what}; it must be {described}")
        return value

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        return self._typed(name, str, "a text")

    def integer(self, name: str) -> int:
        value = self.values.get(name)
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            return int(value)
        return int(self._typed(name, int, "an integer"))

    def number_or_text(self, name: str) -> str:
        """A field that some files have as a number."""
        return self.text(name) if isinstance(self.values.get(name), str) else str(self.integer(name))

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._typed(name, list, "a list of texts")
        if not all(isinstance(item, str) for item in value):
            raise ValueError(f"{self.path}, record {self.number}: field {name!r} must be a list of texts")
        return tuple(value)

    def medium(self, kind: MediaKind, name: str) -> Medium:
        """The medium in a cell of a Parquet file."""
        return Medium(kind, self.path.parent, self._typed(name, Cell, f"a column with the bytes of {kind} files"))

    def records(self, name: str) -> list[Record]:
        """A list of objects."""
        value = self._typed(name, list, "a list of objects")
        return [self._inner(item, name) for item in value]

    def record(self, name: str) -> Record:
        """An object inside."""
        return self._inner(self.values.get(name), name)

    def _inner(self, value: Any, name: str) -> Record:
        if not isinstance(value, dict):
            raise ValueError(
                f"{self.path}, record {self.number}: field {name!r} must hold objects; it holds {shown(value)}"
            )
        return Record(self.path, self.number, value)


def find(folder: Path, *patterns: str) -> list[Path]:
    """The files of the first pattern that some file matches, in order of their names. Raises ValueError that lists the layouts."""
    for pattern in patterns:
        if paths := sorted(folder.glob(pattern)):
            return paths
    raise ValueError(f"{folder}: none of the files of this benchmark is here ({', '.join(patterns)})")


def find_split(folder: Path, split: Split, *patterns: str) -> list[Path]:
    """As :func:`find`; none where the folder has no such files of another split than test."""
    return find(folder, *patterns) if split == "test" or has(folder, *patterns) else []


def has(folder: Path, *patterns: str) -> bool:
    """Whether some file matches."""
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def read_text(path: Path) -> str:
    """The text of a file, unpacked if it is ``.gz``. Raises ValueError that names it when it is too large or no UTF-8."""
    if regular(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES:,} bytes when unpacked")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error})") from None


def lines(path: Path) -> list[str]:
    """The lines of a text file."""
    return read_text(path).removesuffix("\n").split("\n")


def json_value(path: Path, text: str, number: int | None = None) -> Any:
    """A JSON value. Raises ValueError that names file and line."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = "" if number is None else f", line {number}"
        raise ValueError(f"{path}{where}: not valid JSON ({error})") from None


def _objects(path: Path, text: str, suffix: str) -> Iterator[Any]:
    if suffix == ".jsonl":
        yield from (json_value(path, line, n) for n, line in enumerate(text.split("\n"), 1) if line.strip())
        return
    value = json_value(path, text)
    yield from value if isinstance(value, list) else [value]


def _table(path: Path, suffix: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of CSV or TSV; without ``columns`` the first row names them."""
    text = io.StringIO(read_text(path), newline="")
    names = list(columns) or None
    is_tsv = suffix == ".tsv"
    rows = (
        csv.DictReader(text, names, delimiter="\t", quoting=csv.QUOTE_NONE) if is_tsv else csv.DictReader(text, names)
    )
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{path}: a row has other columns than {', '.join(names or row)}: {shown(row)}")
        yield row


def records(path: Path, columns: Sequence[str] = (), suffix: str = "") -> Iterator[Record]:
    """The records of a file, by the end of its name or by ``suffix``. Raises ValueError that names the file and the record that cannot be read."""
    suffix = suffix or (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix)
    if suffix == ".parquet":
        read, left = binary_columns(path)
        for row in read_rows(path, read):
            if isinstance(row, Lost):
                raise ValueError(f"{path}, row {row.number}: {row.reason} ({row.detail})")
            yield Record(path, row.number - 1, row.values | {name: Cell(path, row.number, name) for name in left})
        return
    if suffix in (".csv", ".tsv"):
        values: Iterator[Any] = _table(path, suffix, columns)
    elif suffix in (".json", ".jsonl"):
        values = _objects(path, read_text(path), suffix)
    else:
        raise ValueError(
            f"{path}: a file of another kind; known are .parquet, .json, .jsonl, .csv, .tsv, also with .gz"
        )
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise ValueError(f"{path}, record {number}: it is {shown(value)}, not an object")
        yield Record(path, number, value)


def all_records(paths: Sequence[Path], columns: Sequence[str] = ()) -> Iterator[Record]:
    """The records of several files, one after the other."""
    for path in paths:
        yield from records(path, columns)
