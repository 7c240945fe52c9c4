"""Batch shapes of a fine-tuning follow from the data: every example fits up to a stated limit, and the others are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alhena.align.sft import Tune, grow_to_fit, shrink_to_fit, training
from alhena.batch import Example
from alhena.tokens.examples.loader import Batches, left_out
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples, write_examples

SHAPE = BatchShape(batch_size=16, tokens=256, patches=256, chunks=2)


def example(tokens: int, patches: int = 0, chunks: int = 0) -> Example:
    return Example(
        tokens=np.ones(tokens, np.int32),
        targets=np.ones(tokens, np.int32),
        weights=np.ones(tokens, np.float32),
        modality=np.zeros(tokens, np.int32),
        patches=np.zeros((patches, 12), np.uint8),
        patch_positions=np.zeros((patches, 2), np.int32),
        patch_images=np.ones(patches, np.int32),
        frames=np.zeros((chunks, 4, 4), np.float16),
        frame_lengths=np.full(chunks, 4, np.int32),
        header=np.zeros(0, np.int32),
    )


def stored(folder: Path, **sources: list[Example]) -> dict[str, Examples]:
    for name, examples in sources.items():
        write_examples(folder / f"{name}.arrow", examples, {"patches": (12,), "frames": (4, 4)})
    return {name: Examples(folder / f"{name}.arrow") for name in sources}


def shape_of(folder: Path, shape: BatchShape = SHAPE) -> BatchShape:
    return training(Tune(10, shape), folder, 0.1).shape


@pytest.mark.parametrize(
    "sizes", [(100, 0, 4), (100, 0, 24), (100, 512, 0), (200, 1024, 8), (2000, 0, 0), (4096, 0, 0)]
)
def test_an_example_longer_than_a_sequence_of_the_recipe_fits(tmp_path, sizes):
    sources = stored(tmp_path, mine=[example(*sizes), example(50)])
    shape = shape_of(tmp_path)
    assert left_out(sources, shape) == {}
    assert len(shape.fitting(sources["mine"])) == 2
    next(Batches(sources, {"mine": 1.0}, shape, seed=0))


def test_the_memory_of_a_step_is_bounded(tmp_path):
    """Four times that of the recipe's batch for what grows linearly; sixteen times for attention, which grows with the square."""
    for sizes in ((1024, 0, 0), (4096, 0, 0), (200, 4096, 0), (200, 1000, 20), (3000, 2000, 32)):
        shape = shape_of(tmp_path) if stored(tmp_path, mine=[example(*sizes)] * 3) else SHAPE
        assert shape.batch_size >= 1
        for name, budget in SHAPE.budgets.items():
            assert shape.batch_size * shape.budgets[name] <= 4 * SHAPE.batch_size * budget
            # Attention in the audio encoder stays inside a chunk.
            squared = (
                name == "frames" or shape.batch_size * shape.budgets[name] ** 2 <= 16 * SHAPE.batch_size * budget**2
            )
            assert squared


def test_what_is_larger_than_a_batch_is_left_out_with_its_reason(tmp_path):
    sources = stored(
        tmp_path, a=[example(100), example(5000), example(100, 0, 40)], b=[example(5000, 9000), example(90)]
    )
    shape = shape_of(tmp_path)
    assert left_out(sources, shape) == {
        "a": {f"more than {shape.tokens} tokens": 1, "more than 0 chunks of audio": 1},
        "b": {f"more than {shape.tokens} tokens and 0 image patches": 1},
    }
    batches = Batches(sources, {"a": 1.0, "b": 1.0}, shape, seed=0)
    assert batches.too_large == {"a": 2, "b": 1}


def test_when_nothing_fits_the_reasons_are_in_the_message(tmp_path):
    sources = stored(tmp_path, a=[example(5000)], b=[example(100, 0, 40)])
    with pytest.raises(ValueError, match=r"a: 1 with more than 256 tokens; b: 1 with more than 2 chunks of audio"):
        Batches(sources, {"a": 1.0, "b": 1.0}, shape_of(tmp_path), seed=0)


def test_a_recipe_with_weights_keeps_its_shape(tmp_path):
    sources = stored(tmp_path, a=[example(256, 256, 2), example(9)], b=[example(100, 64)])
    assert grow_to_fit(SHAPE, sources) == SHAPE
    given = replace(Tune(10, SHAPE), weights={"a": 1.0})
    stored(tmp_path, a=[example(4000, 256, 20)])
    assert training(given, tmp_path, 0.1).shape == SHAPE


def test_no_example_is_read_for_its_size(tmp_path):
    class Unread(Examples):
        def __getitem__(self, index: int) -> Example:
            raise AssertionError("an example was read")

    stored(tmp_path, a=[example(30, 0, 1)] * 40)
    sources = {"a": Unread(tmp_path / "a.arrow")}
    shape = shrink_to_fit(grow_to_fit(SHAPE, sources), sources)
    assert (shape.tokens, shape.patches, shape.chunks) == (96, 0, 2)
