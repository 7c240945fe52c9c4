"""Raw files to Documents: Parquet, JSONL, or a folder of media with ``manifest.jsonl``. What is lost is counted and named.

One line of a manifest, or one row of a Parquet file, is one document: ``alhena.corpus.records`` says in which forms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.content import Document, from_row
from alhena.corpus.records import Bad, check, parse_line, to_document
from alhena.parquet import Lost, open_parquet, read_rows

LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class Dropped:
    """A record (or ``count`` of them in a row) that did not become a Document, or did not stay one: where, why, the particulars."""

    record: str
    reason: str
    detail: str = ""
    source: str = "?"
    count: int = 1


def _manifest(folder: Path, file: Path) -> Iterator[Document | Dropped]:
    with open(file, "rb") as lines:
        number = 0
        while raw := lines.readline(LONGEST_LINE + 1):
            number += 1
            record = f"{file.name}:{number}"
            if len(raw) > LONGEST_LINE:
                yield Dropped(record, "line too long", f"more than {LONGEST_LINE:,} bytes")
                while raw and not raw.endswith(b"\n"):
                    raw = lines.readline(LONGEST_LINE)
                continue
            try:
                if text := raw.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    yield parse_line(folder, text, record)
            except UnicodeDecodeError as error:
                yield Dropped(record, "not UTF-8", str(error))
            except Bad as error:
                yield Dropped(record, error.reason, error.detail)


def _from_foreign_row(folder: Path, values: Mapping[str, Any], record: str) -> Document:
    """A row with the keys of a manifest line; facts may be an object written as JSON."""
    facts = values.get("facts")
    return to_document(folder, {**values, "facts": json.loads(facts) if isinstance(facts, str) else facts}, record)


def _parquet(file: Path) -> Iterator[Document | Dropped]:
    for row in read_rows(file):
        record = f"{file.name}:{row.number}"
        if isinstance(row, Lost):
            last = f"-{row.number + row.count - 1}" if row.count > 1 else ""
            yield Dropped(record + last, row.reason, row.detail, count=row.count)
            continue
        try:
            ours = "contents" in row.values
            yield check(from_row(row.values)) if ours else _from_foreign_row(file.parent, row.values, record)
        except Bad as error:
            yield Dropped(record, error.reason, error.detail)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            yield Dropped(record, "not a document", f"{type(error).__name__}: {error}")


def _folder(files: list[Path]) -> Iterator[Document | Dropped]:
    """Every file of a folder; one that does not open is dropped, unless it is the only one."""
    for file in files:
        try:
            open_parquet(file).close()
        except ValueError as error:
            if len(files) == 1:
                raise
            yield Dropped(file.name, "not a readable Parquet file", str(error))
            continue
        yield from _parquet(file)


def _beside(folder: Path, read: list[Path]) -> Iterator[Dropped]:
    """Files that hold records too, but are not read when the others are."""
    for file in sorted({*folder.glob("*.parquet"), *folder.glob("*.jsonl")} - {*read}):
        detail = f"{read[0].name} lies beside it and is what was read; curate {file.name} by its own path"
        yield Dropped(file.name, "file not read", detail)


def read(path: Path) -> Iterator[Document | Dropped]:
    """Documents of a manifest folder, a ``.jsonl`` file, a Parquet file or a folder of Parquet files, in order."""
    if path.is_dir() and (manifest := path / "manifest.jsonl").is_file():
        yield from _manifest(path, manifest)
        yield from _beside(path, [manifest])
    elif path.is_dir() and (files := sorted(path.glob("*.parquet"))):
        yield from _folder(files)
        yield from _beside(path, files)
    elif path.suffix == ".jsonl" and path.is_file():
        yield from _manifest(path.parent, path)
    elif path.suffix == ".parquet" and path.is_file():
        yield from _parquet(path)
    else:
        raise ValueError(
            f"{path}: nothing to read; give a folder with manifest.jsonl, a .jsonl file, a .parquet file or a folder of them"
        )
