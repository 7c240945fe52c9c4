"""Tokenization is a stream: samples are bounded, windows change nothing, files are complete or absent."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest

from alhena.content import Content, Document, Image, Text
from alhena.documents import write_documents
from alhena.media import encode_png
from alhena.model import config, image_tokenizer
from alhena.tokens.examples import tokenize
from alhena.tokens.examples.loader import batches_in_order
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples, ExampleWriter, write_examples

INNER = {"patches": (192,), "frames": (128, 128)}


def generated(seed: int, height: int = 32, width: int = 32) -> Document:
    """A prompt for an image, and the image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    contents = Content("user", (Text("Draw."),)), Content("model", (Image(encode_png(pixels)),))
    return Document(contents, str(seed), "drawing")


def test_a_sample_that_fits_is_everything_in_order():
    assert tokenize.uniform_sample(iter(range(1000)), lambda item: 1, 1000, seed=0) == list(range(1000))


def test_a_sample_is_bounded_and_uniform():
    sample = tokenize.uniform_sample(iter(range(100_000)), lambda item: 3, 6000, seed=0)
    assert 1900 < len(sample) <= 2000
    assert sample == sorted(set(sample))
    assert np.histogram(sample, 10, (0, 100_000))[0].min() > 140
    assert sample == tokenize.uniform_sample(iter(range(100_000)), lambda item: 3, 6000, seed=0)
    assert sample != tokenize.uniform_sample(iter(range(100_000)), lambda item: 3, 6000, seed=1)


def test_a_sample_holds_no_more_than_it_returns():
    """Each item is an object of its own: those that are not in the sample must be free again."""
    alive = peak = 0

    class Item:
        def __init__(self) -> None:
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    assert len(tokenize.uniform_sample((Item() for _ in range(5000)), lambda item: 1, 20, seed=0)) == 20
    assert peak < 30


def test_texts_are_sampled_from_the_whole_corpus_and_truncated_to_the_sample(tmp_path):
    documents = [Document((Content("document", (Text(f"{i:04}" * 25),)),), str(i), "text") for i in range(300)]
    documents.append(Document((Content("document", (Text("x" * 9000),)),), "long", "text"))
    write_documents(tmp_path / "part.parquet", documents)
    texts = tokenize.sample_texts(tmp_path, 2000, seed=0)
    assert 0 < sum(len(text) for _, text in texts) <= 2000
    assert len(tokenize.sample_texts(tmp_path, 100_000, seed=0)) == 301


def test_images_are_sampled_and_large_ones_scaled_down(tmp_path, monkeypatch):
    broken = Content("model", (Image(b"\x89PNG\r\n\x1a\nnothing"),))
    scene = Document((Content("user", (Image(encode_png(np.zeros((8, 8, 3), np.uint8))),)),), "s", "scenes")
    documents = [generated(0, 600, 1200), Document((broken,), "b", "drawing"), scene, *map(generated, range(1, 9))]
    write_documents(tmp_path / "part.parquet", documents)
    images, scenes = tokenize.sample_images(tmp_path)
    assert images[0].shape == (362, 724, 3)
    assert [p.shape for p in images[1:]] == [(32, 32, 3)] * 8
    assert [p.shape for p in scenes] == [(8, 8, 3)]
    monkeypatch.setattr(tokenize, "SAMPLE_BYTES", 3 * 32 * 32 * 3)
    assert len(tokenize.sample_images(tmp_path)[0]) <= 3


@pytest.mark.parametrize("encoder_blocks", [0, 1])
def test_an_image_has_the_same_codes_in_any_batch(encoder_blocks):
    c = config.ImageTokenizer((4, 4), (3,), width=16, encoder_blocks=encoder_blocks)
    params = image_tokenizer.init(jax.random.key(0), c)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 16 + 8 * (i % 3), 3), dtype=np.uint8) for i in range(12)]
    together = image_tokenizer.encode_images(params, c, images)
    alone = [image_tokenizer.encode_images(params, c, [image])[0] for image in images[:3]]
    reversed_ = image_tokenizer.encode_images(params, c, images[::-1])[::-1]
    for a, b in [*zip(together, reversed_, strict=True), *zip(together, alone, strict=False)]:
        np.testing.assert_array_equal(a, b)


