"""Interleaved pages: text with images, audio and video clips, as on the web.

[image]  The picture shows a red circle.  The number forty seven is written  [image]  and sounds like this:  [audio]
"""

from __future__ import annotations

import numpy as np

from alhena.content import Document, Part, Text
from alhena.corpus.starter.audio.speech import number_words
from alhena.corpus.starter.audio.synthesis import random_recording
from alhena.corpus.starter.images.digits import draw_digits, is_held_out_string
from alhena.corpus.starter.images.figures import place_figures, sample_pairs
from alhena.corpus.starter.images.rendered_words import draw_word, random_word
from alhena.corpus.starter.images.scenes import caption, draw_scene
from alhena.corpus.starter.items import ItemSpec, pick, plain_document, png_image, sample
from alhena.corpus.starter.splits import TRAIN_NUMBERS, Split
from alhena.corpus.starter.video.clips import moving_shape, mp4_video


def _scene_section(rng: np.random.Generator, split: Split) -> list[Part]:
    """An image of one or two figures and its caption."""
    figures = place_figures(rng, sample_pairs(rng, split, int(rng.integers(1, 3))), 64, 64, (14, 28))
    image = png_image(draw_scene(rng, figures, 64, 64))
    return [image, Text(f"The picture shows {caption(figures)}.")]


def _number_section(rng: np.random.Generator, split: Split) -> list[Part]:
    """A number in words, as an image of digits, and as speech."""
    numbers = [n for n in TRAIN_NUMBERS if not is_held_out_string(str(n))]
    number = pick(rng, numbers)
    words = number_words(number, "en")
    audio = random_recording(rng, words)
    image = png_image(draw_digits(rng, split, str(number)))
    return [Text(f"The number {words} is written"), image, Text("and sounds like this:"), audio]


def _word_section(rng: np.random.Generator, split: Split) -> list[Part]:
    """An image of a word and its text."""
    word = random_word(rng, split)
    return [png_image(draw_word(rng, word)), Text(f"The sign says {word}.")]


def _motion_section(rng: np.random.Generator, split: Split) -> list[Part]:
    """A clip of a moving shape and its description."""
    frames, motion = moving_shape(rng, split)
    return [mp4_video(frames), Text(f"In this clip a {motion.name} moves {motion.direction}.")]


def make(spec: ItemSpec) -> Document:
    """Two or three sections in random order."""
    rng = spec.rng
    sections = (_scene_section, _number_section, _word_section, _motion_section)
    parts = [part for section in sample(rng, sections, int(rng.integers(2, 4))) for part in section(rng, spec.split)]
    return plain_document(spec, parts)
