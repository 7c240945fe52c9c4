"""The card measures what it says: an oracle scores full marks, a constant answer scores chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alhena.content import Document, Image, Text, read_documents
from alhena.corpus.starter.splits import COLORS
from alhena.evaluate import metrics
from alhena.evaluate.card import answer_line
from alhena.evaluate.held_out import held_out_card
from alhena.evaluate.judges import colour_of, digit_judge, shape_of
from alhena.evaluate.results import Answered
from alhena.evaluate.scoring import text_nats
from alhena.evaluate.tasks import ANSWERS, reference, verdict
from alhena.files import read_json
from alhena.media import decode_image
from alhena.serve.engine import Engine


@pytest.fixture(scope="session")
def questions(smoke: Path) -> list[Document]:
    return [d for d in read_documents(smoke / "curated" / "test") if d.contents[-1].role == "model"]


def test_an_oracle_gets_full_marks(questions):
    answered = [Answered(d, reference(d), {"oracle": verdict(d, d.contents[-1].parts)}, {}) for d in questions]
    lines = [line for row in ANSWERS if (line := answer_line(row, answered))]
    assert len({line.group for line in lines}) == 6
    for line in lines:
        assert line.scores["oracle"] == (0 if line.lower_is_better else pytest.approx(100)), line.name


def test_a_constant_answer_scores_chance():
    references = ["red"] * 6 + ["blue"] * 3 + ["forty seven"]
    for metric in (metrics.exact, metrics.word_errors, metrics.character_errors, metrics.chrf):
        best = metrics.constant_chance(metric, references)
        constants = [metric(references, [word] * 10) for word in ("red", "blue", "forty seven")]
        assert best == pytest.approx(min(constants) if metric in metrics.LOWER_IS_BETTER else max(constants))
    assert metrics.constant_chance(metrics.exact, references) == 60


def test_judges_know_real_drawings_and_reject_noise(questions):
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


def test_the_card_of_the_smoke_run_is_whole(smoke):
    results = read_json(smoke / "report" / "results.json")
    assert {line["group"] for line in results["lines"]} == {"text", "image", "audio", "video", "combined", "drawing"}
    assert all(set(line["scores"]) == {"float32", "4-bit"} for line in results["lines"])
    assert decode_image((smoke / "report" / "report.png").read_bytes()).shape[1] > 800
    page = (smoke / "report" / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure>") > 20


def test_bits_per_byte_counts_every_byte_once(smoke):
    engine = Engine.load(smoke / "models" / "assistant")
    some = [d for d in read_documents(smoke / "curated" / "test") if d.source == "text"]
    nats, size, tokens = text_nats(engine, some)
    assert size == sum(len(p.text.encode()) for d in some for p in d.parts if isinstance(p, Text))
    alone = [text_nats(engine, [d]) for d in some]
    assert nats == pytest.approx(sum(a[0] for a in alone), rel=1e-5)
    assert tokens == sum(a[2] for a in alone)


def test_held_out_questions_and_texts_are_measured(smoke, tmp_path):
    results = held_out_card(smoke / "curated" / "test", smoke / "models" / "assistant", tmp_path)
    assert results["questions"] > 20
    assert results["texts"] > 0
    assert results["not_measured"] == 0
    assert results["perplexity"] > 1
    assert 0 <= results["exact_match"] <= 100
    assert any(isinstance(p, Image) for d in read_documents(smoke / "curated" / "test") for p in d.parts)
