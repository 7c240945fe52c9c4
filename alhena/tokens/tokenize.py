"""The tokenize stage: learn the text pieces from a sample of the whole corpus, then encode every split.

curated/train ─ sample ─► tokenizer.model, coverage.json, coverage.png
curated/SPLIT ─ encode in parallel ─► SPLIT/SOURCE.arrow, and a count of what was dropped and why

Both are streams: what is in memory is a sample of bounded size, or the documents under way, whatever the size of the corpus.
"""

from __future__ import annotations

import heapq
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from alhena import plots
from alhena.batch import Example
from alhena.content import Document, Image, Text, read_documents
from alhena.media import decode_image
from alhena.pools import map_bounded
from alhena.processes import end_with_parent
from alhena.tokens import tokenizer
from alhena.tokens.encode import Codes, Encoder, ImageCodeEncoder
from alhena.tokens.images import resize
from alhena.tokens.store import ExampleWriter

T = TypeVar("T")
JOB, JOB_BYTES = 64, 16 << 20  # documents that a worker encodes in one go, and the most bytes of them
WINDOW_PICTURES, WINDOW_BYTES = 256, 64 << 20  # documents whose generated pictures get their codes in one go
WAITING_BYTES = 256 << 20  # of encoded examples that wait for their files
PICTURE_BYTES, SCENES = 64 << 20, 1000  # decoded pictures that train the image tokenizer; of scenes a number
MOST_PIXELS = 512 * 512  # of a picture that trains the image tokenizer; a larger one is scaled down
MOST_REASONS = 100  # reasons for dropped documents that are told apart


def thinned(items: Iterable[T], size: Callable[[T], int], most: int, seed: int) -> list[T]:
    """A uniform sample of a stream, in its order, of a total size of at most ``most``: all of it when that fits.

    Each item draws a random number; the smallest ones stay. Only the sample is held. An item larger than ``most`` is left out.
    """
    rng, kept, total, limit = np.random.default_rng(seed), list[tuple[float, int, T]](), 0, 1.0
    for number, item in enumerate(items):
        drawn = float(rng.random())
        if drawn >= limit or size(item) > most:
            continue
        heapq.heappush(kept, (-drawn, number, item))
        total += size(item)
        while total > most:
            largest, _, gone = heapq.heappop(kept)
            total, limit = total - size(gone), -largest
    return [item for _, _, item in sorted(kept, key=lambda entry: entry[1])]


def sample_texts(curated: Path, max_characters: int, seed: int) -> list[tuple[str, str]]:
    """(language, text) of every text part, thinned evenly over the whole corpus to at most ``most_characters``."""
    texts = (
        (document.language, part.text[:max_characters])
        for document in read_documents(curated)
        for part in document.parts
        if isinstance(part, Text)
    )
    return thinned(texts, lambda item: len(item[1]), max_characters, seed)


def learn_text(curated: Path, size: int, max_characters: int = 3_000_000, seed: int = 0) -> tokenizer.TextTokenizer:
    """Text pieces from a sample of all training text."""
    return tokenizer.TextTokenizer.from_bytes(
        tokenizer.train((t for _, t in sample_texts(curated, max_characters, seed)), size)
    )


