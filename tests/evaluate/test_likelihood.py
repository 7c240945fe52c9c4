"""Log-likelihoods are those of the reference implementation, alone and in a batch; completions are those of the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alhena.cli.weights import Import
from alhena.content import Content, Text
from alhena.evaluate.models import likelihood
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Completed, Completion, Continuation, Likelihood, Prompt
from alhena.evaluate.models.likelihood import Scorer
from alhena.files import read_json
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Engine
from tests.conftest import random_image
from tests.serve.imported_models import write_source

GOLDEN = read_json(Path(__file__).parent / "golden" / "likelihoods.json")
PAIRS, BEST = GOLDEN[:-1], GOLDEN[-1]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    folder = tmp_path_factory.mktemp("models")
    Import(write_source("gemma3_text", folder / "source"), folder / "model", "float32")()
    engine = Engine.load(folder / "model")
    # As the reference computes.
    return replace(engine, config=replace(engine.config, compute_dtype="float32"))


def prompt(text: str) -> Prompt:
    return (Text(text),) if text else ()


def test_log_likelihoods_are_those_of_transformers(engine):
    """Contexts with a common beginning of more than a page, spaces at the end of a context, no context, a long one."""
    results = EngineModel(engine, turns=False).log_likelihoods([Continuation(prompt(c), t) for c, t, *_ in PAIRS])
    for result, (_, _, nats, tokens, greedy) in zip(results, PAIRS, strict=True):
        assert isinstance(result, Likelihood)
        assert result.nats == pytest.approx(nats, abs=2e-4)
        assert (result.tokens, result.is_greedy) == (tokens, greedy)


def test_the_greedy_continuation_is_known_as_such(engine):
    model = EngineModel(engine, turns=False)
    context = [*model.beginning(), *engine.encoder.tokenizer.encode(BEST["context"])]
    best, other = model.score([(context, [BEST["token"]]), (context, [BEST["token"] - 1])])
    assert best.nats == pytest.approx(BEST["nats"], abs=1e-4)
    assert (best.is_greedy, other.is_greedy) == (True, False)


def test_a_batch_gives_what_each_request_gives_alone(engine, monkeypatch):
    """Whatever the size of a batch: the beginning is shared, pieces are short, and a second call uses pages of the first.

    Contexts have several continuations too: of one token, of several with the same first ones, and of more tokens than the context.
    """
    model = EngineModel(engine, turns=False)
    pairs = [(c, t) for c, t, *_ in PAIRS]
    pairs += [(c, t + end) for c, t, *_ in PAIRS for end in (" eats", " eats grass", " and the other lambs " * 9)]
    requests = [model.tokens_of(Continuation(prompt(c), t)) for c, t in pairs]
    requests += [(context[:length], context[length:]) for context, _ in requests[-3:] for length in (1, 9)]
    monkeypatch.setattr(likelihood, "PIECES", (32,))
    scorer = Scorer(engine.params, engine.config, 1)
    alone = [scorer([request])[0].nats for request in requests]
    scorer = Scorer(engine.params, engine.config, 4)
    for _ in range(2):
        assert [result.nats for result in scorer(requests)] == pytest.approx(alone, abs=1e-4, rel=1e-6)


def test_what_cannot_be_scored_has_a_reason_and_the_others_a_score(engine):
    model = EngineModel(engine)
    requests = [
        Continuation(prompt("the lamb"), " "),
        Continuation(prompt("the lamb " * 400), "eats"),
        Continuation((random_image(1), Text("the lamb")), "eats"),
        Continuation(prompt("the lamb"), "eats"),
    ]
    *reasons, good = model.log_likelihoods(requests)
    assert isinstance(good, Likelihood)
    for reason, expected in zip(reasons, ("no text", "at most", "no vision encoder"), strict=True):
        assert isinstance(reason, str)
        assert expected in reason


def test_completions_are_those_of_the_engine_and_depend_on_no_other(engine):
    model, texts = EngineModel(engine), [f"{'the lambs eat. ' * 12}{n}?" for n in range(5)]
    requests = [Completion(prompt(text), 12, seed=n, temperature=0.5 * (n % 2)) for n, text in enumerate(texts)]
    requests.append(Completion(prompt("x " * 2000), 4))
    *together, reason = model.complete(requests)
    assert isinstance(reason, str)
    assert "at most" in reason
    answers = engine.generate(
        [[Content("user", prompt(text))] for text in texts],
        [Sampling(max_tokens=12, seed=n, temperature=0.5 * (n % 2)) for n in range(5)],
    )
    for completed, answer in zip(together, answers, strict=True):
        text = "".join(part.text for part in answer.content.parts if isinstance(part, Text))
        assert completed == Completed(text, answer.answer_tokens, answer.finish == "length")
    assert engine.batch.pages.fits([0] * len(engine.batch.pages.pools))
    assert not engine.batch.pages._pins
