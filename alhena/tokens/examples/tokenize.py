"""The tokenize stage: train the text tokenizer on a sample of the corpus, then encode every split.

curated/train ─ sample ─► text.model, coverage.json, coverage.png
curated/SPLIT ─ encode in parallel ─► SPLIT/SOURCE.arrow, and the number of dropped documents by reason

Both are streams. Memory holds a sample of bounded size or the documents in flight, whatever the size of the corpus.
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
from alhena.content import Document, Image, Text, part_size
from alhena.documents import read_documents
from alhena.media import decode_image, limit_memory
from alhena.pools import map_bounded
from alhena.processes import end_with_parent
from alhena.tokens.encode import Codes, Encoder, ImageCodeEncoder
from alhena.tokens.encoders import load_encoder
from alhena.tokens.examples.store import ExampleWriter
from alhena.tokens.gemma_encoder import GemmaEncoder
from alhena.tokens.images import Pixels, resize
from alhena.tokens.text import tokenizer

T = TypeVar("T")
# Documents and bytes of one job of a worker, at most.
JOB_DOCUMENTS, JOB_BYTES = 64, 16 << 20
# Output images and bytes of the documents whose image codes are computed together.
WINDOW_IMAGES, WINDOW_BYTES = 256, 64 << 20
# Of encoded examples that are buffered for their files.
BUFFERED_BYTES = 256 << 20
# Decoded images, and the number of scenes, that train the image tokenizer.
SAMPLE_BYTES, SAMPLE_SCENES = 64 << 20, 1000
# Of an image that trains the image tokenizer; a larger one is scaled down.
MAX_PIXELS = 512 * 512
# Reasons for dropped documents that are counted separately.
MAX_REASONS = 100
# Bytes that an encoding worker may allocate: one large video or audio item at a time, and the documents of its job.
WORKER_MEMORY = 4 << 30


def uniform_sample(items: Iterable[T], size: Callable[[T], int], max_size: int, seed: int) -> list[T]:
    """A uniform sample of a stream, in its order, of a total size of at most ``max_size``: all of it when that fits.

    Each item gets a random number; those with the smallest numbers form the sample, and only they are held in memory. An item
    larger than ``max_size`` is left out.
    """
    rng, sample, total, limit = np.random.default_rng(seed), list[tuple[float, int, T]](), 0, 1.0
    for index, item in enumerate(items):
        key = float(rng.random())
        if key >= limit or size(item) > max_size:
            continue
        heapq.heappush(sample, (-key, index, item))
        total += size(item)
        while total > max_size:
            largest, _, removed = heapq.heappop(sample)
            total, limit = total - size(removed), -largest
    return [item for _, _, item in sorted(sample, key=lambda entry: entry[1])]


def sample_texts(curated: Path, max_characters: int, seed: int) -> list[tuple[str, str]]:
    """(language, text) of text parts in random order, drawn uniformly from the corpus while they fit into ``max_characters``.

    The corpus is read twice, first for the lengths of the texts: memory holds those, and the sample.
    """

    def texts() -> Iterator[tuple[str, str]]:
        for document in read_documents(curated):
            for part in document.parts:
                if isinstance(part, Text):
                    yield document.language, part.text[:max_characters]

    lengths = np.fromiter((len(text) for _, text in texts()), np.int64)
    position, total = dict[int, int](), 0
    for index in np.random.default_rng(seed).permutation(len(lengths)):
        if total + lengths[index] <= max_characters:
            position[int(index)] = len(position)
            total += lengths[index]
    sample = [(position[index], item) for index, item in enumerate(texts()) if index in position]
    return [item for _, item in sorted(sample, key=lambda entry: entry[0])]


def train_text_tokenizer(
    curated: Path, size: int, max_characters: int = 3_000_000, seed: int = 0
) -> tokenizer.TextTokenizer:
    """A text tokenizer of at most ``size`` tokens, trained on a sample of all training text."""
    texts = (text for _, text in sample_texts(curated, max_characters, seed))
    return tokenizer.TextTokenizer.from_bytes(tokenizer.train(texts, size))


def plot_coverage(path: Path, tokens_per_character: dict[str, float]) -> None:
    """Bars of tokens per character by language; lower is better."""
    names = sorted(tokens_per_character, key=lambda name: tokens_per_character[name])
    figure = plots.figure(7, 0.28 * len(names) + 1)
    axes = figure.subplots()
    bars = axes.barh(names, [tokens_per_character[name] for name in names], color=plots.BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlabel("tokens per character (one byte-fallback character of three bytes costs 3)")
    plots.hide_spines(axes)
    plots.save(figure, path)


def _pixels(image: Image) -> Pixels | None:
    """An image, scaled down to MAX_PIXELS; None when it cannot be decoded (encoding drops and counts its document)."""
    try:
        pixels = decode_image(image.data)
    except ValueError:
        return None
    height, width = pixels.shape[:2]
    scale = min(1.0, (MAX_PIXELS / (height * width)) ** 0.5)
    return resize(pixels, max(1, int(height * scale)), max(1, int(width * scale))) if scale < 1 else pixels


def sample_images(curated: Path, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images uint8 [h, w, 3] to train the image tokenizer: a sample of those in model turns, and the first of ``scenes``."""
    scenes: list[np.ndarray] = []

    def output_images() -> Iterator[np.ndarray]:
        for document in read_documents(curated):
            for content in document.contents:
                is_target = content.role == "model"
                if not is_target and (document.source != "scenes" or len(scenes) >= SAMPLE_SCENES):
                    continue
                decoded = (_pixels(part) for part in content.parts if isinstance(part, Image))
                images = [pixels for pixels in decoded if pixels is not None]
                if is_target:
                    yield from images
                else:
                    scenes.extend(images)

    return uniform_sample(output_images(), lambda pixels: pixels.nbytes, SAMPLE_BYTES, seed), scenes


