"""Builds the three splits with a pool of processes; item (source, split, i) always gets the same random numbers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alhena.content import Document, to_row, from_row, write_documents
from alhena.corpus.starter import charts, clips, digits, drawing, pages, prose, scenes, voices, words
from alhena.corpus.starter.splits import SPLITS, Split

Make = Callable[[np.random.Generator, Split, int], Document]
SOURCES: dict[str, Make] = {
    "scenes": scenes.make,
    "digits": digits.make,
    "ocr": words.make,
    "charts": charts.make,
    "speech": voices.make_speech,
    "video": clips.make,
    "spoken": voices.make_spoken,
    "drawing": drawing.make,
    "retrieval": prose.make_retrieval,
    "translation": prose.make_translation,
    "names": prose.make_names,
    "text": prose.make_text,
    "code": prose.make_code,
    "pages": pages.make,
}
TRAIN_ONLY = ("names", "pages")
TASKS_OF = {"scenes": 4, "charts": 3, "video": 4, "drawing": 2, "speech": 2}  # report rows, or languages, that share a source's items
BATCH = 100

_TRAIN: Mapping[str, int] = {
    "scenes": 6000, "digits": 4000, "ocr": 6000, "charts": 2500, "speech": 7000, "video": 4000, "spoken": 4000, "drawing": 5000,
    "retrieval": 3000, "translation": 3000, "names": 500, "text": 1200, "code": 800, "pages": 800,
}  # fmt: skip


@dataclass(frozen=True)
class Starter:
    """How much to build: training documents by source, and items a task in the other splits."""

    train: Mapping[str, int] = field(default_factory=lambda: _TRAIN)
    test: int = 100
    validation: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.train:
            if name not in SOURCES:
                raise ValueError(f"the starter corpus has no source {name!r}; it has {', '.join(SOURCES)}")

    def count(self, source: str, split: Split) -> int:
        if split == "train":
            return self.train.get(source, 0)
        if source in TRAIN_ONLY and split == "test":
            return 0
        return (self.test if split == "test" else self.validation) * TASKS_OF.get(source, 1)


def _batch(job: tuple[str, Split, int, int, int]) -> list[Document]:
    source, split, first, last, seed = job
    place = list(SOURCES).index(source)
    out = []
    for i in range(first, last):
        rng = np.random.default_rng([seed, place, SPLITS.index(split), i])
        out.append(replace(SOURCES[source](rng, split, i), id=f"{source}-{split}-{i:06d}"))
    return out


def _jobs(settings: Starter, split: Split) -> Iterator[tuple[str, Split, int, int, int]]:
    for source in SOURCES:
        total = settings.count(source, split)
        for first in range(0, total, BATCH):
            yield source, split, first, min(first + BATCH, total), settings.seed


def build(folder: Path, settings: Starter, workers: int = 2) -> dict[str, dict[str, int]]:
    """Writes ``train``, ``validation`` and ``test.parquet`` and ``samples.png``; returns documents by split and source.

    The same settings give the same documents whatever the number of workers.
    """
    from alhena.corpus.starter.sheet import contact_sheet

    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, Progress(*columns) as progress:
        for split in SPLITS:
            jobs = list(_jobs(settings, split))
            bar = progress.add_task(f"starter corpus, {split}", total=sum(last - first for _, _, first, last, _ in jobs))

            def documents(jobs: list = jobs, split: Split = split, bar=bar) -> Iterator[Document]:
                for (source, *_), made in zip(jobs, pool.map(_batch, jobs), strict=True):
                    progress.update(bar, advance=len(made), description=f"starter corpus, {split} {source}")
                    counts[split][source] = counts[split].get(source, 0) + len(made)
                    yield from made

            write_documents(folder / f"{split}.parquet", documents())
            progress.update(bar, description=f"starter corpus, {split}")
    contact_sheet(folder / "samples.png", settings.seed)
    return counts