def plot_coverage(path: Path, rates: dict[str, float]) -> None:
    """Bars of tokens per character by language; lower is better served."""
    names = sorted(rates, key=rates.get)  # type: ignore[arg-type]
    figure = plots.figure(7, 0.28 * len(names) + 1)
    axes = figure.subplots()
    bars = axes.barh(names, [rates[n] for n in names], color=plots.BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlabel("tokens per character (one byte-fallback character of three bytes costs 3)")
    plots.hide_spines(axes)
    plots.save(figure, path)


def _pixels(image: Image) -> np.ndarray | None:
    """A picture, scaled down to MOST_PIXELS; None when it cannot be decoded (encoding drops and counts its document)."""
    try:
        pixels = decode_image(image.data)
    except ValueError:
        return None
    height, width = pixels.shape[:2]
    scale = min(1.0, (MOST_PIXELS / (height * width)) ** 0.5)
    return resize(pixels, max(1, int(height * scale)), max(1, int(width * scale))) if scale < 1 else pixels


def sample_pictures(curated: Path, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures to train the image tokenizer on: those of model turns, thinned to PICTURE_BYTES, and the first of ``scenes``."""
    scenes: list[np.ndarray] = []

    def generated() -> Iterator[np.ndarray]:
        for document in read_documents(curated):
            for content in document.contents:
                is_target = content.role == "model"
                if not is_target and (document.source != "scenes" or len(scenes) >= SCENES):
                    continue
                found = (_pixels(part) for part in content.parts if isinstance(part, Image))
                pictures = [pixels for pixels in found if pixels is not None]
                if is_target:
                    yield from pictures
                else:
                    scenes.extend(pictures)

    return thinned(generated(), lambda pixels: pixels.nbytes, PICTURE_BYTES, seed), scenes


def _generated(document: Document) -> list[bytes]:
    """The pictures of a document that the model is to generate."""
    return [p.data for c in document.contents if c.role == "model" for p in c.parts if isinstance(p, Image)]


def _size(document: Document) -> int:
    """Bytes of a document, nearly."""
    return 1000 + sum(len(part.text) if isinstance(part, Text) else len(part.data) for part in document.parts)


def _without_condition(document: Document) -> Document:
    """The same drawing asked for by nothing: what classifier-free guidance compares with."""
    return replace(document, contents=tuple(replace(c, parts=()) if c.role == "user" else c for c in document.contents))


def _groups(documents: Iterable[Document], is_full: Callable[[list[Document], int], bool]) -> Iterator[list[Document]]:
    """Documents in groups; ``is_full`` is asked of a group and its bytes after each document."""
    some, size = list[Document](), 0
    for document in documents:
        some.append(document)
        size += _size(document)
        if is_full(some, size):
            yield some
            some, size = [], 0
    if some:
        yield some


def _windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of a bounded number of generated pictures and of bytes."""
    pictures = 0

    def is_full(some: list[Document], size: int) -> bool:
        nonlocal pictures
        pictures += len(_generated(some[-1]))
        full = pictures >= WINDOW_PICTURES or size >= WINDOW_BYTES
        pictures = 0 if full else pictures
        return full

    return _groups(documents, is_full)


def _image_codes(documents: Iterable[Document], encoder: Encoder, draw: ImageCodeEncoder) -> dict[bytes, Codes]:
    """Codes of every picture to be generated, computed together. One that cannot be decoded has none."""
    pixels: dict[bytes, np.ndarray] = {}
    for data in sorted({data for document in documents for data in _generated(document)}):
        try:
            pixels[data] = encoder.output_image_pixels(data)
        except ValueError:
            continue
    return dict(zip(pixels, draw(list(pixels.values())), strict=True)) if pixels else {}


@dataclass(frozen=True)
class Encoding:
    """How a split is encoded. Running text is split at ``window`` tokens; a document of another kind may have ``most_tokens``."""

    tokenizers: Path
    max_tokens: int
    window: int | None = None  # None: most_tokens
    condition_dropout: float = 0.0  # share of generated pictures without a request, for classifier-free guidance
    workers: int = 2


@dataclass(frozen=True)
class _Job:
    how: Encoding
    documents: list[Document]
    codes: Mapping[bytes, Codes]


def _jobs(curated: Path, how: Encoding, encoder: Encoder, draw: ImageCodeEncoder | None) -> Iterator[_Job]:
    rng = np.random.default_rng(0)
    for window in _windows(read_documents(curated)):
        codes = _image_codes(window, encoder, draw) if draw else {}
        asked = (_without_condition(d) if _generated(d) and rng.random() < how.condition_dropout else d for d in window)
        for some in _groups(asked, lambda some, size: len(some) == JOB or size >= JOB_BYTES):
            needed = {data for document in some for data in _generated(document)}
            yield _Job(how, some, {data: codes[data] for data in needed if data in codes})


_encoders: dict[Path, Encoder] = {}


@dataclass(frozen=True)
class _Result:
    """What became of a document: its Examples, or the reason why it has none; and what of its media could not be read."""

    source: str
    made: list[Example] | str
    notes: list[str]


def _encode(job: _Job) -> list[_Result]:
    folder, out = job.how.tokenizers, list[_Result]()
    if folder not in _encoders:
        _encoders[folder] = Encoder.load(folder)
    for document in job.documents:
        notes: list[str] = []
        made: list[Example] | str
        try:
            made = _encoders[folder].encode(document, job.how.max_tokens, job.codes, job.how.window, notes)
        except ValueError as error:
            made = str(error)
        out.append(_Result(document.source, made, notes))
    return out


def count_documents(folder: Path) -> int:
    return sum(pq.ParquetFile(file).metadata.num_rows for file in sorted(folder.glob("*.parquet")))


def _count(counts: Counter[str], reason: str) -> None:
    """Counts a reason; of very many different ones only the first are told apart."""
    counts[reason if reason in counts or len(counts) < MOST_REASONS else "other reasons"] += 1


@dataclass
class _Files:
    """The files of a split, one a source, what was dropped with its reason, and what was used in part."""

    folder: Path
    inner: dict[str, tuple[int, ...]]
    stack: ExitStack
    writers: dict[str, ExampleWriter] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, result: _Result) -> None:
        source, made = result.source, result.made
        if not isinstance(made, str) and not re.fullmatch(r"[\w-]{1,64}", source):
            source, made = "?", "the source names a file: letters, digits, - and _ only"
        if isinstance(made, str):
            _count(self.dropped, f"{source}: {made}")
            return
        for note in result.notes:
            _count(self.notes, f"{source}: {note}")
        if source not in self.writers:
            self.writers[source] = self.stack.enter_context(ExampleWriter(self.folder / f"{source}.arrow", self.inner))
        for example in made:
            self.writers[source].add(example)

    def limit_memory(self) -> None:
        while sum(writer.waiting for writer in self.writers.values()) > WAITING_BYTES:
            max(self.writers.values(), key=lambda writer: writer.waiting).flush()

    def report(self) -> dict[str, Any]:
        counts = {name: {"examples": w.examples, "tokens": w.tokens} for name, w in sorted(self.writers.items())}
        return {"sources": counts, "dropped": dict(self.dropped), "used_in_part": dict(self.notes)}


def encode_split(
    curated: Path,
    out: Path,
    how: Encoding,
    draw: ImageCodeEncoder | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Encodes a split to one Arrow file a source; returns examples and tokens by source, and what was dropped with its reason.

    ``advance`` is told how many documents were done (a progress bar's update).
    """
    encoder = Encoder.load(how.tokenizers)
    inner = {"patches": (encoder.vision.patch_values,), "frames": (encoder.audio.chunk, encoder.audio.mels)}
    context = multiprocessing.get_context("forkserver")
    with ExitStack() as stack, ProcessPoolExecutor(how.workers, context, initializer=end_with_parent) as pool:
        files = _Files(out, inner, stack)
        for results in map_bounded(pool, _encode, _jobs(curated, how, encoder, draw), 4 * how.workers):
            for result in results:
                files.add(result)
            files.limit_memory()
            advance(len(results))
    return files.report()
