"""The files that curate leaves in a folder: replaced as a whole, and only its own ones are ever removed.

OUT/part-00000.parquet …   documents
OUT/report.json            counts, and the hash of each part: what is not listed there is somebody else's
OUT/.curate.partial/       the next ones, until they are complete
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.content import UNFINISHED, Document, size_of, write_documents
from alhena.files import flush, read_json, write_json

REPORT = UNFINISHED.name


def _hash(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _listed(report: Path) -> Mapping[str, str]:
    """Names and hashes of the parts that a report lists. Raises ValueError when it is no report of curate's."""
    if not report.exists():
        return {}
    value = read_json(report) if report.is_file() else None
    if not isinstance(value, dict) or not {"read", "kept", "dropped"} <= value.keys():
        raise ValueError(f"{report}: not written by alhena curate; move it away or give --out another folder")
    files = value.get("files", {})
    return files if isinstance(files, dict) else {}


@dataclass(frozen=True)
class Outputs:
    """The outputs of one run in ``folder``."""

    folder: Path

    @property
    def _fresh(self) -> Path:
        return self.folder / UNFINISHED.parent

    def own(self) -> dict[Path, str]:
        """The parts of earlier runs and their hashes. Raises ValueError that names a file that curate did not make and that is in the way."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: a file; give --out a folder")
        known = [_listed(self.folder / REPORT), _listed(self.folder / UNFINISHED)]
        own: dict[Path, str] = {}
        for file in sorted(self.folder.glob("*.parquet")):
            hashes = {files[file.name] for files in known if file.name in files}
            hash_ = _hash(file) if hashes and file.is_file() and not file.is_symlink() else None
            if hash_ not in hashes:
                raise ValueError(
                    f"{file}: not written by alhena curate, or changed since (report.json does not list it as it is); "
                    "move it away or give --out another folder"
                )
            own[file] = str(hash_)
        return own

    def clear(self) -> None:
        """Completes the replacement that a killed run began, and removes parts that another left unfinished."""
        own = self.own()
        if self._fresh.is_symlink() or (self._fresh.exists() and not self._fresh.is_dir()):
            raise ValueError(f"{self._fresh}: not a folder of alhena curate; move it away")
        for file in sorted(self._fresh.glob("*")):
            if not re.fullmatch(r"(part-\d{5,}\.parquet|report\.json)(\.partial)?", file.name):
                raise ValueError(f"{file}: not written by alhena curate; move it away or give --out another folder")
        if (self.folder / UNFINISHED).exists():
            new = _listed(self.folder / UNFINISHED)
            self._replace([file for file, hash_ in own.items() if new.get(file.name) != hash_])
        self.discard()

    def discard(self) -> None:
        """Removes the unfinished files of this run."""
        for file in self._fresh.glob("*"):
            file.unlink()
        if self._fresh.is_dir():
            self._fresh.rmdir()

    def write(self, documents: Iterator[Document], most: int, most_bytes: int) -> None:
        """Writes the next parts, each closed by the number or by the bytes of its documents."""
        number = 0
        while (first := next(documents, None)) is not None:
            part = _until_full(first, documents, most, most_bytes)
            write_documents(self._fresh / f"part-{number:05d}.parquet", part)
            number += 1

    def publish(self, report: Mapping[str, Any]) -> None:
        """Replaces the parts of earlier runs by the new ones. A run that is killed in between leaves a folder that says so."""
        old = self.own()
        new = sorted(self._fresh.glob("part-*.parquet"))
        write_json(self.folder / UNFINISHED, {**report, "files": {file.name: _hash(file) for file in new}})
        self._replace(old)

    def _replace(self, old: Iterable[Path]) -> None:
        for file in old:
            file.unlink()
        for file in sorted(self._fresh.glob("part-*.parquet")):
            file.replace(self.folder / file.name)
        flush(self.folder)
        (self.folder / UNFINISHED).replace(self.folder / REPORT)
        self._fresh.rmdir()
        flush(self.folder)


def _until_full(first: Document, rest: Iterator[Document], most: int, most_bytes: int) -> Iterator[Document]:
    """``first`` and what follows it, until one file is full."""
    count, size = 1, size_of(first)
    yield first
    while count < most and size < most_bytes and (document := next(rest, None)) is not None:
        yield document
        count, size = count + 1, size + size_of(document)
