"""Pages: running text with pictures, sounds and clips in between, as on the web.

[picture]  The picture shows a red circle.  The number forty seven sounds like this:  [recording]  and is written  [picture]
"""

from __future__ import annotations

import numpy as np

from alhena.content import Document, Part, Text
from alhena.corpus.starter.clips import moving_shape, video
from alhena.corpus.starter.digits import draw_string, is_held_out_string
from alhena.corpus.starter.figures import choose_pairs, place
from alhena.corpus.starter.items import Order, pick, pick_some, picture, running
from alhena.corpus.starter.scenes import caption, draw_scene
from alhena.corpus.starter.speech import in_words
from alhena.corpus.starter.splits import TRAIN_NUMBERS, Split
from alhena.corpus.starter.voices import recording
from alhena.corpus.starter.words import draw_word, random_word


def _about_a_scene(rng: np.random.Generator, split: Split) -> list[Part]:
    figures = place(rng, choose_pairs(rng, split, int(rng.integers(1, 3))), 64, 64, (14, 28))
    shown, words = picture(draw_scene(rng, figures, 64, 64)), caption(figures)
    return [shown, Text(f"The picture shows {words}.")]


def _about_a_number(rng: np.random.Generator, split: Split) -> list[Part]:
    written = [n for n in TRAIN_NUMBERS if not is_held_out_string(str(n))]
    number = pick(rng, written)
    words, sound = in_words(number, "en"), recording(rng, in_words(number, "en"))
    shown = picture(draw_string(rng, split, str(number)))
    return [Text(f"The number {words} is written"), shown, Text("and sounds like this:"), sound]


def _about_a_word(rng: np.random.Generator, split: Split) -> list[Part]:
    word = random_word(rng, split)
    return [picture(draw_word(rng, word)), Text(f"The sign says {word}.")]


def _about_a_move(rng: np.random.Generator, split: Split) -> list[Part]:
    frames, what = moving_shape(rng, split)
    return [video(frames), Text(f"In this clip a {what.name} moves {what.direction}.")]


def make(order: Order) -> Document:
    rng = order.rng
    sections = (_about_a_scene, _about_a_number, _about_a_word, _about_a_move)
    parts = [
        part for section in pick_some(rng, sections, int(rng.integers(2, 4))) for part in section(rng, order.split)
    ]
    return running(order, parts)
