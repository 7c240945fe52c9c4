"""Long context: documents of exact lengths, pairs at their depth, accuracy of each cell, loss by position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alhena.content import Content, Text
from alhena.corpus.starter.items import ItemSpec
from alhena.corpus.starter.text import long_retrieval
from alhena.evaluate import long_context
from alhena.evaluate.long_context import Grid, Texts
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Completed
from alhena.files import read_json
from alhena.serve.engine import Engine


@pytest.fixture(scope="module")
def model(smoke: Path) -> EngineModel:
    return EngineModel(Engine.load(smoke / "models" / "assistant", slots=4))


def test_a_document_of_training_has_its_pairs_once_and_answers_its_questions():
    for index in range(20):
        document = long_retrieval.make(ItemSpec("retrieval_2k", "train", index, 0))
        text = document.contents[0].parts[0].text
        assert len(text) <= 1.1 * long_retrieval.CHARACTERS_PER_TOKEN * 2048
        turns = [content.parts[0].text for content in document.contents]
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            key = asked.splitlines()[-1].removeprefix("What is the word for ").removesuffix("?")
            assert text.count(f"The word for {key} is ") == 1 and f"The word for {key} is {answer}." in text
        at = text.index("The word for ") / len(text)
        assert abs(at - document.facts["depth"]) < 0.25


def test_documents_fill_their_length_and_hold_the_pairs_at_their_depth(model):
    """The first retrieval of every cell: as many tokens as fit, not one line more."""
    asked: list[str] = []

    class Recording(EngineModel):
        def complete(self, requests, advance=long_context.no_advance):
            asked.extend(request.prompt[0].text for request in requests)
            return [Completed(long_context.VALUES[0], 1, False) for _ in requests]

    grid = Grid((300, 700), (0.0, 0.5, 1.0), items=2)
    filler = long_retrieval.filler(np.random.default_rng(0), "test", 20_000)
    long_context.retrieval(Recording(model.engine), filler, grid)
    for n, text in enumerate(asked):
        length, depth = grid.lengths[n // 6], grid.depths[n // 2 % 3]
        tokens = len(model.engine.encoder.prompt([Content("user", (Text(text),))]).tokens)
        assert length - 12 <= tokens <= length
        at, size = text.index("The word for "), len(text) - len(text[text.index("The word for ") :].splitlines()[0])
        assert abs(at / size - depth) < 0.2


def test_the_accuracy_of_a_cell_is_that_of_its_answers(model):
    """A model that reads the value after the key from the prompt is always right; one that names a constant is right by chance."""

    class Reading(EngineModel):
        def complete(self, requests, advance=long_context.no_advance):
            texts = [request.prompt[0].text for request in requests]
            keys = [text.rsplit(" ", 1)[1].removesuffix("?") for text in texts]
            found = [
                text.split(f"The word for {key} is ")[1].split(".")[0] for text, key in zip(texts, keys, strict=True)
            ]
            return [Completed(f"It is {value}.", 3, False) for value in found]

    filler, grid = long_retrieval.filler(np.random.default_rng(0), "test", 20_000), Grid((400,), (0.0, 1.0), items=25)
    result = long_context.retrieval(Reading(model.engine), filler, grid)
    assert result["accuracy"] == [[100.0, 100.0]] and result["lowest"] == 100.0 and result["items"] == 25


def test_a_model_is_measured_and_its_loss_is_that_of_the_whole_window(model, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text(long_retrieval.filler(np.random.default_rng(1), "test", 6000))
    long_context.measure(model, Grid((256, 300), (0.0, 1.0), items=3), Texts((text,), windows=2), tmp_path)
    result, loss = read_json(tmp_path / "retrieval.json"), read_json(tmp_path / "loss.json")
    assert result["lengths"] == [256, 300] and np.shape(result["accuracy"]) == (2, 2)
    ids = model.engine.encoder.tokenizer.encode(text.read_text())
    last = (len(ids) - 300) // 300 * 300
    windows = [ids[0:300], ids[last : last + 300]]
    whole = [-model.score([(model.beginning(), window)])[0].nats for window in windows]
    by_range = sum(nats * (b - a) for nats, (a, b) in zip(loss["nats"], loss["positions"], strict=True))
    assert by_range == pytest.approx(np.mean(whole), rel=1e-4)
    for name in ("retrieval.png", "loss.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"lengths": (10,)}, "256 tokens or more"), ({"depths": (1.5,)}, "from 0 to 1"), ({"items": 0}, "items")],
)
def test_a_grid_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Grid(), **change)


def test_a_length_that_the_model_cannot_read_and_a_short_filler_are_refused(model):
    with pytest.raises(ValueError, match="reads at most 32,768 tokens"):
        long_context.retrieval(model, "x", Grid((65536,)))
    with pytest.raises(ValueError, match="fewer than 512 tokens need: give a longer one"):
        long_context.retrieval(model, "a short text", Grid((512,)))
    with pytest.raises(ValueError, match="no text has 512 tokens"):
        long_context.loss_by_position(model, ["a short text"], 512, 1)
