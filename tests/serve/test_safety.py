"""The safety classifier of the package: what it rates, that length is no harm, its bounds, and a classifier of the operator's."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from alhena.serve import safety

HARASSMENT, HATE = safety.RATED
CALM = (
    "What is the capital of Switzerland, and how do I get there by train?",
    "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
    "The patient was given 20 mg; kill the process with Ctrl-C, then execute the child.",
    "Wie spät ist es? Il fait beau aujourd'hui.",
    "",
)
DATA = Path(__file__).parents[3] / "shared" / "data" / "safety" / "labelled_tweets.csv"


@pytest.mark.parametrize("text", CALM)
def test_calm_texts_are_negligible(text):
    assert max(safety.classify(text).values()) < 0.2


def test_insults_are_rated_and_hate_speech_more_so():
    insult = safety.classify("shut up you dumb bitch, nobody likes you")
    hate = safety.classify("all faggots are disgusting and should be deported")
    assert insult[HARASSMENT] > 0.5 and hate[HARASSMENT] > 0.5
    assert hate[HATE] > 0.5 > insult[HATE]


def test_a_long_text_is_rated_as_its_worst_part():
    calm, insult = "This is a calm sentence about the weather. " * 300, "shut up you dumb bitch, nobody likes you "
    assert safety.classify(calm)[HARASSMENT] < 0.2
    assert safety.classify(calm + insult + calm)[HARASSMENT] > 0.5


def test_a_book_takes_seconds():
    began = time.process_time()
    safety.classify("ab " * (1 << 14) + "x" * (1 << 19))
    assert time.process_time() - began < 10


def test_the_weights_are_small_and_survive_saving(tmp_path):
    assert safety.WEIGHTS.stat().st_size < 1 << 20
    weights = safety.Weights.load()
    weights.save(tmp_path / "again.npz")
    assert np.array_equal(safety.Weights.load(tmp_path / "again.npz").weights, weights.weights)


def test_words_that_are_stretched_or_in_other_letters_are_the_same():
    assert safety.words("YOU ｉｄｉｏｔ!!") == ["you", "idiot"]
    assert safety.words("soooooo") == safety.words("soo")


def test_a_classifier_of_the_operator(monkeypatch):
    assert safety.load_classifier("alhena.serve.safety:classify") is safety.classify
    for name in (
        "alhena.serve.safety",
        "alhena.serve.safety:absent",
        "no.such.module:f",
        "alhena.serve.safety:BUCKETS",
    ):
        with pytest.raises(ValueError, match="--safety"):
            safety.load_classifier(name)


def test_a_server_blocks_what_is_rated(gemini_server):
    gemini_server.otherwise("shut up you dumb bitch, nobody likes you")
    settings = [{"category": HARASSMENT, "threshold": "BLOCK_MEDIUM_AND_ABOVE"}]
    url = f"{gemini_server.url}/v1/models/m:generateContent"

    def ask(text: str, **more) -> dict:
        return httpx.post(url, json={"contents": [{"parts": [{"text": text}]}]} | more).json()

    assert ask("Hello")["candidates"][0]["finishReason"] == "STOP"
    assert ask("Hello", safetySettings=settings)["candidates"][0]["finishReason"] == "SAFETY"
    assert ask("you stupid bitch", safetySettings=settings)["promptFeedback"]["blockReason"] == "SAFETY"
    # An application under test may set a threshold for every category.
    settings.append({"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "threshold": "BLOCK_LOW_AND_ABOVE"})
    assert ask("you stupid bitch", safetySettings=settings)["promptFeedback"]["blockReason"] == "SAFETY"


@pytest.mark.parametrize("category", ["HARM_CATEGORY_DANGEROUS_CONTENT", "HARM_CATEGORY_SEXUALLY_EXPLICIT"])
def test_a_threshold_for_what_is_not_rated_is_refused(tiny_address, category):
    def ask(threshold: str) -> httpx.Response:
        body = {
            "contents": [{"parts": [{"text": "x"}]}],
            "generationConfig": {"maxOutputTokens": 1},
            "safetySettings": [{"category": category, "threshold": threshold}],
        }
        return httpx.post(f"{tiny_address}/v1/models/tiny:generateContent", json=body, timeout=60)

    refused = ask("BLOCK_ONLY_HIGH")
    assert refused.status_code == 400
    assert category in refused.json()["error"]["message"] and HARASSMENT in refused.json()["error"]["message"]
    assert ask("BLOCK_NONE").status_code == 200


@pytest.mark.skipif(not DATA.exists(), reason="needs the labelled tweets, which are no part of the repository")
def test_labelled_tweets_are_told_apart():
    with DATA.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[-400:]
    scores = np.array([safety.classify(row["tweet"])[HARASSMENT] for row in rows])
    abusive = np.array([row["class"] != "2" for row in rows])
    assert scores[abusive].mean() - scores[~abusive].mean() > 0.5
