"""Speech: recordings to transcribe, and spoken questions about an image.

speech   ▁▃▆▂▅▁  "Transcribe."                 forty seven
spoken   [scene] ▂▅▇▃▁▆▂  (no text at all)     red              "what colour is on the left", as audio
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from alhena.content import Content, Document, Text
from alhena.corpus.starter.audio.synthesis import random_recording
from alhena.corpus.starter.images.figures import Figure
from alhena.corpus.starter.images.scenes import count_turn, draw_scene, naming_turns, random_scene
from alhena.corpus.starter.items import ItemSpec, Turn, chat, pick, png_image
from alhena.corpus.starter.splits import (
    COLORS,
    HELD_OUT_NUMBERS,
    HELD_OUT_PAIRS,
    SHAPES,
    TRAIN_NUMBERS,
    TRAIN_PAIRS,
    Split,
)

OTHER_LANGUAGES = ("de", "es", "fr")
# Of a number with silence around it, in seconds.
LONGEST = 2.5


@lru_cache(maxsize=1024)
def number_words(number: int, language: str) -> str:
    """The spoken form of a number, in lower case without hyphens.

    >>> number_words(47, "en"), number_words(47, "de")
    ('forty seven', 'siebenundvierzig')
    """
    from num2words import num2words

    return num2words(number, lang=language).lower().replace("-", " ")


def random_number(rng: np.random.Generator, split: Split) -> int:
    """A number from 0 to 99: held-out numbers in the test; elsewhere a single digit with a probability of at least 0.3."""
    if split == "test":
        return pick(rng, HELD_OUT_NUMBERS)
    return int(rng.integers(10)) if rng.random() < 0.3 else pick(rng, TRAIN_NUMBERS)


def random_command(rng: np.random.Generator, split: Split) -> str:
    """A request in words; in the test, one that names a held-out pair."""
    color, shape = pick(rng, HELD_OUT_PAIRS if split == "test" else TRAIN_PAIRS)
    requests = [f"draw a{'n' if color == 'orange' else ''} {color} {shape}"]
    # These combine nothing, so they cannot be held out.
    if split != "test":
        requests += [f"what colour is the {pick(rng, SHAPES)}", f"what shape is {pick(rng, tuple(COLORS))}"]
        requests += ["how many shapes are there", f"draw the digit {number_words(int(rng.integers(10)), 'en')}"]
    return pick(rng, requests)


def make_speech(spec: ItemSpec) -> Document:
    """A recording of a number or of a command, to transcribe."""
    rng = spec.rng
    language = "en" if rng.random() < 0.6 else pick(rng, OTHER_LANGUAGES)
    if language == "en" and rng.random() < 0.3:
        words = random_command(rng, spec.split)
    else:
        words = number_words(random_number(rng, spec.split), language)
    # In training one in four has silence around it, up to what two chunks of the starter's audio encoder hold.
    seconds = rng.uniform(1, LONGEST) if spec.split != "test" and rng.random() < 0.25 else 0.0
    audio = random_recording(rng, words, language, seconds)
    return chat(spec, [audio], [("Transcribe.", words)], language, words=words)


def _spoken_turns(spec: ItemSpec, figures: list[Figure]) -> list[Turn]:
    """Questions about a scene that can be spoken; in the test, those for held-out pairs."""
    turns = naming_turns(figures, "colour") + naming_turns(figures, "shape")
    if spec.split == "test":
        return [turn for f, turn in turns if f.pair in HELD_OUT_PAIRS]
    return [turn for _, turn in turns] + [count_turn(figures)]


def make_spoken(spec: ItemSpec) -> Document:
    """A scene and a spoken question about it, without text in the user turn."""
    rng = spec.rng
    turns: list[Turn] = []
    while not turns:
        figures, width, height = random_scene(rng, spec.split)
        turns = _spoken_turns(spec, figures)
    question, answer = pick(rng, turns)
    words = question.lower().rstrip("?")
    audio = random_recording(rng, words)
    user = Content("user", (png_image(draw_scene(rng, figures, width, height)), audio))
    facts = {"task": spec.task, "words": words, "figures": [f.name for f in figures]}
    return Document((user, Content("model", (Text(answer),))), spec.id, spec.source, "en", facts)
