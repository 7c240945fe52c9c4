"""Video clips of moving shapes and digits: six frames in 1.5 s, as MP4.

●····   ·●···   ··●··   ···●·      Which way does it move?           right
                                   What moves?                       circle
One frame shows neither the        How many move?                    1        (some objects are static)
direction nor what is static.      Which digits appear, in order?    3 1 4    (one after the other)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8

from alhena.content import Document, Video
from alhena.corpus.starter.images.digits import SIDE, random_string, render_digit, scans, to_gray, upscale
from alhena.corpus.starter.images.figures import Figure, draw_figures, place_figures, sample_pairs
from alhena.corpus.starter.items import ItemSpec, Turn, chat, pick
from alhena.corpus.starter.splits import DIRECTIONS, HELD_OUT_MOVES, TRAIN_MOVES, Pair, Split
from alhena.media import encode_video

FRAMES, FRAMES_PER_SECOND = 6, 4
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CLIP_SIZES = ((32, 32), (48, 32))
# Direction of a static object.
STILL = "still"
# Height and width of a moving digit in pixels.
DIGIT_SIZE = 18
Frames = list[UInt8[np.ndarray, "height width 3"]]


@dataclass(frozen=True)
class Motion:
    """Motion of one object: the name for questions, its direction, and its description (a shape with its color)."""

    name: str
    direction: str
    figure: str


def mp4_video(frames: Frames) -> Video:
    return Video(encode_video(frames, FRAMES_PER_SECOND))


def _offset(direction: str, travel: float, frame: int) -> tuple[float, float]:
    """Offset (x, y) in pixels from the middle of a path of length ``travel``."""
    distance = travel * (frame / (FRAMES - 1) - 0.5)
    return STEPS[direction][0] * distance, STEPS[direction][1] * distance


def _sample_motion(rng: np.random.Generator, split: Split) -> tuple[Pair, str]:
    """A colored shape and its direction: held-out combinations in the test, and none elsewhere."""
    while True:
        pair = sample_pairs(rng, split, 1)[0]
        moves = HELD_OUT_MOVES if split == "test" else TRAIN_MOVES
        directions = [direction for shape, direction in moves if shape == pair[1]]
        if directions:
            return pair, pick(rng, directions)


def moving_shape(rng: np.random.Generator, split: Split) -> tuple[Frames, Motion]:
    """Frames of one moving shape."""
    pair, direction = _sample_motion(rng, split)
    width, height = pick(rng, CLIP_SIZES)
    size, travel = rng.uniform(13, 17), rng.uniform(11, 14)
    margin = (width if direction in ("left", "right") else height) / 2 - size / 2 - travel / 2
    jitter = rng.uniform(-1, 1, 2) * min(max(margin, 0), 6)
    frames = []
    for frame in range(FRAMES):
        x, y = _offset(direction, travel, frame)
        figure = Figure(*pair, width / 2 + jitter[0] + x, height / 2 + jitter[1] + y, size)
        frames.append(draw_figures(width, height, [figure], 250))
    return frames, Motion(pair[1], direction, " ".join(pair))


def moving_digit(rng: np.random.Generator, split: Split) -> tuple[Frames, Motion]:
    """Frames of one moving digit."""
    digit, direction = int(rng.integers(10)), pick(rng, DIRECTIONS)
    width, height = pick(rng, CLIP_SIZES)
    scan, travel = upscale(pick(rng, scans(split, digit)), DIGIT_SIZE), rng.uniform(10, 14)
    frames = []
    for frame in range(FRAMES):
        canvas = np.zeros((height, width), np.float32)
        dx, dy = _offset(direction, travel, frame)
        x, y = round((width - DIGIT_SIZE) / 2 + dx), round((height - DIGIT_SIZE) / 2 + dy)
        canvas[y : y + DIGIT_SIZE, x : x + DIGIT_SIZE] = scan
        frames.append(to_gray(canvas, 250, 20))
    return frames, Motion(str(digit), direction, str(digit))


def several_moving(rng: np.random.Generator, split: Split) -> tuple[Frames, list[Motion]]:
    """Frames of one to three small moving shapes, sometimes with a static one."""
    count = int(rng.integers(1, 4))
    static = int(count < 3 and rng.random() < 0.4)
    start = place_figures(rng, sample_pairs(rng, split, count + static), 40, 24, (8, 10))
    moves = TRAIN_MOVES if split != "test" else TRAIN_MOVES + HELD_OUT_MOVES
    directions = [pick(rng, [d for shape, d in moves if shape == f.shape]) for f in start[:count]]
    travel = rng.uniform(6, 8)
    frames = []
    for frame in range(FRAMES):
        offsets = [_offset(direction, travel, frame) for direction in directions] + [(0.0, 0.0)] * static
        figures = [replace(f, x=f.x + 4 + x, y=f.y + 4 + y) for f, (x, y) in zip(start, offsets, strict=True)]
        frames.append(draw_figures(48, 32, figures, 250))
    return frames, [Motion(f.shape, d, f.name) for f, d in zip(start, [*directions, STILL], strict=False)]


def digits_in_order(rng: np.random.Generator, split: Split) -> tuple[Frames, str]:
    """Frames of two or three digits, each shown for three or two frames; consecutive ones differ."""
    string = ""
    while not string or any(a == b for a, b in pairwise(string)):
        string = random_string(rng, split, int(rng.integers(2, 4)))
    images = [to_gray(render_digit(rng, split, int(digit), (26, SIDE)), 250, 20) for digit in string]
    return [image for image in images for _ in range(FRAMES // len(string))], string


def _motion_turns(rng: np.random.Generator, motion: Motion, kind: str | None) -> list[Turn]:
    """The question of a ``kind``; in training (None) a random one, and for one clip in five a second one."""
    turns: dict[str, Turn] = {
        "direction": ("Which way does it move?", motion.direction),
        "what": ("What moves?", motion.name),
    }
    selected = [turns[kind or pick(rng, tuple(turns))]]
    if kind is None and rng.random() < 0.2:
        selected.append(("How many move?", "1"))
    return selected


def make(spec: ItemSpec) -> Document:
    """A clip with one question of the task's kind; in training, of a random kind."""
    rng, split = spec.rng, spec.split
    question_kind = spec.task.split("/")[1] if "/" in spec.task else None
    kind = question_kind or ("direction" if (u := rng.random()) < 0.6 else "count" if u < 0.8 else "order")
    motions: list[Motion] = []
    if kind == "order":
        frames, string = digits_in_order(rng, split)
        turns: list[Turn] = [("Which digits appear, in order?", " ".join(string))]
    elif kind == "count":
        frames, motions = several_moving(rng, split)
        turns = [("How many move?", str(sum(m.direction != STILL for m in motions)))]
    else:
        frames, motion = (moving_shape if rng.random() < 0.65 else moving_digit)(rng, split)
        motions = [motion]
        turns = _motion_turns(rng, motion, question_kind)
    return chat(spec, [mp4_video(frames)], turns, moving=[[m.figure, m.direction] for m in motions])
