"""Scores of known answers: an oracle has a perfect score, a constant answer the chance level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alhena.content import Document, Image
from alhena.corpus.starter.splits import COLORS
from alhena.documents import read_documents
from alhena.evaluate import metrics
from alhena.evaluate.evaluation import answer_row
from alhena.evaluate.held_out import evaluate_held_out
from alhena.evaluate.judges import colour_of, digit_judge, shape_of
from alhena.evaluate.results import AnsweredQuestion
from alhena.evaluate.scoring import text_losses
from alhena.evaluate.tasks.starter import TASK_METRICS, predicted_answer, reference
from alhena.files import read_json
from alhena.media import decode_image
from alhena.serve.engine import Engine


@pytest.fixture(scope="session")
def questions(smoke: Path) -> list[Document]:
    return [d for d in read_documents(smoke / "curated" / "test") if d.contents[-1].role == "model"]


def test_an_oracle_has_a_perfect_score(questions):
    answered = [
        AnsweredQuestion(d, reference(d), {"oracle": predicted_answer(d, d.contents[-1].parts)}, {}) for d in questions
    ]
    rows = [row for task in TASK_METRICS if (row := answer_row(task, answered))]
    assert len({row.section for row in rows}) == 9
    for row in rows:
        assert row.scores["oracle"] == (0 if row.lower_is_better else pytest.approx(100)), row.name


def test_a_constant_answer_scores_chance():
    references = ["red"] * 6 + ["blue"] * 3 + ["forty seven"]
    for metric in (metrics.exact_match, metrics.word_error_rate, metrics.character_error_rate, metrics.chrf):
        best = metrics.constant_chance(metric, references)
        constants = [metric(references, [word] * 10) for word in ("red", "blue", "forty seven")]
        assert best == pytest.approx(min(constants) if metric in metrics.LOWER_IS_BETTER else max(constants))
    assert metrics.constant_chance(metrics.exact_match, references) == 60


def test_judges_recognize_reference_images_and_reject_noise(questions):
    assert digit_judge()[1] > 97
    for document in questions:
        if document.facts["task"] == "drawing/shape":
            pixels = decode_image(document.contents[-1].parts[0].data)
            assert (colour_of(pixels, dict(COLORS)), shape_of(pixels)) == (
                document.facts["colour"],
                document.facts["shape"],
            )
    noise = np.where(np.random.default_rng(0).random((32, 32, 1)) < 0.3, 0, 255).repeat(3, 2).astype(np.uint8)
    assert shape_of(noise) is None
    assert shape_of(np.full((32, 32, 3), 255, np.uint8)) is None


def test_the_report_of_the_smoke_run_is_complete(smoke):
    results = read_json(smoke / "report" / "results.json")
    assert {row["section"] for row in results["rows"]} == {
        "text", "code", "mathematics", "multilingual", "long context", "tools", "image", "audio", "video", "combinations", "image generation",
    }  # fmt: skip
    assert all(set(row["scores"]) == {"assistant", "nano"} for row in results["rows"])
    assert decode_image((smoke / "report" / "report.png").read_bytes()).shape[1] > 800
    page = (smoke / "report" / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure>") > 20


def test_bits_per_byte_counts_every_byte_once(smoke):
    engine = Engine.load(smoke / "models" / "assistant")
    texts = [d for d in read_documents(smoke / "curated" / "test") if d.source == "text"]
    together = text_losses(engine, texts)
    assert [one.size for one in together] == [sum(len(p.text.encode()) for p in d.parts) for d in texts]
    for loss, document in zip(together[:8], texts, strict=False):
        (alone,) = text_losses(engine, [document])
        assert (loss.tokens, loss.nats) == (alone.tokens, pytest.approx(alone.nats, rel=1e-5))


def test_held_out_questions_and_texts_are_measured(smoke, tmp_path):
    results = evaluate_held_out(smoke / "curated" / "test", smoke / "models" / "assistant", tmp_path)
    assert results["questions"] > 20
    assert results["texts"] > 0
    assert results["not_measured"] == 0
    assert results["perplexity"] > 1
    assert 0 <= results["exact_match"] <= 100
    assert any(isinstance(p, Image) for d in read_documents(smoke / "curated" / "test") for p in d.parts)
