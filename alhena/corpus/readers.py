"""Raw files to Documents: Parquet, JSONL, or a folder of media with ``manifest.jsonl``. Lost records are counted and named.

One line of a manifest, or one row of a Parquet file, is one document in one of the forms of ``alhena.corpus.records``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.content import Document
from alhena.corpus.records import InvalidRecord, parse_line, to_document, validate
from alhena.documents import from_row
from alhena.parquet import Lost, open_parquet, read_rows

MAX_LINE_BYTES = 16 << 20
# Curated in this order: the others are cleaned of test.
SPLITS = ("test", "validation", "train")
# ``train.parquet``, or shards as Hugging Face names them: ``train-00000-of-00005.parquet``, with a hash in older data sets.
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLITS)})(?:-(\d{{5}})-of-(\d{{5}})(?:-[0-9a-f]{{16}})?)?\.parquet")


@dataclass(frozen=True)
class Dropped:
    """A record (or ``count`` consecutive ones) that did not become a Document, or was filtered: its position, the reason, details."""

    record: str
    reason: str
    detail: str = ""
    source: str = "?"
    count: int = 1


Record = Document | Dropped


def _read_manifest(folder: Path, file: Path) -> Iterator[Record]:
    """One record per line. Lines are read up to ``MAX_LINE_BYTES``."""
    with open(file, "rb") as lines:
        number = 0
        while raw := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            record = f"{file.name}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                yield Dropped(record, "line too long", f"more than {MAX_LINE_BYTES:,} bytes")
                while raw and not raw.endswith(b"\n"):
                    raw = lines.readline(MAX_LINE_BYTES)
                continue
            try:
                if text := raw.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    yield parse_line(folder, text, record)
            except UnicodeDecodeError as error:
                yield Dropped(record, "not UTF-8", str(error))
            except InvalidRecord as error:
                yield Dropped(record, error.reason, error.detail)


def _from_manifest_row(folder: Path, values: Mapping[str, Any], record: str) -> Document:
    """A row with the keys of a manifest line; ``facts`` may be an object written as JSON."""
    facts = values.get("facts")
    return to_document(folder, {**values, "facts": json.loads(facts) if isinstance(facts, str) else facts}, record)


def _read_parquet(file: Path) -> Iterator[Record]:
    """One record per row, in Alhena's schema or with the keys of a manifest line."""
    for row in read_rows(file):
        record = f"{file.name}:{row.number}"
        if isinstance(row, Lost):
            last = f"-{row.number + row.count - 1}" if row.count > 1 else ""
            yield Dropped(record + last, row.reason, row.detail, count=row.count)
            continue
        try:
            own_schema = "contents" in row.values
            yield validate(from_row(row.values)) if own_schema else _from_manifest_row(file.parent, row.values, record)
        except InvalidRecord as error:
            yield Dropped(record, error.reason, error.detail)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            yield Dropped(record, "not a document", f"{type(error).__name__}: {error}")


def _read_parquet_files(files: Sequence[Path]) -> Iterator[Record]:
    """The records of several files. A file that does not open is dropped; raises ValueError when it is the only one."""
    for file in files:
        try:
            open_parquet(file).close()
        except ValueError as error:
            if len(files) == 1:
                raise
            yield Dropped(file.name, "not a readable Parquet file", str(error))
            continue
        yield from _read_parquet(file)


def _unread_files(folder: Path, read: Sequence[Path]) -> Iterator[Dropped]:
    """Files that hold records but are not read."""
    for file in sorted({*folder.glob("*.parquet"), *folder.glob("*.jsonl")} - {*read}):
        detail = f"{read[0].name} was read instead; curate {file.name} by its own path"
        yield Dropped(file.name, "file not read", detail)


def read(path: Path) -> Iterator[Record]:
    """Documents of a manifest folder, a ``.jsonl`` file, a Parquet file or a folder of Parquet files, in order."""
    if path.is_dir() and (manifest := path / "manifest.jsonl").is_file():
        yield from _read_manifest(path, manifest)
        yield from _unread_files(path, [manifest])
    elif path.is_dir() and (files := sorted(path.glob("*.parquet"))):
        yield from _read_parquet_files(files)
        yield from _unread_files(path, files)
    elif path.suffix == ".jsonl" and path.is_file():
        yield from _read_manifest(path.parent, path)
    elif path.suffix == ".parquet" and path.is_file():
        yield from _read_parquet(path)
    else:
        raise ValueError(
            f"{path}: nothing to read; give a folder with manifest.jsonl, a .jsonl file, a .parquet file or a folder of them"
        )


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split, in the order of ``SPLITS``; empty for a folder without a file of the split train.

    Raises ValueError for other records in the folder, and for a split with files of two kinds (``train.parquet`` and shards).
    """
    matches = {file: _SPLIT_FILE.fullmatch(file.name) for file in sorted(folder.glob("*.parquet"))}
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    totals: dict[str, set[str | None]] = {split: set() for split in SPLITS}
    for file, match in matches.items():
        if match and file.is_file():
            files[match[1]].append(file)
            totals[match[1]].add(match[3])
    if not files["train"]:
        return {}
    present = {split: paths for split, paths in files.items() if paths}
    for split, paths in present.items():
        if len(totals[split]) > 1:
            raise ValueError(f"{paths[0]}: {split} has files of more than one export; move those of the others")
    if others := {*matches, *folder.glob("*.jsonl")}.difference(*present.values()):
        raise ValueError(
            f"{min(others)}: lies beside the splits ({', '.join(present)}) and would not be read; move it, or curate it by its path"
        )
    return present


def read_split(files: Sequence[Path]) -> Iterator[Record]:
    """The records of a split. Shards that are missing by the number in the names are dropped as one record."""
    yield from _read_parquet_files(files)
    match = _SPLIT_FILE.fullmatch(files[0].name)
    total = int(match[3]) if match and match[3] else len(files)
    if len(files) < total:
        detail = f"{len(files)} of {total} files of the split are in the folder; the others were not read"
        yield Dropped(files[-1].name, "file missing", detail)
