"""Questions to a small random model: limits follow from references, what cannot be asked is counted, a cut answer is one."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from alhena.content import Audio, Content, Document, Image, Text, write_documents
from alhena.evaluate import metrics
from alhena.evaluate.ask import LEAST_TOKENS, answer_limits, ask_all
from alhena.evaluate.card import measure, print_report, report_card
from alhena.evaluate.held_out import held_out_card
from alhena.evaluate.results import Line
from alhena.files import read_json
from alhena.model import config, image_tokenizer
from alhena.model.weights import save_model
from alhena.serve.engine import OUTPUT_BUCKETS, Engine
from tests.conftest import picture, sound


@pytest.fixture(scope="module")
def folder(tiny, encoder, tmp_path_factory):
    """A model folder: random weights; it reads a second of sound."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, *tiny, {"name": "tiny"})
    replace(encoder, budget=replace(encoder.budget, audio_seconds=1)).save(folder)
    c = config.ImageTokenizer((4, 4), (4,), 16)
    image_tokenizer.save(folder, image_tokenizer.init(jax.random.key(0), c), c)
    return folder


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return Engine.load(folder)


def question(answer: str, *parts: Text | Image | Audio, task: str = "one", number: int = 0) -> Document:
    contents = Content("user", (*parts, Text("What colour?"))), Content("model", (Text(answer),))
    return Document(contents, f"{task}-{number}", "mine", facts={"task": task})


def test_the_limit_follows_from_the_longest_reference_of_a_task(encoder):
    poem = "Draw a blue star. What colour is the circle? red " * 20
    some = [question("red"), question("blue"), question(poem, task="poem"), question("a", task="poem")]
    limits = answer_limits(encoder, some)
    assert limits["one"] == LEAST_TOKENS
    assert limits["poem"] > len(encoder.tokenizer.encode(poem)) > 100
    assert answer_limits(encoder, [question("x" * 50_000)])["one"] == OUTPUT_BUCKETS[-1]
    drawn = Document((Content("user", (Text("Draw."),)), Content("model", (picture(0, 64, 64),))), "d", "drawing")
    assert answer_limits(encoder, [drawn])["drawing"] >= 64 + 4


def test_an_answer_at_the_limit_is_counted_as_cut(engine):
    """Random weights hardly ever end a turn within 32 tokens."""
    asked = ask_all({"tiny": engine}, [question("red", number=i) for i in range(4)])
    assert len(asked.answered) == 4
    for a in asked.answered:
        assert ("tiny" in a.cut) == ('"cut": ["tiny"]' in a.to_json())
    assert any(a.cut for a in asked.answered)


def test_one_bad_document_is_counted_and_the_others_are_measured(engine):
    """The answers are those that there would be without it."""
    good = [question("red", number=i) for i in range(3)]
    bad = question("red", sound(1, 3.0), number=9)
    broken = question("red", Image(b"\x89PNG\r\n\x1a\nnothing"), number=8)
    asked = ask_all({"tiny": engine}, [good[0], bad, good[1], broken, good[2]])
    assert [a.document.id for a in asked.answered] == ["one-0", "one-1", "one-2"]
    assert sorted(asked.not_asked.values()) == [1, 1]
    assert any("the sound lasts 3.0 s; this model reads at most 1 s" in reason for reason in asked.not_asked)
    alone = ask_all({"tiny": engine}, good)
    assert [a.answers for a in asked.answered] == [a.answers for a in alone.answered]


