"""Questions to a small random model: limits follow from references; skipped questions and truncated answers are counted."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from alhena.content import Audio, Content, Document, Image, Text
from alhena.documents import write_documents
from alhena.evaluate import metrics
from alhena.evaluate.answers import MIN_TOKENS, answer_limits, answer_questions
from alhena.evaluate.evaluation import evaluate, evaluate_models, print_report
from alhena.evaluate.held_out import evaluate_held_out
from alhena.evaluate.measure import Measure, Scored, interval_of, score_of
from alhena.evaluate.results import ReportRow
from alhena.evaluate.tasks.starter import WER
from alhena.files import read_json
from alhena.model import config, image_tokenizer
from alhena.model.storage.weights import save_model
from alhena.serve.decoding import buckets
from alhena.serve.engine import Engine
from tests.conftest import random_audio, random_image


@pytest.fixture(scope="module")
def folder(tiny, encoder, tmp_path_factory):
    """A model folder: random weights; it reads a second of audio."""
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
    documents = [question("red"), question("blue"), question(poem, task="poem"), question("a", task="poem")]
    limits = answer_limits(encoder, documents)
    assert limits["one"] == MIN_TOKENS
    assert limits["poem"] > len(encoder.tokenizer.encode(poem)) > 100
    assert answer_limits(encoder, [question("x" * 50_000)])["one"] == buckets.OUTPUTS[-1]
    image = Document((Content("user", (Text("Draw."),)), Content("model", (random_image(0, 64, 64),))), "d", "drawing")
    assert answer_limits(encoder, [image])["drawing"] >= 64 + 4


def test_an_answer_at_the_limit_is_counted_as_truncated(engine):
    """Random weights hardly ever end a turn within 32 tokens."""
    answers = answer_questions({"tiny": engine}, [question("red", number=i) for i in range(4)])
    assert len(answers.questions) == 4
    for a in answers.questions:
        assert ("tiny" in a.truncated) == (a.to_json()["truncated"] == ["tiny"])
    assert any(a.truncated for a in answers.questions)


def test_one_bad_document_is_counted_and_the_others_are_measured(engine):
    """The answers are the same as without it."""
    good = [question("red", number=i) for i in range(3)]
    bad = question("red", random_audio(1, 3.0), number=9)
    broken = question("red", Image(b"\x89PNG\r\n\x1a\nnothing"), number=8)
    answers = answer_questions({"tiny": engine}, [good[0], bad, good[1], broken, good[2]])
    assert [a.document.id for a in answers.questions] == ["one-0", "one-1", "one-2"]
    assert sorted(answers.skipped.values()) == [1, 1]
    assert any("the audio lasts 3.0 s; this model reads at most 1 s" in reason for reason in answers.skipped)
    alone = answer_questions({"tiny": engine}, good)
    assert [a.answers for a in answers.questions] == [a.answers for a in alone.questions]


def test_a_held_out_evaluation_has_intervals_chance_levels_and_a_row_for_each_task(folder, tmp_path, capsys):
    texts = [
        Document((Content("document", (Text(f"{i} circles, {i * 7} stars;"),)),), f"t{i}", "prose") for i in range(3)
    ]
    image = Document((Content("user", (Text("Draw."),)), Content("model", (random_image(0),))), "d", "drawing")
    audio = Document((Content("document", (random_audio(2, 0.5),)),), "s", "sounds")
    questions = [question("red" if i % 3 else "blue", task="one" if i % 2 else "two", number=i) for i in range(8)]
    long = question("red", random_audio(1, 3.0))
    write_documents(tmp_path / "data" / "part.parquet", [*questions, *texts, image, audio, long])
    evaluate_held_out(tmp_path / "data", folder, tmp_path / "out")
    results = read_json(tmp_path / "out" / "results.json")
    assert (results["questions"], results["texts"], results["not_measured"]) == (8, 3, 3)
    assert set(results["skipped"].values()) == {1}
    assert 0 <= results["exact_match"] < results["exact_match_chance"] == 62.5
    low, high = results["exact_match_interval"]
    assert low <= results["exact_match"] < high
    assert results["truncated_answers"] > 0
    assert [row["name"] for row in results["rows"]] == ["all"] * 3 + ["one"] * 3 + ["two"] * 3 + ["all"]
    printed = capsys.readouterr().out
    assert "✗ not above chance" in printed
    assert "not measured: 1 × the reference answer has no words" in printed


def test_a_split_without_anything_to_measure(folder, tmp_path):
    write_documents(tmp_path / "part.parquet", [question("red", random_audio(1, 3.0))])
    assert evaluate_held_out(tmp_path, folder, tmp_path / "out")["not_measured"] == 1
    with pytest.raises(ValueError, match="no document belongs to a task of the report"):
        evaluate_models(tmp_path, {"tiny": folder}, tmp_path / "report")


def test_the_report_counts_truncated_answers_and_skipped_questions(folder, tmp_path):
    questions = [question("red" if i % 3 else "blue", task="translation", number=i) for i in range(4)]
    write_documents(tmp_path / "part.parquet", [*questions, question("red", random_audio(1, 3.0), task="speech")])
    facts = evaluate_models(tmp_path, {"tiny": folder}, tmp_path / "report")
    # The question, and three needles in recordings of two seconds.
    assert facts == {"rows": 2, "above_chance": 0, "skipped": 1 + 3}
    results = read_json(tmp_path / "report" / "results.json")
    assert [row["name"] for row in results["rows"]] == ["translation", "translation, chrF"]
    assert results["rows"][0]["truncated"]["tiny"] > 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"✂ {results['rows'][0]['truncated']['tiny']}" in page
    assert "not measured: 1 × the audio lasts 3.0 s; this model reads at most 1 s" in page
    assert "not measured: 3 × the audio lasts 2.0 s; this model reads at most 1 s" in page
    assert "chance</em>" in page


def test_facts_of_a_starter_task_without_its_reference_are_no_error(engine):
    documents = [replace(question("red", task=task), facts={"task": task}) for task in ("drawing/digit", "retrieval")]
    evaluation = evaluate({"tiny": engine}, documents)
    assert len(evaluation.answers.questions) == 2
    print_report(evaluation.rows, {})


def test_intervals_cover_the_error_rate_of_the_population():
    """Of 120 samples of 60 items, about 95 % have an interval that holds the word error rate of all items."""
    rng = np.random.default_rng(0)
    references = [" ".join("word" for _ in range(n)) for n in rng.integers(1, 9, 3000)]
    answers = [" ".join(w if rng.random() < 0.7 else "other" for w in r.split()) for r in references]
    rate, inside = metrics.word_error_rate(references, answers), 0
    for seed in range(120):
        sample = rng.integers(0, 3000, 60)
        scored = [
            Scored(str(i), *metrics.item_score(metrics.word_error_rate, references[i], answers[i])) for i in sample
        ]
        low, high = interval_of(Measure(WER, True), scored, seed)
        inside += low <= rate <= high
        whole = metrics.word_error_rate([references[i] for i in sample], [answers[i] for i in sample])
        assert score_of(Measure(WER, True), scored) == pytest.approx(whole)
    assert 106 <= inside <= 119


def test_intervals_of_few_items_and_of_perfect_answers():
    assert interval_of(Measure(WER, True), [Scored("1", 0.5)]) is None
    assert interval_of(Measure(WER, True), [Scored("1", 0.0, 2), Scored("2", 0.0, 3)]) == (0, 0)
    assert ReportRow("text", "b", "exact match %", False, 3, 50.0, {"m": 50.0}).above_chance is False
    with pytest.raises(ValueError, match="no section 'test'"):
        ReportRow("test", "b", "exact match %", False, 3, 50.0, {})
