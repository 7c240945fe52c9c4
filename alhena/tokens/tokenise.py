"""The tokenise stage: learn the text pieces from a sample of the whole corpus, then encode every split.

curated/train ─ sample ─► text.model, coverage.json, coverage.png
curated/SPLIT ─ encode in parallel ─► SPLIT/SOURCE.arrow, and a count of what was dropped and why
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alhena.content import Document, Image, Text, read_documents
from alhena.pools import bounded
from alhena.tokens import text
from alhena.tokens.batch import Example
from alhena.tokens.encode import Codes, Draw, Encoder
from alhena.tokens.store import Writer

BATCH = 64


def sample_texts(curated: Path, most_characters: int, seed: int) -> list[tuple[str, str]]:
    """(language, text) of every text part, thinned evenly over the whole corpus to at most ``most_characters``."""
    texts = [
        (document.language, part.text)
        for document in read_documents(curated)
        for part in document.parts
        if isinstance(part, Text)
    ]
    order, out, total = np.random.default_rng(seed).permutation(len(texts)), [], 0
    for k in order:
        if total + len(texts[k][1]) <= most_characters:
            out.append(texts[k])
            total += len(texts[k][1])
    return out


def learn_text(curated: Path, size: int, most_characters: int = 3_000_000, seed: int = 0) -> text.TextPieces:
    """Text pieces from a sample of all training text."""
    return text.TextPieces.from_bytes(text.train((t for _, t in sample_texts(curated, most_characters, seed)), size))


def draw_coverage(path: Path, rates: dict[str, float]) -> None:
    """Bars of tokens per character by language; lower is better served."""
    names = sorted(rates, key=rates.get)  # type: ignore[arg-type]
    figure = Figure(figsize=(7, 0.28 * len(names) + 1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(names, [rates[n] for n in names], color="#2a6f97")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlabel("tokens per character (one byte-fallback character of three bytes costs 3)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def image_codes(curated: Path, encoder: Encoder, draw: Draw) -> dict[bytes, Codes]:
    """Codes of every picture that a model turn draws, computed in batches, by the picture's bytes."""
    data = {
        p.data
        for d in read_documents(curated)
        for c in d.contents
        if c.role == "model"
        for p in c.parts
        if isinstance(p, Image)
    }
    ordered = sorted(data)
    return dict(zip(ordered, draw([encoder.drawn_pixels(item) for item in ordered]), strict=True))


@dataclass(frozen=True)
class _Worker:
    encoder_folder: Path
    most_tokens: int


_encoders: dict[Path, Encoder] = {}


def _encode(job: tuple[_Worker, list[Document], dict[bytes, Codes]]) -> list[tuple[str, list[Example] | str]]:
    worker, documents, codes = job
    if worker.encoder_folder not in _encoders:
        _encoders[worker.encoder_folder] = Encoder.load(worker.encoder_folder)
    out: list[tuple[str, list[Example] | str]] = []
    for document in documents:
        try:
            made = _encoders[worker.encoder_folder].encode(document, worker.most_tokens, codes=codes)
            out.append((document.source, made))
        except ValueError as error:
            out.append((document.source, str(error)))
    return out


def _without_condition(document: Document) -> Document:
    """The same drawing asked for by nothing: what classifier-free guidance compares with."""
    return replace(document, contents=tuple(replace(c, parts=()) if c.role == "user" else c for c in document.contents))


def _jobs(
    curated: Path, worker: _Worker, codes: dict[bytes, Codes], drop: float
) -> Iterator[tuple[_Worker, list[Document], dict[bytes, Codes]]]:
    rng, some = np.random.default_rng(0), []
    for document in read_documents(curated):
        drawn = [p.data for c in document.contents if c.role == "model" for p in c.parts if isinstance(p, Image)]
        some.append(_without_condition(document) if drawn and rng.random() < drop else document)
        if len(some) == BATCH:
            yield worker, some, _needed(some, codes)
            some = []
    if some:
        yield worker, some, _needed(some, codes)


def _needed(documents: list[Document], codes: dict[bytes, Codes]) -> dict[bytes, Codes]:
    return {p.data: codes[p.data] for d in documents for p in d.parts if isinstance(p, Image) and p.data in codes}


def count_documents(folder: Path) -> int:
    return sum(pq.ParquetFile(file).metadata.num_rows for file in sorted(folder.glob("*.parquet")))


def encode_split(
    curated: Path,
    out: Path,
    encoder_folder: Path,
    most_tokens: int,
    draw: Draw | None = None,
    drop_condition: float = 0.0,
    workers: int = 2,
    advance=lambda documents: None,
) -> dict[str, object]:
    """Encodes a split to one Arrow file a source; returns examples and tokens by source, and what was dropped with its reason.

    ``advance`` is told how many documents were done (a progress bar's update).
    """
    encoder = Encoder.load(encoder_folder)
    codes = image_codes(curated, encoder, draw) if draw else {}
    worker = _Worker(encoder_folder, most_tokens)
    inner = {"patches": (encoder.vision.patch_values,), "frames": (encoder.audio.chunk, encoder.audio.mels)}
    writers: dict[str, Writer] = {}
    dropped: Counter[str] = Counter()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for results in bounded(pool, _encode, _jobs(curated, worker, codes, drop_condition), 4 * workers):
            for source, result in results:
                if isinstance(result, str):
                    dropped[f"{source}: {result}"] += 1
                    continue
                if source not in writers:
                    writers[source] = Writer(out / f"{source}.arrow", inner)
                for example in result:
                    writers[source].add(example)
            advance(len(results))
    for writer in writers.values():
        writer.close()
    counts = {name: {"examples": w.examples, "tokens": w.tokens} for name, w in sorted(writers.items())}
    return {"sources": counts, "dropped": dict(dropped)}
