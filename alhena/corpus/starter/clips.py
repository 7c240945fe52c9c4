"""Clips: a second and a half of moving shapes and digits, six frames, as MP4.

●····   ·●···   ··●··   ···●·      Which way does it move?           right
                                   What moves?                       circle
a picture alone tells neither      How many move?                    1        (some things stand still)
the way nor what stands still      Which digits appear, in order?    3 1 4    (one after the other)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from alhena.content import Document, Video
from alhena.corpus.starter.digits import SIDE, enlarge, ink, random_string, scans, shade
from alhena.corpus.starter.figures import Figure, choose_pairs, paint, place
from alhena.corpus.starter.items import Order, Turn, chat, pick
from alhena.corpus.starter.splits import DIRECTIONS, HELD_OUT_MOVES, TRAIN_MOVES, Pair, Split
from alhena.media import encode_video

FRAMES, PER_SECOND = 6, 4
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIZES = ((32, 32), (48, 32))
STILL = "still"
DIGIT = 18  # pixels of a moving digit


@dataclass(frozen=True)
class Moving:
    """What one thing does in a clip."""

    name: str
    direction: str
    figure: str  # with its colour


def video(frames: list[np.ndarray]) -> Video:
    return Video(encode_video(frames, PER_SECOND))


def _shift(direction: str, travel: float, frame: int) -> tuple[float, float]:
    """Offset from the middle of the path."""
    along = travel * (frame / (FRAMES - 1) - 0.5)
    return STEP[direction][0] * along, STEP[direction][1] * along


def _choose_move(rng: np.random.Generator, split: Split) -> tuple[Pair, str]:
    """A coloured shape and its direction; both combinations are held out in the test, and never elsewhere."""
    while True:
        pair = choose_pairs(rng, split, 1)[0]
        ways = HELD_OUT_MOVES if split == "test" else TRAIN_MOVES
        directions = [direction for shape, direction in ways if shape == pair[1]]
        if directions:
            return pair, pick(rng, directions)


def moving_shape(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], Moving]:
    pair, direction = _choose_move(rng, split)
    width, height = pick(rng, SIZES)
    size, travel = rng.uniform(13, 17), rng.uniform(11, 14)
    room = (width if direction in ("left", "right") else height) / 2 - size / 2 - travel / 2
    jitter = rng.uniform(-1, 1, 2) * min(max(room, 0), 6)
    frames = []
    for frame in range(FRAMES):
        x, y = _shift(direction, travel, frame)
        figure = Figure(*pair, width / 2 + jitter[0] + x, height / 2 + jitter[1] + y, size)
        frames.append(paint(width, height, [figure], 250))
    return frames, Moving(pair[1], direction, " ".join(pair))


def moving_digit(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], Moving]:
    digit, direction = int(rng.integers(10)), pick(rng, DIRECTIONS)
    width, height = pick(rng, SIZES)
    stamp, travel = enlarge(pick(rng, scans(split, digit)), DIGIT), rng.uniform(10, 14)
    frames = []
    for frame in range(FRAMES):
        page = np.zeros((height, width), np.float32)
        dx, dy = _shift(direction, travel, frame)
        x, y = round((width - DIGIT) / 2 + dx), round((height - DIGIT) / 2 + dy)
        page[y : y + DIGIT, x : x + DIGIT] = stamp
        frames.append(shade(page, 250, 20))
    return frames, Moving(str(digit), direction, str(digit))


def moving_many(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], list[Moving]]:
    """One to three small movers; sometimes one more thing that stands still."""
    count = int(rng.integers(1, 4))
    still = int(count < 3 and rng.random() < 0.4)
    start = place(rng, choose_pairs(rng, split, count + still), 40, 24, (8, 10))
    ways = TRAIN_MOVES if split != "test" else TRAIN_MOVES + HELD_OUT_MOVES
    moves = [pick(rng, [d for shape, d in ways if shape == f.shape]) for f in start[:count]]
    travel = rng.uniform(6, 8)
    frames = []
    for frame in range(FRAMES):
        offsets = [_shift(direction, travel, frame) for direction in moves] + [(0.0, 0.0)] * still
        figures = [replace(f, x=f.x + 4 + x, y=f.y + 4 + y) for f, (x, y) in zip(start, offsets, strict=True)]
        frames.append(paint(48, 32, figures, 250))
    return frames, [Moving(f.shape, d, f.name) for f, d in zip(start, [*moves, STILL], strict=False)]


def digits_in_order(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], str]:
    """Two or three digits, each shown for three or two frames; no two alike in a row."""
    string = ""
    while not string or any(a == b for a, b in pairwise(string)):
        string = random_string(rng, split, int(rng.integers(2, 4)))
    pages = [shade(ink(rng, split, int(digit), (26, SIDE)), 250, 20) for digit in string]
    return [page for page in pages for _ in range(FRAMES // len(string))], string


def make(order: Order) -> Document:
    rng, split = order.rng, order.split
    wanted = order.task.split("/")[1] if "/" in order.task else None
    kind = wanted or ("direction" if (at := rng.random()) < 0.6 else "count" if at < 0.8 else "order")
    moving: list[Moving] = []
    if kind == "order":
        frames, string = digits_in_order(rng, split)
        asked: list[Turn] = [("Which digits appear, in order?", " ".join(string))]
    elif kind == "count":
        frames, moving = moving_many(rng, split)
        asked = [("How many move?", str(sum(m.direction != STILL for m in moving)))]
    else:
        frames, what = (moving_shape if rng.random() < 0.65 else moving_digit)(rng, split)
        moving = [what]
        turns: dict[str, Turn] = {
            "direction": ("Which way does it move?", what.direction),
            "what": ("What moves?", what.name),
        }
        asked = [turns[wanted or pick(rng, tuple(turns))]]
        if wanted is None and rng.random() < 0.2:
            asked.append(("How many move?", "1"))
    return chat(order, [video(frames)], asked, moving=[[m.figure, m.direction] for m in moving])
