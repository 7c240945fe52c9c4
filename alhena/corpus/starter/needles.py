"""Needles in long media: a number that is spoken once in a long recording, a digit that one of many frames of a video shows.

    ▁▁▁▁▁▁▁▂▅▇▃▁▁▁▁▁▁▁▁▁▁▁▁▁    "Transcribe."                        forty seven
    3 3 3 3 3 3 3 7 3 3 3 3 3    "Which digits appear, in order?"     3 7 3

In training they are of random lengths, with the needle anywhere; an evaluation has those that it asks for (alhena/evaluate/context/).
Its numbers and scans of digits are held out from training. A model that reads media of a limited length gets a longer one in several
clips. ``facts`` holds length, depth, and where the needle is: the second at which it begins, or the frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from alhena.content import Audio, Document, Part
from alhena.corpus.starter.audio.speech import number_words, random_number
from alhena.corpus.starter.audio.synthesis import degrade, random_voice, synthesize, unload
from alhena.corpus.starter.images.digits import SIDE, render_digit, to_gray
from alhena.corpus.starter.items import ItemSpec, chat
from alhena.corpus.starter.splits import HELD_OUT_NUMBERS, is_held_out_string
from alhena.corpus.starter.video.clips import FRAMES, mp4_video
from alhena.media import SAMPLE_RATE, encode_audio

Medium = Literal["audio", "video"]
UNITS: dict[Medium, str] = {"audio": "seconds", "video": "frames"}
# Every spoken number is shorter; and a frame beside that of the needle.
SHORTEST: dict[Medium, int] = {"audio": 2, "video": 2}
# In training: the longest, and the clips in which they are given.
LONGEST: dict[Medium, int] = {"audio": 30, "video": 24}
CLIPS: dict[Medium, int] = {"audio": 30, "video": FRAMES}
BACKGROUND, FOREGROUND = 250, 20


@dataclass(frozen=True)
class Haystack:
    """A medium of ``length`` seconds or frames with a needle at a depth (0: at the beginning, 1: at the end).

    ``clip`` is the length of the longest clip that is read at once.
    """

    medium: Medium
    length: int
    depth: float
    clip: float


def edges(length: int, clip: int) -> list[int]:
    """Where clips of about equal lengths, none longer than ``clip``, begin and end.

    >>> edges(10, 4), edges(10, 10)
    ([0, 3, 6, 10], [0, 10])
    """
    count = -(-length // clip)
    return [i * length // count for i in range(count + 1)]


def start_of(needle: int, depth: float, cuts: list[int]) -> int:
    """Where a needle of that many samples begins, at the depth or, where an edge of clips would cut it, right beside the edge.

    >>> start_of(4, 0.5, [0, 20]), start_of(4, 0.5, [0, 9, 18])
    (8, 9)
    """
    start = round(depth * (cuts[-1] - needle))
    for edge in cuts[1:-1]:
        if start < edge < start + needle:
            return edge if 2 * (edge - start) <= needle else edge - needle
    return start


def _recording(spec: ItemSpec, hay: Haystack) -> tuple[list[Part], str, dict[str, Any]]:
    """Clips of a recording, what is said in it, and at which second."""
    is_test = spec.split == "test"
    number = HELD_OUT_NUMBERS[spec.index % len(HELD_OUT_NUMBERS)] if is_test else random_number(spec.rng, spec.split)
    words = number_words(number, "en")
    spoken = synthesize(words, random_voice(spec.rng, "en"))
    cuts = edges(hay.length * SAMPLE_RATE, math.floor(hay.clip * SAMPLE_RATE))
    if len(spoken) > min(b - a for a, b in pairwise(cuts)):
        raise ValueError(f"clips of {hay.clip:g} s are too short for a spoken number; use clips of {SHORTEST['audio']} s or more")  # fmt: skip
    start = start_of(len(spoken), hay.depth, cuts)
    silent = np.zeros(cuts[-1], np.float32)
    silent[start : start + len(spoken)] = spoken
    samples = degrade(spec.rng, silent)
    clips = [Audio(encode_audio(samples[a:b]), "audio/flac") for a, b in pairwise(cuts)]
    return [*clips], words, {"at": round(start / SAMPLE_RATE, 3)}


def _digits(spec: ItemSpec, at: int, frames: int) -> tuple[int, int, str]:
    """The digit of one frame and that of the others, and all in order: in the test a string that is held out from training."""
    while True:
        needle, other = (int(digit) for digit in spec.rng.permutation(10)[:2])
        order = [other] * (at > 0) + [needle] + [other] * (at < frames - 1)
        if is_held_out_string("".join(map(str, order))) == (spec.split == "test"):
            return needle, other, " ".join(map(str, order))


def _video(spec: ItemSpec, hay: Haystack) -> tuple[list[Part], str, dict[str, Any]]:
    """Clips of a video in which all frames but one show the same digit, the digits in order, and which frame it is."""
    at = round(hay.depth * (hay.length - 1))
    needle, other, order = _digits(spec, at, hay.length)
    shown, common = (to_gray(render_digit(spec.rng, spec.split, d, (26, SIDE)), BACKGROUND, FOREGROUND) for d in (needle, other))  # fmt: skip
    frames = [shown if n == at else common for n in range(hay.length)]
    clips = [mp4_video(frames[a:b]) for a, b in pairwise(edges(hay.length, math.floor(hay.clip)))]
    return [*clips], order, {"at": at}


_MAKERS = {"audio": (_recording, "Transcribe."), "video": (_video, "Which digits appear, in order?")}


def make_in(spec: ItemSpec, hay: Haystack) -> Document:
    """A question whose answer names the needle of that medium. In the test, numbers take turns by ``spec.index``."""
    maker, question = _MAKERS[hay.medium]
    media, answer, facts = maker(spec, hay)
    return chat(spec, media, [(question, answer)], length=hay.length, depth=hay.depth, clips=len(media), **facts)


def make(spec: ItemSpec) -> Document:
    """A needle in a recording or a video of a random length, at any depth."""
    medium: Medium = "audio" if spec.rng.random() < 0.5 else "video"
    shortest, longest = SHORTEST[medium], LONGEST[medium]
    length = round(shortest * (longest / shortest) ** spec.rng.random())
    return make_in(spec, Haystack(medium, length, float(spec.rng.random()), CLIPS[medium]))


def make_all(haystacks: Sequence[Haystack], seed: int, first: int = 0) -> list[Document]:
    """An item of each, numbered from ``first`` on; the same in any process."""
    unload()
    return [make_in(ItemSpec(f"needles/{hay.medium}", "test", first + i, seed), hay) for i, hay in enumerate(haystacks)]
