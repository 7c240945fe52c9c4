"""Documents to batches: nothing is lost, placeholders match encoder outputs by order, resumed = uninterrupted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.content import Content, Document, Image, Text
from alhena.model import config
from alhena.testing.encoder import character_encoder
from alhena.tokens.audio_features import HOP, chunk, log_mel
from alhena.tokens.examples.loader import Batches, batches_in_order
from alhena.tokens.examples.padding import BatchShape, padded_batch
from alhena.tokens.examples.store import Examples, write_examples
from alhena.tokens.images import fit_grid, patchify

VISION, AUDIO = config.Vision(16, 1, 2, 16), config.Conformer(16, 1, 2, 16)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2028\u2581"), max_size=60))
def test_decoding_an_encoding_gives_the_text(encoder, text):
    assert encoder.tokenizer.decode(encoder.tokenizer.encode(text)) == text


def test_running_text_is_split_and_nothing_is_lost(encoder):
    text = "".join(f"{i} circles, {i * 7} stars;\n" for i in range(80))
    examples = encoder.encode(Document((Content("document", (Text(text),)),), "0", "text"), 64)
    assert len(examples) > 3
    assert max(len(e.tokens) for e in examples) <= 64
    words = [t for e in examples for t in e.tokens.tolist() if t < encoder.vocabulary.num_text]
    assert encoder.tokenizer.decode(words) == text


LONG_TEXT = "".join(f"Line {n}: {'abcdefgh'[n % 8 :]} {n * n}.\n" for n in range(300))
LONG = Document((Content("document", (Text(LONG_TEXT),)),), "0", "t")


@pytest.mark.parametrize("kind", ["own", "gemma"])
@pytest.mark.parametrize("tokens", [64, 100, 5000])
def test_windows_of_running_text_are_the_text_encoded_at_their_size(encoder, tmp_path, kind, tokens):
    """What training on shorter sequences reads of a text."""
    encoder = encoder if kind == "own" else character_encoder()
    (whole,) = encoder.encode(LONG, 100_000)
    inner = {"patches": whole.patches.shape[1:], "frames": whole.frames.shape[1:]}
    write_examples(tmp_path / "t.arrow", [whole], inner)
    examples, shape = Examples(tmp_path / "t.arrow"), BatchShape(2, tokens, 0, 0)
    windows, expected = shape.fitting(examples), encoder.encode(LONG, tokens)
    assert len(windows) == len(expected) and not shape.left_out(examples)
    for (number, start, size), split in zip(windows.tolist(), expected, strict=True):
        window = examples[number].window(start, size) if size else examples[number]
        for name, value in vars(window).items():
            np.testing.assert_array_equal(value, getattr(split, name))
        np.testing.assert_array_equal(window.tokens[: len(whole.header)], whole.header)
        assert tokens >= len(window.tokens) == len(window.targets) == len(window.weights) == len(window.modality)


def test_every_token_of_a_long_text_is_trained_on_once(encoder, tmp_path):
    """And a conversation of the same length, or with room for the header alone, is left out and counted."""
    chat = Document((Content("user", (Text(LONG_TEXT),)), Content("model", (Text("x"),))), "1", "t")
    examples = [example for d in (LONG, chat) for example in encoder.encode(d, 100_000)]
    inner = {"patches": examples[0].patches.shape[1:], "frames": examples[0].frames.shape[1:]}
    write_examples(tmp_path / "t.arrow", examples, inner)
    stored, shape = Examples(tmp_path / "t.arrow"), BatchShape(2, 50, 0, 0)
    assert shape.left_out(stored) == {"more than 50 tokens": 1}
    batches = batches_in_order({"t": stored}, shape)
    learned = np.concatenate([batch.targets[batch.weights > 0] for batch in batches])
    np.testing.assert_array_equal(np.sort(learned), np.sort(examples[0].targets[examples[0].weights > 0]))
    assert BatchShape(2, 2, 0, 0).left_out(stored) == {"more than 2 tokens": 2}
    assert BatchShape(2, 2, 0, 0).fitting(stored).shape == (0, 3)


def test_only_answers_weigh_more_than_questions(encoder, documents):
    v = encoder.vocabulary
    for document in documents:
        (example,) = encoder.encode(document, 256)
        learned = example.targets[example.weights > encoder.budget.question_weight].tolist()
        assert encoder.tokenizer.decode(learned[:-1]) == "red"
        assert learned[-1] == v.end


def test_an_output_image_becomes_a_complete_grid(encoder, documents):
    v, pixels = encoder.vocabulary, documents[1].contents[0].parts[0]
    document = Document((Content("user", (Text("Draw."),)), Content("model", (pixels,))), "0", "drawing")
    grid = np.arange(24).reshape(4, 6)
    (example,) = encoder.encode(document, 256, codes={pixels.data: grid})
    start = example.tokens.tolist().index(v.control("<boi_out>"))
    expected = [v.rows(4), v.columns(6), *(v.code(k) for k in range(24)), v.control("<eoi_out>"), v.end]
    assert example.tokens.tolist()[start + 1 :] == expected
    with pytest.raises(ValueError, match="no image tokenizer"):
        encoder.encode(document, 256)


def test_there_is_a_placeholder_for_every_encoder_output(encoder, documents):
    v = encoder.vocabulary
    for document in documents:
        (e,) = encoder.encode(document, 256)
        assert (e.tokens == v.control("<img>")).sum() == len(e.patches) // 4
        assert (e.tokens == v.control("<aud>")).sum() == sum(AUDIO.tokens(int(n)) for n in e.frame_lengths)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 256))
def test_an_image_stays_within_its_budget_and_near_its_aspect_ratio(height, width, budget):
    rows, columns = fit_grid(height, width, budget, 16)
    assert 1 <= rows * columns <= budget
    if rows >= 4 and columns >= 4:
        assert 0.6 < (columns / rows) / (width / height) < 1.7


def test_no_patch_position_exceeds_the_position_embeddings():
    """A gather clamps indices out of range: the wrong embedding would be used without an error."""
    for c in (VISION, config.Vision(16, 1, 2, 16, side=8, plain=True)):
        for shape in ((10, 4000, 3), (4000, 10, 3), (4000, 4000, 3)):
            patches, positions = patchify(np.zeros(shape, np.uint8), c, 1024)
            assert positions.max() < c.side
            assert len(patches) == len(positions)


def test_patches_come_pool_window_first():
    rows, columns = np.mgrid[0:32, 0:48]
    pixels = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
    patches, positions = patchify(pixels, VISION, 64)
    assert patches.shape == (24, 192)
    corners = patches.reshape(24, 8, 8, 3)[:, 0, 0, :2]
    np.testing.assert_array_equal(corners, positions * 8)  # each patch is at its position
    windows = positions.reshape(6, 4, 2)
    np.testing.assert_array_equal(windows // 2, np.repeat(windows[:, :1] // 2, 4, axis=1))


def test_log_mel_puts_a_tone_into_its_bin_and_gain_is_an_offset():
    time = np.arange(16000) / 16000
    tones = [
        log_mel((0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), AUDIO)[20:80].mean(0).argmax()
        for hertz in (300, 1000, 4000)
    ]
    assert tones == sorted(tones)
    assert len(set(tones)) == 3
    noise = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    np.testing.assert_allclose(
        log_mel(noise, AUDIO) - log_mel(0.1 * noise, AUDIO), 1.0, atol=0.02
    )  # -20 dB is one unit
    assert log_mel(np.zeros(1600, np.float32), AUDIO).max() == log_mel(np.zeros(1600, np.float32), AUDIO).min()
    frames, lengths = chunk(log_mel(np.tile(noise, 2)[: 130 * HOP], AUDIO), AUDIO)
    assert frames.shape == (2, 128, 128)
    assert lengths.tolist() == [128, 2]


@pytest.fixture
def sources(encoder, documents, tmp_path):
    inner_shapes = {"patches": (192,), "frames": (128, 128)}
    for name, group in (("a", documents[:2]), ("b", documents[2:])):
        write_examples(tmp_path / f"{name}.arrow", [e for d in group * 9 for e in encoder.encode(d, 256)], inner_shapes)
    return {name: Examples(tmp_path / f"{name}.arrow") for name in "ab"}


SHAPE = BatchShape(batch_size=2, tokens=128, patches=96, chunks=4)


def same(a, b):
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_stored_examples_are_read_back(encoder, documents, sources):
    expected = encoder.encode(documents[3], 256)[0]
    same(sources["b"][1], expected)
    with pytest.raises(IndexError):
        sources["b"][len(sources["b"])]


def test_resumed_batches_equal_uninterrupted(sources):
    weights = {"a": 1.0, "b": 2.0}
    uninterrupted = Batches(sources, weights, SHAPE, seed=3)
    first = [next(uninterrupted) for _ in range(4)]
    state = uninterrupted.state()
    expected = [next(uninterrupted) for _ in range(5)]
    resumed = Batches(sources, weights, SHAPE, seed=3)
    resumed.restore(state)
    for a, b in zip(expected, [next(resumed) for _ in range(5)], strict=True):
        same(a, b)
    with pytest.raises(AssertionError):
        same(first[0], expected[0])


def test_packed_sequences_hold_complete_examples_in_order(encoder, sources):
    v = encoder.vocabulary
    batch = next(Batches(sources, {"a": 1.0, "b": 1.0}, SHAPE, seed=0))
    for row in range(SHAPE.batch_size):
        images = (batch.tokens[row] == v.control("<img>")) & (batch.segments[row] > 0)
        assert images.sum() == (batch.patch_images[row] > 0).sum() // 4
        assert (batch.tokens[row] == v.control("<aud>")).sum() == sum(
            AUDIO.tokens(int(n)) for n in batch.frame_lengths[row] if n
        )
        for segment in range(1, batch.segments[row].max() + 1):
            members = batch.segments[row] == segment
            tokens = batch.tokens[row][members]
            assert tokens[0] == v.bos
            assert tokens[-1] == v.end
            np.testing.assert_array_equal(batch.positions[row][members], np.arange(members.sum()))
            np.testing.assert_array_equal(batch.targets[row][members][:-1], tokens[1:])


def test_batches_in_order_give_each_example_once(sources):
    total = sum(int((batch.positions[batch.segments > 0] == 0).sum()) for batch in batches_in_order(sources, SHAPE))
    assert total == len(sources["a"]) + len(sources["b"])


@pytest.mark.parametrize("name", ["tokens", "patches", "patch_positions", "frames"])
def test_lengths_are_those_of_the_examples(sources, name):
    for examples in sources.values():
        assert examples.lengths(name).tolist() == [len(getattr(example, name)) for example in examples]


def test_what_does_not_fit_is_counted_or_refused(encoder, documents, sources):
    small = BatchShape(batch_size=2, tokens=128, patches=96, chunks=0)
    batches = Batches(sources, {"a": 1.0, "b": 1.0}, small, seed=0)
    assert batches.too_large == {"a": 0, "b": len(sources["b"])}
    with pytest.raises(ValueError, match="of which there is no data"):
        Batches(sources, {"c": 1.0}, SHAPE, seed=0)
    with pytest.raises(ValueError, match="a prompt of"):
        padded_batch(encoder.encode(documents[1], 256), 8, 64, 0)


def test_invalid_image_bytes_are_an_error(encoder):
    document = Document(
        (Content("user", (Image(b"\x89PNG\r\n\x1a\nnothing"), Text("?"))), Content("model", (Text("x"),))), "0", "m"
    )
    with pytest.raises(ValueError, match="cannot be decoded"):
        encoder.encode(document, 256)
