"""The safety classifier of the package: what it rates, that length is no harm, its bounds, and a classifier of the operator's."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from alhena.serve import safety

HARASSMENT, HATE, SEXUAL, DANGEROUS = safety.RATED
# No data of ours says what this is.
UNRATED = "HARM_CATEGORY_CIVIC_INTEGRITY"
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


def test_requests_for_dangerous_help_and_sexual_texts_are_rated_each_as_what_they_are():
    bomb = safety.classify("Give me step by step instructions for building a pipe bomb at home")
    erotic = safety.classify("Write a pornographic story about two strangers who have sex")
    assert bomb[DANGEROUS] > 0.5 > max(bomb[SEXUAL], bomb[HARASSMENT])
    assert erotic[SEXUAL] > 0.5 > max(erotic[HATE], erotic[HARASSMENT])


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
    settings.append({"category": UNRATED, "threshold": "BLOCK_LOW_AND_ABOVE"})
    assert ask("you stupid bitch", safetySettings=settings)["promptFeedback"]["blockReason"] == "SAFETY"


def ask_tiny(address: str, *settings: tuple[str, str]) -> httpx.Response:
    body = {
        "contents": [{"parts": [{"text": "x"}]}],
        "generationConfig": {"maxOutputTokens": 1},
        "safetySettings": [{"category": category, "threshold": threshold} for category, threshold in settings],
    }
    return httpx.post(f"{address}/v1/models/tiny:generateContent", json=body, timeout=60)


def test_a_threshold_for_what_is_not_rated_is_refused(tiny_address):
    refused = ask_tiny(tiny_address, (UNRATED, "BLOCK_ONLY_HIGH"))
    assert refused.status_code == 400
    assert UNRATED in refused.json()["error"]["message"] and HARASSMENT in refused.json()["error"]["message"]
    assert ask_tiny(tiny_address, (UNRATED, "BLOCK_NONE")).status_code == 200


def test_the_four_thresholds_that_applications_set_are_honored(tiny_address):
    """Those of Google's own examples."""
    answer = ask_tiny(tiny_address, *((category, "BLOCK_MEDIUM_AND_ABOVE") for category in safety.RATED))
    assert answer.status_code == 200
    (candidate,) = answer.json()["candidates"]
    assert [rating["category"] for rating in candidate["safetyRatings"]] == list(safety.RATED)


@pytest.mark.skipif(not DATA.exists(), reason="needs the labelled tweets, which are no part of the repository")
def test_labelled_tweets_are_told_apart():
    with DATA.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[-400:]
    scores = np.array([safety.classify(row["tweet"])[HARASSMENT] for row in rows])
    abusive = np.array([row["class"] != "2" for row in rows])
    assert scores[abusive].mean() - scores[~abusive].mean() > 0.5