def test_the_held_out_card_has_intervals_chance_and_a_row_for_each_task(folder, tmp_path, capsys):
    texts = [
        Document((Content("document", (Text(f"{i} circles, {i * 7} stars;"),)),), f"t{i}", "prose") for i in range(3)
    ]
    drawn = Document((Content("user", (Text("Draw."),)), Content("model", (picture(0),))), "d", "drawing")
    sounds = Document((Content("document", (sound(2, 0.5),)),), "s", "sounds")
    some = [question("red" if i % 3 else "blue", task="one" if i % 2 else "two", number=i) for i in range(8)]
    long = question("red", sound(1, 3.0))
    write_documents(tmp_path / "data" / "part.parquet", [*some, *texts, drawn, sounds, long])
    held_out_card(tmp_path / "data", folder, tmp_path / "out")
    results = read_json(tmp_path / "out" / "results.json")
    assert (results["questions"], results["texts"], results["not_measured"]) == (8, 3, 3)
    assert set(results["not_measured_reasons"].values()) == {1}
    assert 0 <= results["exact_match"] < results["exact_match_chance"] == 62.5
    assert results["exact_match_interval"] > 0
    assert results["cut_answers"] > 0
    assert [line["name"] for line in results["lines"]] == ["all"] * 3 + ["one"] * 3 + ["two"] * 3 + ["all"]
    assert not results["lines"][0]["above_chance"]
    said = capsys.readouterr().out
    assert "✗ not above chance" in said
    assert "not measured: 1 × the right answer has no words" in said


def test_a_set_without_anything_to_measure_is_counted_too(folder, tmp_path):
    write_documents(tmp_path / "part.parquet", [question("red", sound(1, 3.0))])
    assert held_out_card(tmp_path, folder, tmp_path / "out")["not_measured"] == 1
    with pytest.raises(ValueError, match="no document that the report card has a row for"):
        report_card(tmp_path, {"tiny": folder}, tmp_path / "report")


def test_the_report_says_what_was_cut_off_and_not_asked(folder, tmp_path):
    some = [question("red" if i % 3 else "blue", task="translation", number=i) for i in range(4)]
    write_documents(tmp_path / "part.parquet", [*some, question("red", sound(1, 3.0), task="speech")])
    facts = report_card(tmp_path, {"tiny": folder}, tmp_path / "report")
    assert facts == {"rows": 2, "above_chance": 0, "not_asked": 1}
    results = read_json(tmp_path / "report" / "results.json")
    assert [line["name"] for line in results["lines"]] == ["translation", "translation, chrF"]
    assert results["lines"][0]["cut"]["tiny"] > 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "cut off" in page
    assert "Not asked: 1 × the sound lasts 3.0 s; this model reads at most 1 s." in page
    assert '<tr class="bad">' in page


def test_facts_of_a_starter_task_without_its_truth_are_no_error(engine):
    some = [replace(question("red", task=task), facts={"task": task}) for task in ("drawing/digit", "retrieval")]
    measured = measure({"tiny": engine}, some)
    assert len(measured.asked.answered) == 2
    print_report(measured.lines, {})


def test_intervals_cover_the_rate_of_the_population():
    """Of 300 samples of 60 items, about 95 % have an interval that holds the word error rate of all items."""
    rng = np.random.default_rng(0)
    references = [" ".join("word" for _ in range(n)) for n in rng.integers(1, 9, 3000)]
    said = [" ".join(w if rng.random() < 0.7 else "other" for w in r.split()) for r in references]
    rate, inside = metrics.word_errors(references, said), 0
    for _ in range(300):
        some = rng.integers(0, 3000, 60)
        r, a = [references[i] for i in some], [said[i] for i in some]
        half = metrics.interval(metrics.word_errors, r, a)
        inside += abs(metrics.word_errors(r, a) - rate) <= half
    assert 270 <= inside <= 297


def test_intervals_where_there_is_none():
    assert metrics.interval(metrics.chrf, ["a", "b"], ["a", "b"]) is None
    assert metrics.interval(metrics.word_errors, ["a"], ["b"]) is None
    assert metrics.interval(metrics.character_errors, ["ab", "cd"], ["ab", "cd"]) == 0
    assert Line("a", "b", "exact match %", False, 3, 50.0, {"m": 50.0}, None).above_chance is False
