"""The starter corpus: real and drawn documents of every kind, made on this machine, offline, with its ground truth.

    Starter(seed=0)  ──  build  ──►  raw/train.parquet         66,000 documents, several questions to each picture
                                     raw/validation.parquet    40 of each task, one question each
                                     raw/test.parquet          100 of each task, combinations never seen in training
                                     raw/samples.png           a few of each, to look at

Real: the prose and code of Python's standard library, CLDR's names in thirteen languages, handwritten digits. Drawn or
spoken by machine: scenes, words, charts, clips, numbers in four languages, pages that mix them. ``splits.py`` says what
the test holds and why. Every item comes from its own random generator, so neither the number of workers nor the size of
another source changes it.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress, TaskID

from alhena.content import Document, write_documents
from alhena.corpus.starter import (
    charts,
    clips,
    digits,
    drawing,
    names,
    pages,
    retrieval,
    scenes,
    sheet,
    speech,
    text,
    voices,
    words,
)
from alhena.corpus.starter.items import Maker, Order
from alhena.corpus.starter.splits import SPLITS, Split
from alhena.processes import end_with_parent
from alhena.progress import progress_bar

MAKERS: Mapping[str, Maker] = {
    "figures": scenes.make_figure,
    "relations": scenes.make_relation,
    "scenes": scenes.make,
    "digits": digits.make,
    "ocr": words.make,
    "charts": charts.make,
    "speech": speech.make_speech,
    "spoken": speech.make_spoken,
    "video": clips.make,
    "translation": names.make_translation,
    "names": names.make_names,
    "text": text.make,
    "code": text.make,
    "retrieval": retrieval.make,
    "drawing": drawing.make,
    "pages": pages.make,
}
TASKS = (
    "text", "code", "translation", "digits", "scenes/colour", "scenes/shape", "scenes/find", "scenes/count", "scenes/relation", "ocr",
    "charts/highest", "charts/lowest", "charts/value", "speech", "video/direction", "video/what", "video/count",
    "video/order", "spoken", "retrieval", "drawing/shape", "drawing/digit",
)  # fmt: skip
JOB = 100  # items made in one go by one worker


TRAIN = {
    "figures": 10000, "relations": 5000, "scenes": 8000, "digits": 4000, "ocr": 6000, "charts": 6000, "speech": 6000,
    "spoken": 4000, "video": 4000, "translation": 2500, "names": 500, "text": 1000, "code": 600, "retrieval": 5000,
    "drawing": 3000, "pages": 500,
}  # fmt: skip


@dataclass(frozen=True)
class Starter:
    """How many training documents of each source, and how many items of each task in the other splits."""

    train: Mapping[str, int] = field(default_factory=lambda: TRAIN)
    test: int = 100
    validation: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for source in self.train:
            if source not in MAKERS:
                raise ValueError(f"the starter corpus has no source {source!r}; it has {', '.join(MAKERS)}")

    def counts(self, split: Split) -> dict[str, int]:
        """Documents to make, by source in training and by task elsewhere."""
        if split == "train":
            return dict(self.train)
        return dict.fromkeys(TASKS, self.test) if split == "test" else dict.fromkeys((*TASKS, "pages"), self.validation)


@dataclass(frozen=True)
class Job:
    """Some consecutive items of one task, made by one worker from a fresh start."""

    task: str
    split: Split
    start: int
    stop: int
    seed: int


def make_job(job: Job) -> list[Document]:
    """Runs in a worker process."""
    voices.restart()
    orders = [Order(job.task, job.split, index, job.seed) for index in range(job.start, job.stop)]
    return [MAKERS[order.source](order) for order in orders]


def _jobs(settings: Starter, split: Split) -> list[Job]:
    return [
        Job(task, split, start, min(start + JOB, count), settings.seed)
        for task, count in settings.counts(split).items()
        for start in range(0, count, JOB)
    ]


def _made(jobs: list[Job], pool: ProcessPoolExecutor | None, ahead: int) -> Iterator[tuple[Job, list[Document]]]:
    """The jobs' documents in the jobs' order, with a bounded number of jobs made ahead."""
    if pool is None:
        yield from ((job, make_job(job)) for job in jobs)
        return
    waiting: deque[tuple[Job, Future[list[Document]]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(make_job, job)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


class _Watch:
    """Sees every job's documents pass: moves the bars, counts, and keeps a few for the contact sheet."""

    def __init__(self, settings: Starter, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        self.bars: dict[str, TaskID] = {}
        self.counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self.examples: dict[str, list[Document]] = {}

    def _bar(self, job: Job) -> TaskID:
        total = self.settings.counts(job.split)
        train = job.split == "train"
        name = f"train {job.task}" if train else job.split
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, total=total[job.task] if train else sum(total.values()))
        return self.bars[name]

    def __call__(self, made: Iterable[tuple[Job, list[Document]]]) -> Iterator[Document]:
        for job, documents in made:
            yield from documents
            self.counts[job.split][job.task] += len(documents)
            self.progress.update(self._bar(job), advance=len(documents))
            if job.split == "test" or job.task == "pages":
                self.examples.setdefault(job.task, []).extend(documents[: sheet.PER_TASK])


def build(folder: Path, settings: Starter, workers: int = 2) -> dict[str, dict[str, int]]:
    """Makes the corpus in ``folder`` and returns the number of documents by split and task.

    With ``workers`` of 1 everything happens in this process. Files appear whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent) if workers > 1 else None
    try:
        with progress_bar() as progress:
            watch = _Watch(settings, progress)
            for split in reversed(SPLITS):
                made = _made(_jobs(settings, split), pool, ahead=3 * workers)
                write_documents(folder / f"{split}.parquet", watch(made))
        sheet.write_sheet(folder / "samples.png", watch.examples)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return {split: dict(watch.counts[split]) for split in SPLITS}
