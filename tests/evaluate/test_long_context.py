"""Long context: documents of exact lengths, pairs at their depth, accuracy of each cell, loss by position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alhena.content import Content, Text
from alhena.corpus.starter.items import ItemSpec
from alhena.corpus.starter.text import long_retrieval
from alhena.evaluate.context import key_values
from alhena.evaluate.context.grid import Grid
from alhena.evaluate.context.loss import loss_of_texts
from alhena.evaluate.context.measure import Measured, Texts, measure
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Completed, no_advance
from alhena.files import read_json
from alhena.serve.engine import Engine

BEGINNING = "Pairs of words: "


@pytest.fixture(scope="module")
def model(smoke: Path) -> EngineModel:
    return EngineModel(Engine.load(smoke / "models" / "assistant", slots=4))


def pairs_of(text: str) -> dict[str, str]:
    """The pairs of a document, which are there once."""
    assert text.count(BEGINNING) == 1
    return dict(pair.split() for pair in text.split(BEGINNING)[1].split(".")[0].split(", "))


def test_a_document_of_training_has_its_pairs_once_and_answers_its_questions():
    for index in range(20):
        document = long_retrieval.make(ItemSpec("retrieval_2k", "train", index, 0))
        text = document.contents[0].parts[0].text
        assert len(text) <= 1.1 * long_retrieval.CHARACTERS_PER_TOKEN * 2048
        turns = [content.parts[0].text for content in document.contents]
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            key = asked.splitlines()[-1].removeprefix("Which word is paired with ").removesuffix("?")
            assert answer == f"{key} {pairs_of(text)[key]}"
        at = text.index(BEGINNING) / len(text)
        assert abs(at - document.facts["depth"]) < 0.25


def test_documents_fill_their_length_and_hold_the_pairs_at_their_depth(model):
    """The first retrieval of every cell: as many tokens as leave room for the answer, not one line more."""
    asked: list[str] = []

    class Recording(EngineModel):
        def complete(self, requests, advance=no_advance):
            asked.extend(request.prompt[0].text for request in requests)
            return [Completed(key_values.VALUES[0], 1, False) for _ in requests]

    grid = Grid((300, 700), (0.0, 0.5, 1.0), items=2)
    filler = long_retrieval.filler(np.random.default_rng(0), "test", 20_000)
    key_values.retrieval(Recording(model.engine), filler, grid)
    for n, text in enumerate(asked):
        length, depth = grid.lengths[n // 6], grid.depths[n // 2 % 3]
        tokens = len(model.engine.encoder.prompt([Content("user", (Text(text),))]).tokens)
        assert length - 12 <= tokens + key_values.ANSWER_TOKENS <= length
        at, size = text.index(BEGINNING), len(text) - len(text[text.index(BEGINNING) :].splitlines()[0])
        assert abs(at / size - depth) < 0.2


def test_the_accuracy_of_a_cell_is_that_of_its_answers(model):
    """A model that reads the value after the key from the prompt is always right; one that names a constant is right by chance."""

    class Reading(EngineModel):
        def complete(self, requests, advance=no_advance):
            texts = [request.prompt[0].text for request in requests]
            keys = [text.rsplit(" ", 1)[1].removesuffix("?") for text in texts]
            found = [pairs_of(text)[key] for text, key in zip(texts, keys, strict=True)]
            return [Completed(f"It is {value}.", 3, False) for value in found]

    filler, grid = long_retrieval.filler(np.random.default_rng(0), "test", 20_000), Grid((400,), (0.0, 1.0), items=25)
    result = key_values.retrieval(Reading(model.engine), filler, grid)
    assert result.accuracy == ((100.0, 100.0),) and result.items == 25 and result.chance == 10


def test_a_model_is_measured_and_its_loss_is_that_of_the_whole_window(model, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text(long_retrieval.filler(np.random.default_rng(1), "test", 6000))
    grids = [Grid((256, 300), (0.0, 1.0), items=3), Grid((2,), (0.0, 1.0), items=2, medium="video")]
    measure(Measured(model, tmp_path), grids, Texts((text,), windows=2))
    result, loss = read_json(tmp_path / "retrieval.json"), read_json(tmp_path / "loss.json")
    assert result["lengths"] == [256, 300] and np.shape(result["accuracy"]) == (2, 2)
    assert np.shape(result["intervals"]) == (2, 2, 2) and result["lowest"] == np.min(result["accuracy"])
    ids = model.engine.encoder.tokenizer.encode(text.read_text())
    last = (len(ids) - 300) // 300 * 300
    windows = [ids[0:300], ids[last : last + 300]]
    whole = [-model.score([(model.beginning(), window)])[0].nats for window in windows]
    by_range = sum(nats * (b - a) for nats, (a, b) in zip(loss["nats"], loss["positions"], strict=True))
    assert by_range == pytest.approx(np.mean(whole), rel=1e-4)
    same = loss["same_tokens"]
    assert (same["tokens"], same["contexts"]) == (75, [225]) and same["difference"]["nats"] == [0.0]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    card = read_json(tmp_path / "report.json")
    assert [row["name"] for row in card["rows"]] == [
        "key-value retrieval, 256 to 300 tokens", "digit in one of many frames, 2 frames",
    ]  # fmt: skip
    assert (tmp_path / "report.html").read_text().count('class="heat"') == 2


def test_the_loss_after_less_context_is_that_of_the_end_of_a_shorter_text(model):
    text = long_retrieval.filler(np.random.default_rng(1), "test", 20_000)
    found = loss_of_texts(model, [text], 1024, 1)["same_tokens"]
    assert found["tokens"] == 256 and found["contexts"] == [256, 768]
    ids = model.engine.encoder.tokenizer.encode(text)[:1024]
    prompts = [[*model.beginning(), *ids[768 - context : 768]] for context in found["contexts"]]
    expected = [-score.nats / 256 for score in model.score([(prompt, ids[768:]) for prompt in prompts])]
    np.testing.assert_allclose(found["nats"], expected, atol=1e-3)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    assert found["difference"]["nats"] == pytest.approx([0, expected[1] - expected[0]], abs=2e-3)


def test_each_context_is_compared_with_the_shortest_and_with_the_one_before(model):
    text = long_retrieval.filler(np.random.default_rng(1), "test", 60_000)
    same = loss_of_texts(model, [text], 2048, 3)["same_tokens"]
    shortest, before = same["difference"], same["from_context_before"]
    assert same["contexts"] == [256, 1024, 1536]
    np.testing.assert_allclose(np.cumsum(before["nats"]), shortest["nats"], atol=2e-4)
    # The first two columns are the same comparison, the third is not.
    assert before["standard_error"][:2] == shortest["standard_error"][:2]
    assert 0 < before["standard_error"][2] != shortest["standard_error"][2]


def test_texts_without_a_grid_of_texts_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="--texts and --filler belong to texts"):
        measure(Measured(model, tmp_path), [Grid((2,), medium="video")], Texts((tmp_path / "book.txt",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (10,)}, "from 256 to 4,194,304 tokens"),
        ({"depths": (1.5,)}, "from 0 to 1"),
        ({"items": 0}, "items"),
    ],
)
def test_a_grid_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Grid(), **change)


def test_a_length_that_the_model_cannot_read_and_a_short_filler_are_refused(model):
    with pytest.raises(ValueError, match="reads at most 32,768 tokens"):
        key_values.retrieval(model, "x", Grid((65536,)))
    with pytest.raises(ValueError, match="fewer than 512 tokens need: give a longer one"):
        key_values.retrieval(model, "a short text", Grid((512,)))
    with pytest.raises(ValueError, match="no text has 512 tokens"):
        loss_of_texts(model, ["a short text"], 512, 1)
