"""Short clips: moving shapes and digits, with questions on direction, thing, number and order."""

from __future__ import annotations

import numpy as np

from alhena.content import Document, Video
from alhena.corpus.starter import digits, scenes
from alhena.corpus.starter.splits import DIRECTIONS, HELD_OUT_MOVES, HELD_OUT_PAIRS, Question, Split, belongs, quiz
from alhena.media import encode_video

SIDE, FRAMES, PER_SECOND = 48, 6, 4
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TASKS = ("video/direction", "video/what", "video/count", "video/order")


def _path(rng: np.random.Generator, direction: str, radius: float) -> np.ndarray:
    """Centres [FRAMES, 2] along a straight way across the picture."""
    dx, dy = STEPS[direction]
    low, high = radius + 1, SIDE - radius - 1
    along = np.linspace(low, high, FRAMES) if dx + dy > 0 else np.linspace(high, low, FRAMES)
    across = np.full(FRAMES, rng.uniform(low, high))
    return np.stack([along, across] if dx else [across, along], 1)


def _moving_shape(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], list[Question]]:
    while True:
        colour, shape = scenes.choose_pair(rng, split == "test")
        direction = DIRECTIONS[rng.integers(4)]
        if ((shape, direction) in HELD_OUT_MOVES) == (split == "test"):
            break
    radius = rng.uniform(7.5, 10)
    frames = [scenes.paint([scenes.Thing(colour, shape, x, y, radius)], SIDE, SIDE) for x, y in _path(rng, direction, radius)]
    return frames, [("video/direction", "Which way does it move?", direction), ("video/what", "What moves?", f"{colour} {shape}")]


def _moving_digit(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], list[Question]]:
    digit, direction = int(rng.integers(10)), DIRECTIONS[rng.integers(4)]
    pool = digits.by_digit(split)[digit]
    stroke, frames = digits.ink(pool[rng.integers(len(pool))], side=22, scale=1.0), []
    for x, y in _path(rng, direction, 11).round().astype(int):
        sheet = np.zeros((SIDE, SIDE), np.float32)
        sheet[y - 11 : y + 11, x - 11 : x + 11] = stroke
        frames.append(digits.write(sheet, np.full(3, 20.0), np.full(3, 255.0)))
    return frames, [("video/direction", "Which way does it move?", direction), ("video/what", "What moves?", str(digit))]


def _several(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], list[Question]]:
    """One to three shapes, each in its lane."""
    number = int(rng.integers(1, 4))
    lanes = (np.arange(3)[rng.permutation(3)][:number] + 0.5) * SIDE / 3
    pairs = [scenes.choose_pair(rng, split == "test" and k == 0) for k in range(number)]
    xs = [_path(rng, DIRECTIONS[rng.integers(2)], 7)[:, 0] for _ in range(number)]
    frames = [
        scenes.paint([scenes.Thing(c, s, float(x[f]), float(y), 7) for (c, s), x, y in zip(pairs, xs, lanes, strict=True)], SIDE, SIDE)
        for f in range(FRAMES)
    ]
    return frames, [("video/count", "How many move?", str(number))]


def _in_order(rng: np.random.Generator, split: Split) -> tuple[list[np.ndarray], list[Question]]:
    """Two or three digits, one after the other."""
    while True:
        shown = [int(d) for d in rng.integers(0, 10, rng.integers(2, 4))]
        if len(set(shown)) == len(shown) and belongs(("order", tuple(shown)), split):
            break
    frames = []
    for digit in shown:
        pool = digits.by_digit(split)[digit]
        sheet = digits.ink(pool[rng.integers(len(pool))], side=SIDE, scale=0.7)
        frames += [digits.write(sheet, np.full(3, 20.0), np.full(3, 255.0))] * (FRAMES // len(shown))
    return frames, [("video/order", "Which digits, in order?", " ".join(map(str, shown)))]


def make(rng: np.random.Generator, split: Split, i: int) -> Document:
    task = TASKS[i % len(TASKS)]
    if task == "video/count":
        frames, asked = _several(rng, split)
    elif task == "video/order":
        frames, asked = _in_order(rng, split)
    else:
        frames, asked = (_moving_shape if rng.random() < 0.7 or split == "test" and task == "video/direction" else _moving_digit)(rng, split)
    if split != "train":
        asked = [q for q in asked if q[0] == task]
    return quiz("video", (Video(encode_video(frames, PER_SECOND)),), asked, {"frames": FRAMES})
