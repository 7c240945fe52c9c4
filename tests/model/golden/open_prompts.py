"""Prompts with their media for the models of ``open_models.py``; used by ``make_open_weights.py`` alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import open_models as models


@dataclass
class Case:
    """A prompt with its media."""

    tokens: list[int]
    # uint8 [height, width, 3]
    images: list[np.ndarray] = field(default_factory=list)
    # Frames of one video.
    frames: list[np.ndarray] = field(default_factory=list)
    # float32 [time, values], without padding.
    sounds: list[np.ndarray] = field(default_factory=list)
    # Sliding window of the local layers, where it is not the configured one.
    window: int | None = None


def words(rng: np.random.Generator, number: int) -> list[int]:
    return rng.integers(3, models.TEXT, number).tolist()


def image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def block(tokens: int, placeholder: int = models.IMAGE) -> list[int]:
    return [models.IMAGE_START, *[placeholder] * tokens, models.IMAGE_END]


def sound_block(tokens: int) -> list[int]:
    return [models.AUDIO_START, *[models.AUDIO] * tokens, models.AUDIO_END]


def text_case(rng: np.random.Generator, beyond: bool = False) -> Case:
    tokens = [models.BOS, *words(rng, 21)]
    if beyond:
        tokens[5:9] = [models.N_VISION_OFFSET, models.VOCABULARY - 1, models.N_AUDIO_OFFSET, models.N_VISION_OFFSET + 3]
    return Case(tokens)


def gemma3_cases(rng: np.random.Generator) -> dict[str, Case]:
    w = words(rng, 15)
    tokens = [models.BOS, *w[:3], *block(16), *w[3:6], *block(16), *w[6:11]]
    images = [image(rng, 32, 32), image(rng, 32, 32)]
    return {"window_4": Case(tokens, images), "window_40": Case(tokens, images, window=40)}


def gemma3n_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Two sounds of 41 frames, 6 vectors; marks whose rows are of the embedders' own tables.

    The reference's result depends on frames after the end; a sound alone has none there, and neither have two of one length.
    """
    w = words(rng, 15)
    sound = [models.N_AUDIO_START, *[models.N_AUDIO] * models.N_SOUND_TOKENS, models.N_AUDIO_OFFSET]
    tokens = [models.BOS, *w[:3], *sound, *w[3:5], models.N_VISION_OFFSET, models.N_VISION_OFFSET + 7, *sound, *w[5:9]]
    sounds = [rng.standard_normal((n, 16)).astype(np.float32) for n in (41, 41)]
    return {"text": Case([models.BOS, *w]), "sounds": Case(tokens, sounds=sounds)}


def gemma4_small_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Patches of 4×4 pixels, nine to a soft token; sounds of 41 and 60 frames, 11 and 15 soft tokens."""
    w = words(rng, 15)
    wide, tall = image(rng, 24, 36), image(rng, 36, 12)
    sounds = [rng.standard_normal((n, 16)).astype(np.float32) for n in (41, 60)]
    start, end = [models.BOS, *w[:4]], w[10:14]
    both = [*start, *block(6), *sound_block(11), *w[4:7], *sound_block(15), *end]
    video = [*start, *block(2, models.VIDEO), w[7], *block(2, models.VIDEO), w[8], *block(2, models.VIDEO), *end]
    return {
        "text": Case([models.BOS, *w]),
        "images": Case([*start, *block(6), *w[4:7], *block(3), *end], [wide, tall]),
        "image_sounds": Case(both, [wide], sounds=sounds),
        "video": Case(video, frames=[image(rng, 12, 24) for _ in range(3)]),
    }


def gemma4_large_cases(rng: np.random.Generator) -> dict[str, Case]:
    w = words(rng, 15)
    images = [image(rng, 36, 60), image(rng, 24, 36)]
    tokens = [models.BOS, *w[:4], *block(15), *w[4:6], *block(6), *w[6:12]]
    video = [models.BOS, *w[:4], *block(6), *block(6, models.VIDEO), w[4], *block(6, models.VIDEO), *w[5:9]]
    frames = [image(rng, 24, 36) for _ in range(2)]
    return {
        "window_4": Case(tokens, images),
        "window_20": Case(tokens, images, window=20),
        "image_video": Case(video, images[1:], frames),
    }


def unified_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Patches of 6×6 pixels are soft tokens, and so are 16 samples of sound."""
    w = words(rng, 15)
    tokens = [models.BOS, *w[:4], *block(12), *sound_block(5), *w[4:7], *block(4), *sound_block(3), *w[7:11]]
    sounds = [rng.uniform(-1, 1, (n, 16)).astype(np.float32) for n in (5, 3)]
    sounds[0][-1, 9:] = 0
    return {"images_sounds": Case(tokens, [image(rng, 18, 24), image(rng, 12, 12)], sounds=sounds)}


def cases(name: str, rng: np.random.Generator) -> dict[str, Case]:
    makers = {
        "gemma3_vision": gemma3_cases,
        "gemma3n_audio": gemma3n_cases,
        "gemma4_small": gemma4_small_cases,
        "gemma4_large": gemma4_large_cases,
        "gemma4_unified": unified_cases,
    }
    if name in makers:
        return makers[name](rng)
    return {"text": text_case(rng, beyond=name == "gemma3n_text")}