def _output_images(document: Document) -> list[bytes]:
    """The images of a document that the model is to generate."""
    return [p.data for c in document.contents if c.role == "model" for p in c.parts if isinstance(p, Image)]


def _size(document: Document) -> int:
    """Approximate bytes of a document."""
    return 1000 + sum(map(part_size, document.parts))


def _without_condition(document: Document) -> Document:
    """The same output image with an empty prompt: the unconditional case of classifier-free guidance."""
    return replace(document, contents=tuple(replace(c, parts=()) if c.role == "user" else c for c in document.contents))


def _groups(documents: Iterable[Document], is_full: Callable[[list[Document], int], bool]) -> Iterator[list[Document]]:
    """Documents in groups; ``is_full`` is called with a group and its bytes after each document."""
    group, size = list[Document](), 0
    for document in documents:
        group.append(document)
        size += _size(document)
        if is_full(group, size):
            yield group
            group, size = [], 0
    if group:
        yield group


def _windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of a bounded number of output images and of bytes."""
    images = 0

    def is_full(group: list[Document], size: int) -> bool:
        nonlocal images
        images += len(_output_images(group[-1]))
        full = images >= WINDOW_IMAGES or size >= WINDOW_BYTES
        images = 0 if full else images
        return full

    return _groups(documents, is_full)


def _image_codes(
    documents: Iterable[Document], encoder: Encoder, encode_image_codes: ImageCodeEncoder
) -> dict[bytes, Codes]:
    """Codes of every output image, computed together, by the bytes of the image. One that cannot be decoded has none."""
    pixels: dict[bytes, np.ndarray] = {}
    for data in sorted({data for document in documents for data in _output_images(document)}):
        try:
            pixels[data] = encoder.output_image_pixels(data)
        except ValueError:
            continue
    return dict(zip(pixels, encode_image_codes(list(pixels.values())), strict=True)) if pixels else {}


@dataclass(frozen=True)
class Encoding:
    """Settings of the encoding of a split.

    Running text is split at ``window`` tokens (None: ``max_tokens``); a document of another kind may have ``max_tokens``.
    ``condition_dropout`` is the share of output images without a prompt, for classifier-free guidance.
    """

    tokenizers: Path
    max_tokens: int
    window: int | None = None
    condition_dropout: float = 0.0
    workers: int = 2


@dataclass(frozen=True)
class _Job:
    how: Encoding
    documents: list[Document]
    codes: Mapping[bytes, Codes]


def _jobs(
    curated: Path, how: Encoding, encoder: Encoder | GemmaEncoder, encode_image_codes: ImageCodeEncoder | None
) -> Iterator[_Job]:
    rng = np.random.default_rng(0)
    for window in _windows(read_documents(curated)):
        codes: dict[bytes, Codes] = {}
        # Imported models generate no images.
        if encode_image_codes and isinstance(encoder, Encoder):
            codes = _image_codes(window, encoder, encode_image_codes)
        documents = (
            _without_condition(d) if _output_images(d) and rng.random() < how.condition_dropout else d for d in window
        )
        for group in _groups(documents, lambda group, size: len(group) == JOB_DOCUMENTS or size >= JOB_BYTES):
            images = {data for document in group for data in _output_images(document)}
            yield _Job(how, group, {data: codes[data] for data in images if data in codes})


_encoders: dict[Path, Encoder | GemmaEncoder] = {}


@dataclass(frozen=True)
class _Result:
    """The Examples of a document, or the reason why it has none; ``notes`` tells which of its media could not be read in full."""

    source: str
    examples: list[Example] | str
    notes: list[str]


def _start_worker() -> None:
    """The ``initializer`` of the pool: a worker ends with its parent, and a decoder cannot exhaust the memory of the machine."""
    end_with_parent()
    limit_memory(WORKER_MEMORY)


def _encode(job: _Job) -> list[_Result]:
    folder, out = job.how.tokenizers, list[_Result]()
    if folder not in _encoders:
        _encoders[folder] = load_encoder(folder)
    for document in job.documents:
        notes: list[str] = []
        examples: list[Example] | str
        try:
            examples = _encoders[folder].encode(document, job.how.max_tokens, job.codes, job.how.window, notes)
        except ValueError as error:
            examples = str(error)
        except MemoryError:
            examples = f"encoding it takes more than {WORKER_MEMORY >> 30} GiB of memory"
        out.append(_Result(document.source, examples, notes))
    return out


def count_documents(folder: Path) -> int:
    return sum(pq.ParquetFile(file).metadata.num_rows for file in sorted(folder.glob("*.parquet")))


def _count(counts: Counter[str], reason: str) -> None:
    """Counts a reason; of many different ones only the first MAX_REASONS are counted separately."""
    counts[reason if reason in counts or len(counts) < MAX_REASONS else "other reasons"] += 1


@dataclass
class _Files:
    """The Arrow files of a split, one a source; documents that were dropped or used in part, by reason."""

    folder: Path
    inner_shapes: dict[str, tuple[int, ...]]
    frame_dtype: str
    stack: ExitStack
    writers: dict[str, ExampleWriter] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, result: _Result) -> None:
        source, examples = result.source, result.examples
        if not isinstance(examples, str) and not re.fullmatch(r"[\w-]{1,64}", source):
            source, examples = "?", "the source names a file: letters, digits, - and _ only"
        if isinstance(examples, str):
            _count(self.dropped, f"{source}: {examples}")
            return
        for note in result.notes:
            _count(self.notes, f"{source}: {note}")
        if source not in self.writers:
            path = self.folder / f"{source}.arrow"
            writer = ExampleWriter(path, self.inner_shapes, frame_dtype=self.frame_dtype)
            self.writers[source] = self.stack.enter_context(writer)
        for example in examples:
            self.writers[source].add(example)

    def flush_largest(self) -> None:
        """Flushes the fullest buffers until all together hold at most BUFFERED_BYTES."""
        while sum(writer.buffered_bytes for writer in self.writers.values()) > BUFFERED_BYTES:
            max(self.writers.values(), key=lambda writer: writer.buffered_bytes).flush()

    def report(self) -> dict[str, Any]:
        counts = {name: {"examples": w.examples, "tokens": w.tokens} for name, w in sorted(self.writers.items())}
        return {"sources": counts, "dropped": dict(self.dropped), "used_in_part": dict(self.notes)}


def encode_split(
    curated: Path,
    out: Path,
    how: Encoding,
    encode_image_codes: ImageCodeEncoder | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Encodes a split to one Arrow file a source.

    Returns the number of examples and tokens by source, and the number of documents dropped or used in part by reason. ``advance``
    is called with the number of documents encoded since its last call.
    """
    encoder = load_encoder(how.tokenizers)
    inner_shapes = {"patches": (encoder.patch_values,), "frames": encoder.no_frames.shape[1:]}
    context = multiprocessing.get_context("forkserver")
    with ExitStack() as stack, ProcessPoolExecutor(how.workers, context, initializer=_start_worker) as pool:
        files = _Files(out, inner_shapes, encoder.no_frames.dtype.name, stack)
        for results in map_bounded(pool, _encode, _jobs(curated, how, encoder, encode_image_codes), 4 * how.workers):
            for result in results:
                files.add(result)
            files.flush_largest()
            advance(len(results))
    return files.report()