def test_windows_change_nothing_and_one_bad_image_is_dropped(encoder, documents, tmp_path, monkeypatch):
    encoder.save(tmp_path / "tokens")
    bad = replace(generated(7), id="bad")
    bad = replace(bad, contents=(bad.contents[0], Content("model", (Image(b"\x89PNG\r\n\x1a\nnothing"),))))
    outside = replace(documents[0], source="../outside")
    write_documents(tmp_path / "data" / "part.parquet", [generated(1), *documents, bad, generated(2), outside] * 3)

    def encode_image_codes(images: list[np.ndarray]) -> list[np.ndarray]:
        return [image[::8, ::8, 0].astype(np.int32) % 64 for image in images]

    how = tokenize.Encoding(tmp_path / "tokens", 256, condition_dropout=0.5, workers=1)
    result = tokenize.encode_split(tmp_path / "data", tmp_path / "one_window", how, encode_image_codes)
    monkeypatch.setattr(tokenize, "WINDOW_IMAGES", 2)
    monkeypatch.setattr(tokenize, "JOB_BYTES", 5000)
    assert tokenize.encode_split(tmp_path / "data", tmp_path / "windows", how, encode_image_codes) == result
    assert {name: counts["examples"] for name, counts in result["sources"].items()} == {"drawing": 6, "mine": 12}
    reasons = sorted(result["dropped"])
    assert [result["dropped"][reason] for reason in reasons] == [3, 3]
    assert "source names a file" in reasons[0]
    assert "cannot be decoded" in reasons[1]
    assert sorted(p.name for p in (tmp_path / "one_window").iterdir()) == ["drawing.arrow", "mine.arrow"]
    for name in ("drawing.arrow", "mine.arrow"):
        assert (tmp_path / "one_window" / name).read_bytes() == (tmp_path / "windows" / name).read_bytes()


def test_a_worker_that_needs_too_much_memory_fails_alone():
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context, initializer=tokenize._start_worker) as pool:
        with pytest.raises(MemoryError):
            pool.submit(np.ones, tokenize.WORKER_MEMORY // 8).result()
        assert pool.submit(np.ones, 1).result() == 1


def test_a_file_of_examples_is_complete_or_absent(encoder, documents, tmp_path):
    (example,) = encoder.encode(documents[1], 256)
    with pytest.raises(RuntimeError, match="stopped"), ExampleWriter(tmp_path / "a.arrow", INNER) as writer:
        writer.add(example)
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []


def test_record_batches_are_bounded_by_bytes(encoder, documents, tmp_path):
    (example,) = encoder.encode(documents[2], 256)
    size = sum(array.nbytes for array in vars(example).values())
    with ExampleWriter(tmp_path / "a.arrow", INNER, max_bytes=2 * size) as writer:
        for _ in range(7):
            writer.add(example)
            assert writer.buffered_bytes < 2 * size
    with pa.memory_map(str(tmp_path / "a.arrow")) as file:
        reader = pa.ipc.open_file(file)
        assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [2, 2, 2, 1]
    assert len(Examples(tmp_path / "a.arrow")) == 7


def test_a_split_is_read_while_batches_are_made(encoder, documents, tmp_path):
    """The first batch comes before the source has been read to its end."""

    class Counting(Examples):
        read = 0

        def __getitem__(self, index: int):
            Counting.read += 1
            return super().__getitem__(index)

    examples = [encoder.encode(document, 256)[0] for document in documents] * 25
    write_examples(tmp_path / "a.arrow", examples, INNER)
    batches = batches_in_order({"a": Counting(Path(tmp_path / "a.arrow"))}, BatchShape(2, 128, 96, 4))
    next(batches)
    assert 0 < Counting.read < 50
    list(batches)
    assert Counting.read == 100


def test_frames_of_open_encoders_are_stored_in_float32(encoder, documents, tmp_path):
    """Frames keep the dtype that the file names; others are refused."""
    (example,) = encoder.encode(documents[0], 256)
    frames = np.random.default_rng(0).standard_normal((2, *INNER["frames"]), np.float32)
    example = replace(example, frames=frames, frame_lengths=np.array([3, 2], np.int32))
    for dtype in ("float32", "float16"):
        write_examples(tmp_path / "a.arrow", [example, example], INNER, dtype)
        stored = Examples(tmp_path / "a.arrow")
        assert stored[1].frames.dtype == dtype and stored.lengths("frames").tolist() == [2, 2]
        np.testing.assert_array_equal(stored[1].frames, frames.astype(dtype))
    with pytest.raises(ValueError, match="frames of dtype 'int8'; float16 and float32 can be stored"):
        write_examples(tmp_path / "a.arrow", [example], INNER, "int8")
