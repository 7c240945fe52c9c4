"""Needles in media: scores of known answers, lengths that are refused, a map of a model, and rows of the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alhena.content import Document
from alhena.corpus.starter.needles import Haystack, make_all
from alhena.documents import read_documents
from alhena.evaluate import metrics
from alhena.evaluate.answers import prompt_of
from alhena.evaluate.context.grid import Grid
from alhena.evaluate.context.needles import CARD_DEPTHS, card_needles, longest_clip, needle_map, needle_rows
from alhena.evaluate.evaluation import answer_row
from alhena.evaluate.results import AnsweredQuestion
from alhena.evaluate.tasks.starter import reference
from alhena.files import read_json
from alhena.serve.engine import Engine


@pytest.fixture(scope="module")
def engine(smoke: Path) -> Engine:
    return Engine.load(smoke / "models" / "assistant", slots=4)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    hays = [Haystack(medium, 6, depth, 6) for medium in ("audio", "video") for depth in CARD_DEPTHS for _ in range(10)]
    return make_all(hays, 0)


def scores(documents: list[Document], answers: list[str]) -> list[tuple[float, float]]:
    """Score and chance level of each row for given answers."""
    answered = [AnsweredQuestion(d, reference(d), {"m": a}, {}) for d, a in zip(documents, answers, strict=True)]
    rows = [answer_row(task, answered) for task in needle_rows(documents)]
    return [(row.scores["m"], row.chance) for row in rows if row]


def test_references_score_all_and_the_best_constant_scores_chance(documents):
    references = [reference(document) for document in documents]
    assert [score for score, _ in scores(documents, references)] == [100, 100]
    assert [score for score, _ in scores(documents, [f"It is {text.upper()}." for text in references])] == [100, 100]
    constants = [scores(documents, [text] * len(documents)) for text in set(references)]
    for n, (_, chance) in enumerate(scores(documents, references)):
        assert max(one[n][0] for one in constants) == pytest.approx(chance) and 0 < chance < 20


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("forty seven", True), ("Forty-seven.", True), ("47", True), ("The number is 47", True), ("forty seven forty seven", True),
        ("forty", False), ("seven", False), ("forty seven or fifty", False), ("4 7", False), ("147", False), ("", False), ("forty\nsevens", False),
    ],
)  # fmt: skip
def test_an_answer_is_right_when_it_names_the_number_and_no_other(answer, is_right):
    assert metrics.item_score(metrics.same_numbers, "forty seven", answer) == (is_right, 1)


def test_every_clip_and_frame_is_in_the_prompt(engine):
    for medium, length, mark, count in (("video", 14, "<boi>", 14), ("audio", 40, "<boa>", 2)):
        (document,) = make_all([Haystack(medium, length, 0.5, longest_clip(engine, medium))], 0)
        tokens = engine.encode(prompt_of(engine, document)).tokens.tolist()
        assert tokens.count(engine.encoder.vocabulary.control(mark)) == count


def test_a_model_is_measured_by_length_and_depth(engine):
    found = needle_map(engine, Grid((2, 7), (0.0, 1.0), items=3, medium="video"))
    assert (found.lengths, found.depths, found.items, found.unit) == ((2, 7), (0.0, 1.0), 3, "frames")
    assert all(0 <= cell <= 100 for cell in found.cells) and 0 < found.chance < 60


def test_lengths_that_a_model_does_not_read_are_refused_by_name(engine):
    small = replace(engine, cache_bytes=1)
    with pytest.raises(ValueError, match=r"assistant, 200 frames of video: .*at most \d+"):
        needle_map(small, Grid((2, 200), (0.0,), items=1, medium="video"))
    deaf = replace(engine, config=replace(engine.config, audio=None))
    with pytest.raises(ValueError, match="assistant, 2 seconds of audio: this model reads no audio"):
        needle_map(deaf, Grid((2,), (0.0,), items=1, medium="audio"))
    budget = replace(engine.encoder.budget, audio_seconds=1.0)
    with pytest.raises(ValueError, match=r"the audio lasts 2.0 s; this model reads at most 1 s"):
        needle_map(
            replace(engine, encoder=replace(engine.encoder, budget=budget)), Grid((2,), (0.0,), 1, medium="audio")
        )
    with pytest.raises(ValueError, match="from 2 to 3,600 seconds"):
        Grid((1,), medium="audio")


def test_the_card_has_the_longest_media_that_all_models_read_at_once(smoke, engine):
    split = list(read_documents(smoke / "curated" / "test"))
    short = replace(engine, encoder=replace(engine.encoder, budget=replace(engine.encoder.budget, clip_frames=4)))
    lengths = {(d.facts["task"], d.facts["length"], d.facts["clips"]) for d in card_needles([engine, short], split)}
    assert lengths == {("needles/audio", 30, 1), ("needles/video", 4, 1)}
    assert card_needles([engine], [d for d in split if d.source == "text"]) == []
    rows = {row["name"]: row for row in read_json(smoke / "report" / "results.json")["rows"]}
    for name, task in (("number spoken in 30 s of noise", "speech"), ("digit in one of 6 frames", "video/order")):
        items = sum(document.facts["task"] == task for document in split)
        assert rows[name]["section"] == "long context" and rows[name]["items"] == 3 * items > 0
