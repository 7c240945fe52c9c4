"""The starter corpus: real and synthetic documents of every modality with their ground truth, made offline.

    Starter(seed=0)  ──  build  ──►  raw/train.parquet         86,000 documents, several questions to each image
                                     raw/validation.parquet    40 of each task, one question each
                                     raw/test.parquet          100 of each task, combinations absent from training
                                     raw/samples.png           a few test items of each task

    splits.py            what is held out for the test split, and why
    items.py             ItemSpec: one item to make, with its own random generator
    text/                prose and code of Python's standard library, the same with exchanged words, CLDR's names in thirteen languages,
                         key-value retrieval, tools, reasoning
    images/              handwritten digits; drawn shapes, scenes, charts and words; requests for image generation
    audio/               synthetic speech in four languages, spoken questions
    video/               clips of moving shapes and digits
    interleaved.py       pages that mix all of them
    needles.py           a spoken number in a long recording, a digit in one of many frames

Every item has its own random generator, so neither the number of workers nor the size of another source changes it.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress, TaskID

from alhena.content import Document
from alhena.corpus.starter import interleaved, needles, sample_page
from alhena.corpus.starter.audio import speech, synthesis
from alhena.corpus.starter.images import charts, digits, generation, rendered_words, scenes
from alhena.corpus.starter.items import Factory, ItemSpec
from alhena.corpus.starter.splits import SPLITS, Split
from alhena.corpus.starter.text import (
    long_retrieval,
    multilingual_names,
    prose_and_code,
    reasoning,
    renamed,
    retrieval,
    tools,
)
from alhena.corpus.starter.video import clips
from alhena.documents import write_documents
from alhena.processes import end_with_parent
from alhena.progress import progress_bar

FACTORIES: Mapping[str, Factory] = {
    "figures": scenes.make_figure,
    "relations": scenes.make_relation,
    "scenes": scenes.make,
    "digits": digits.make,
    "ocr": rendered_words.make,
    "charts": charts.make,
    "speech": speech.make_speech,
    "spoken": speech.make_spoken,
    "video": clips.make,
    "translation": multilingual_names.make_translation,
    "names": multilingual_names.make_names,
    "text": prose_and_code.make,
    "code": prose_and_code.make,
    "retrieval": retrieval.make,
    "drawing": generation.make,
    "pages": interleaved.make,
    "tools": tools.make,
    "reasoning": reasoning.make,
    "modules": prose_and_code.make_module,
    "renamed": renamed.make,
    "needles": needles.make,
    **dict.fromkeys(long_retrieval.LENGTHS, long_retrieval.make),
}
TASKS = (
    "text", "code", "translation", "digits", "scenes/colour", "scenes/shape", "scenes/find", "scenes/count", "scenes/relation", "ocr",
    "charts/highest", "charts/lowest", "charts/value", "speech", "video/direction", "video/what", "video/count",
    "video/order", "spoken", "retrieval", "drawing/shape", "drawing/digit", "tools/call", "tools/answer",
    "tools/none", "tools/json", "reasoning/answer", "reasoning/steps", "reasoning/longer", *long_retrieval.LENGTHS,
)  # fmt: skip
TRAIN = {
    "figures": 10000, "relations": 5000, "scenes": 8000, "digits": 4000, "ocr": 6000, "charts": 6000, "speech": 6000,
    "spoken": 4000, "video": 4000, "translation": 2500, "names": 500, "text": 1000, "code": 600, "retrieval": 5000,
    "drawing": 3000, "pages": 500, "tools": 10000, "reasoning": 8000, "needles": 1500, "retrieval_1k": 1000,
}  # fmt: skip
ITEMS_PER_JOB = 100


@dataclass(frozen=True)
class Starter:
    """Number of training documents of each source, and number of items of each task in the other splits."""

    train: Mapping[str, int] = field(default_factory=lambda: TRAIN)
    test: int = 100
    validation: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for source in self.train:
            if source not in FACTORIES:
                raise ValueError(f"the starter corpus has no source {source!r}; it has {', '.join(FACTORIES)}")

    def counts(self, split: Split) -> dict[str, int]:
        """Number of documents by source (training), or by task of these sources (validation and test)."""
        if split == "train":
            return dict(self.train)
        # The needles of an evaluation are made for its models (alhena/evaluate/context/).
        tasks = TASKS if split == "test" else (*TASKS, "pages", "needles")
        number = self.test if split == "test" else self.validation
        return {task: number for task in tasks if task.split("/")[0] in self.train}


@dataclass(frozen=True)
class Job:
    """Consecutive items ``start`` to ``stop`` of one task, made by one worker from a fresh state."""

    task: str
    split: Split
    start: int
    stop: int
    seed: int


def make_job(job: Job) -> list[Document]:
    """The documents of a job; runs in a worker process."""
    synthesis.unload()
    specs = [ItemSpec(job.task, job.split, index, job.seed) for index in range(job.start, job.stop)]
    return [FACTORIES[spec.source](spec) for spec in specs]


def _jobs(settings: Starter, split: Split) -> list[Job]:
    return [
        Job(task, split, start, min(start + ITEMS_PER_JOB, count), settings.seed)
        for task, count in settings.counts(split).items()
        for start in range(0, count, ITEMS_PER_JOB)
    ]


def _results(
    jobs: list[Job], pool: ProcessPoolExecutor | None, max_pending: int
) -> Iterator[tuple[Job, list[Document]]]:
    """Jobs with their documents, in order; at most ``max_pending`` jobs are in progress or wait to be consumed."""
    if pool is None:
        yield from ((job, make_job(job)) for job in jobs)
        return
    pending: deque[tuple[Job, Future[list[Document]]]] = deque()
    for job in jobs:
        pending.append((job, pool.submit(make_job, job)))
        if len(pending) >= max_pending:
            first, future = pending.popleft()
            yield first, future.result()
    for first, future in pending:
        yield first, future.result()


class _Counts:
    """Passes documents on; counts them, updates the progress bars, and retains a few for the sample page."""

    def __init__(self, settings: Starter, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        self.bars: dict[str, TaskID] = {}
        self.counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self.samples: dict[str, list[Document]] = {}

    def _bar(self, job: Job) -> TaskID:
        total = self.settings.counts(job.split)
        train = job.split == "train"
        name = f"train {job.task}" if train else job.split
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, total=total[job.task] if train else sum(total.values()))
        return self.bars[name]

    def __call__(self, results: Iterable[tuple[Job, list[Document]]]) -> Iterator[Document]:
        for job, documents in results:
            yield from documents
            self.counts[job.split][job.task] += len(documents)
            self.progress.update(self._bar(job), advance=len(documents))
            if job.split == "test" or job.task == "pages":
                self.samples.setdefault(job.task, []).extend(documents[: sample_page.ITEMS_PER_TASK])


def build(folder: Path, settings: Starter, workers: int = 2) -> dict[str, dict[str, int]]:
    """Writes the corpus to ``folder``; returns the number of documents by split and task.

    With ``workers`` of 1 everything runs in this process. Each file is complete or absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent) if workers > 1 else None
    try:
        with progress_bar() as progress:
            counts = _Counts(settings, progress)
            for split in reversed(SPLITS):
                results = _results(_jobs(settings, split), pool, max_pending=3 * workers)
                write_documents(folder / f"{split}.parquet", counts(results))
        sample_page.write_sample_page(folder / "samples.png", counts.samples)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return {split: dict(counts.counts[split]) for split in SPLITS}
