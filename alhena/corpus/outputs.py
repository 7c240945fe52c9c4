"""The output files of curate: replaced together; files of other programs are never removed.

OUT/part-00000.parquet …   documents
OUT/report.json            counts, and the hash of each part; a Parquet file not listed there belongs to another program
OUT/.curate.partial/       new parts until they are complete
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.content import Document
from alhena.documents import UNFINISHED, size_of, write_documents
from alhena.files import digest, flush, read_json, write_json

REPORT = UNFINISHED.name


def _listed_hashes(report: Path) -> Mapping[str, str]:
    """Names and hashes of the parts that a report lists. Raises ValueError when curate did not write it."""
    if not report.exists():
        return {}
    value = read_json(report) if report.is_file() else None
    if not isinstance(value, dict) or not {"read", "kept", "dropped"} <= value.keys():
        raise ValueError(f"{report}: not written by alhena curate; move it away or give --out another folder")
    files = value.get("files", {})
    return files if isinstance(files, dict) else {}


@dataclass(frozen=True)
class Outputs:
    """The outputs of curate in ``folder``."""

    folder: Path

    @property
    def _partial_folder(self) -> Path:
        return self.folder / UNFINISHED.parent

    def check_owned(self) -> dict[Path, str]:
        """The parts of earlier runs with their hashes. Raises ValueError that names a Parquet file of another program."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: a file; give --out a folder")
        known = [_listed_hashes(self.folder / REPORT), _listed_hashes(self.folder / UNFINISHED)]
        owned: dict[Path, str] = {}
        for file in sorted(self.folder.glob("*.parquet")):
            hashes = {files[file.name] for files in known if file.name in files}
            hash_ = digest(file) if hashes and file.is_file() and not file.is_symlink() else None
            if hash_ not in hashes:
                raise ValueError(
                    f"{file}: not written by alhena curate, or changed since (report.json does not list it as it is); "
                    "move it away or give --out another folder"
                )
            owned[file] = str(hash_)
        return owned

    def clear(self) -> None:
        """Completes the replacement that a killed run began, and removes parts that an earlier run left incomplete."""
        owned = self.check_owned()
        if self._partial_folder.is_symlink() or (self._partial_folder.exists() and not self._partial_folder.is_dir()):
            raise ValueError(f"{self._partial_folder}: not a folder of alhena curate; move it away")
        for file in sorted(self._partial_folder.glob("*")):
            if not re.fullmatch(r"(part-\d{5,}\.parquet|report\.json)(\.partial)?", file.name):
                raise ValueError(f"{file}: not written by alhena curate; move it away or give --out another folder")
        if (self.folder / UNFINISHED).exists():
            new = _listed_hashes(self.folder / UNFINISHED)
            self._replace([file for file, hash_ in owned.items() if new.get(file.name) != hash_])
        self.discard()

    def discard(self) -> None:
        """Removes the incomplete files of this run."""
        for file in self._partial_folder.glob("*"):
            file.unlink()
        if self._partial_folder.is_dir():
            self._partial_folder.rmdir()

    def write(self, documents: Iterator[Document], max_documents: int, max_bytes: int) -> None:
        """Writes new parts, each limited by the number and the bytes of its documents."""
        number = 0
        while (first := next(documents, None)) is not None:
            part = _until_full(first, documents, max_documents, max_bytes)
            write_documents(self._partial_folder / f"part-{number:05d}.parquet", part)
            number += 1

    def publish(self, report: Mapping[str, Any]) -> None:
        """Replaces the parts of earlier runs by the new ones. If the process is killed in between, reading the folder is refused."""
        old = self.check_owned()
        new = sorted(self._partial_folder.glob("part-*.parquet"))
        write_json(self.folder / UNFINISHED, {**report, "files": {file.name: digest(file) for file in new}})
        self._replace(old)

    def _replace(self, old: Iterable[Path]) -> None:
        for file in old:
            file.unlink()
        for file in sorted(self._partial_folder.glob("part-*.parquet")):
            file.replace(self.folder / file.name)
        flush(self.folder)
        (self.folder / UNFINISHED).replace(self.folder / REPORT)
        self._partial_folder.rmdir()
        flush(self.folder)


def _until_full(first: Document, rest: Iterator[Document], max_documents: int, max_bytes: int) -> Iterator[Document]:
    """``first`` and the documents after it, until one file is full."""
    count, size = 1, size_of(first)
    yield first
    while count < max_documents and size < max_bytes and (document := next(rest, None)) is not None:
        yield document
        count, size = count + 1, size + size_of(document)
