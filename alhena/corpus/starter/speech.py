"""Speech: recordings to transcribe, and spoken questions about a picture.

speech   ▁▃▆▂▅▁  "Transcribe."                 forty seven
spoken   [scene] ▂▅▇▃▁▆▂  (no text at all)     red              "what colour is on the left", asked aloud
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from alhena.content import Audio, Content, Document, Text
from alhena.corpus.starter.figures import Figure
from alhena.corpus.starter.items import Order, Turn, chat, pick, picture
from alhena.corpus.starter.scenes import count_turn, draw_scene, naming_turns, random_scene
from alhena.corpus.starter.splits import (
    COLOURS,
    HELD_OUT_NUMBERS,
    HELD_OUT_PAIRS,
    SHAPES,
    TRAIN_NUMBERS,
    TRAIN_PAIRS,
    Split,
)
from alhena.corpus.starter.voices import recording

OTHER_LANGUAGES = ("de", "es", "fr")


@lru_cache(maxsize=1024)
def in_words(number: int, language: str) -> str:
    """A number as one says it, lower case, no hyphens.

    >>> in_words(47, "en"), in_words(47, "de")
    ('forty seven', 'siebenundvierzig')
    """
    from num2words import num2words

    return num2words(number, lang=language).lower().replace("-", " ")


def random_number(rng: np.random.Generator, split: Split) -> int:
    """Single digits come more often than their share; the test asks only for numbers never heard in training."""
    if split == "test":
        return pick(rng, HELD_OUT_NUMBERS)
    return int(rng.integers(10)) if rng.random() < 0.3 else pick(rng, TRAIN_NUMBERS)


def random_command(rng: np.random.Generator, split: Split) -> str:
    colour, shape = pick(rng, HELD_OUT_PAIRS if split == "test" else TRAIN_PAIRS)
    requests = [f"draw a{'n' if colour == 'orange' else ''} {colour} {shape}"]
    if split != "test":  # these combine nothing, so they cannot be held out
        requests += [f"what colour is the {pick(rng, SHAPES)}", f"what shape is {pick(rng, tuple(COLOURS))}"]
        requests += ["how many shapes are there", f"draw the digit {in_words(int(rng.integers(10)), 'en')}"]
    return pick(rng, requests)


def make_speech(order: Order) -> Document:
    rng = order.rng
    language = "en" if rng.random() < 0.6 else pick(rng, OTHER_LANGUAGES)
    if language == "en" and rng.random() < 0.3:
        words = random_command(rng, order.split)
    else:
        words = in_words(random_number(rng, order.split), language)
    sound = recording(rng, words, language)
    return chat(order, [sound], [("Transcribe.", words)], language, words=words)


def _questions(order: Order, figures: list[Figure]) -> list[Turn]:
    turns = naming_turns(figures, "colour") + naming_turns(figures, "shape")
    if order.split == "test":
        return [turn for f, turn in turns if f.pair in HELD_OUT_PAIRS]
    return [turn for _, turn in turns] + [count_turn(figures)]


def make_spoken(order: Order) -> Document:
    rng = order.rng
    turns: list[Turn] = []
    while not turns:
        figures, width, height = random_scene(rng, order.split)
        turns = _questions(order, figures)
    question, answer = pick(rng, turns)
    words = question.lower().rstrip("?")
    sound: Audio = recording(rng, words)
    asked = Content("user", (picture(draw_scene(rng, figures, width, height)), sound))
    facts = {"task": order.task, "words": words, "figures": [f.name for f in figures]}
    return Document((asked, Content("model", (Text(answer),))), order.id, order.source, "en", facts)
