"""Whole models of open weights equal the reference implementation: every family of Gemma, with text, images, video and sound.

``golden/open/NAME`` is a tiny random model of a family, in which no tensor is neutral, and what the reference computes with it
(``golden/make_open_weights.py``). For each prompt: embeddings with soft tokens, logits at all positions, alone and packed with other
prompts, and a greedy answer from our KV cache where the reference recomputes everything at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.batch import Batch
from alhena.model import config, model
from alhena.model.families import open_weights
from alhena.shapes import Array, Int
from tests.model.cached import decode, prefill

GOLDEN = Path(__file__).parent / "golden" / "open"
# Folder, window of the local layers. Prompts of one window share their compilations.
GROUPS = [
    ("gemma3_text", 4),
    ("gemma3_vision", 4),
    ("gemma3_vision", 40),
    ("gemma3n_text", 4),
    ("gemma3n_audio", 4),
    ("gemma4_small", 4),
    ("gemma4_large", 4),
    ("gemma4_large", 20),
    ("gemma4_moe", 4),
    ("gemma4_unified", 4),
]
# Groups of which only the complete forward pass is compared: other prompts of the same decoder have answers.
WITHOUT_ANSWERS = [("gemma3_vision", 40), ("gemma3n_text", 4), ("gemma4_large", 20)]
# Relative to the largest logit; float32 noise is 2e-5, a wrong rule 1e-2 and more.
TOLERANCE = 1e-4
# Ids of text: greedy answers consist of them.
TEXT = 278
STEPS = 24

Prompt = dict[str, np.ndarray]


def prompts(folder: str, window: int) -> list[Prompt]:
    """The golden prompts of a window, by name."""
    with np.load(GOLDEN / folder / "golden.npz") as stored:
        keys = groupby(sorted(stored), lambda key: key.split("/")[0])
        found = [{key.split("/")[1]: stored[key] for key in names} for _, names in keys]
    return [prompt for prompt in found if prompt["window"] == window]


# ── prompts to batches ───────────────────────────────────────────────────────────────────────────────────────────────


def media(prompt: Prompt, kinds: tuple[str, ...]) -> list[np.ndarray]:
    """Images, frames or sounds of a prompt, in order."""
    return [prompt[f"{kind}_{i}"] for kind in kinds for i in range(9) if f"{kind}_{i}" in prompt]


def patches(pixels: np.ndarray, c: config.VisionEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Patches of an image and their (row, column), those of a pooling window together."""
    s, p = c.pool, c.patch
    rows, columns = pixels.shape[0] // (s * p), pixels.shape[1] // (s * p)
    values = pixels.reshape(rows, s, p, columns, s, p, 3).transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, p * p * 3)
    places = np.stack(np.meshgrid(np.arange(rows * s), np.arange(columns * s), indexing="ij"), -1)
    return values, places.reshape(rows, s, columns, s, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)


@dataclass
class Row:
    """One sequence of a batch."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    patches: np.ndarray
    places: np.ndarray
    images: np.ndarray
    frames: np.ndarray
    lengths: np.ndarray


def row(packed: list[Prompt], c: config.Model) -> Row:
    """Prompts in one sequence."""
    lengths = [len(prompt["tokens"]) for prompt in packed]
    pixels = [image for prompt in packed for image in media(prompt, ("image", "frame"))] if c.vision else []
    cut = [patches(image, c.vision) for image in pixels] if c.vision else []
    sounds = [sound for prompt in packed for sound in media(prompt, ("sound",))]
    time = frames_per_chunk(c)
    return Row(
        tokens=np.concatenate([prompt["tokens"] for prompt in packed]),
        segments=np.repeat(np.arange(len(packed)) + 1, lengths),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        patches=np.concatenate([np.zeros((0, c.vision.patch_values if c.vision else 3)), *(v for v, _ in cut)]),
        places=np.concatenate([np.zeros((0, 2)), *(p for _, p in cut)]),
        images=np.repeat(np.arange(len(cut)) + 1, [len(v) for v, _ in cut]),
        frames=np.stack([np.pad(s, ((0, time - len(s)), (0, 0))) for s in sounds])
        if sounds
        else np.zeros((0, time, c.audio.frame_values if c.audio else 1)),
        lengths=np.array([len(s) for s in sounds]),
    )


def frames_per_chunk(c: config.Model) -> int:
    return 25 if isinstance(c.audio, config.UnifiedAudio) else 64


def batch(rows: list[Row]) -> Batch:
    """Sequences padded to a common length."""

    def stack(name: str, dtype: type) -> np.ndarray:
        arrays = [getattr(r, name) for r in rows]
        longest = max(len(a) for a in arrays)
        return np.stack([np.pad(a, [(0, longest - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in arrays]).astype(dtype)

    tokens = stack("tokens", np.int32)
    return Batch(
        tokens=tokens,
        targets=np.zeros_like(tokens),
        weights=np.zeros(tokens.shape, np.float32),
        modality=np.zeros_like(tokens),
        segments=stack("segments", np.int32),
        positions=stack("positions", np.int32),
        patches=stack("patches", np.uint8),
        patch_positions=stack("places", np.int32),
        patch_images=stack("images", np.int32),
        frames=stack("frames", np.float32),
        frame_lengths=stack("lengths", np.int32),
    )


# ── our models ───────────────────────────────────────────────────────────────────────────────────────────────────────


def load(folder: Path, window: int) -> tuple[model.Params, config.Model]:
    params, c = open_weights.read(folder)
    return params, replace(c, compute_dtype="float32", decoder=replace(c.decoder, window=window))


# Compiled quickly: these programs run once.
compiled = partial(jax.jit, static_argnums=1, compiler_options={"xla_backend_optimization_level": 0})


@compiled
def forward(params: model.Params, c: config.Model, b: Batch) -> tuple[Array, Array]:
    """Embeddings with soft tokens, and logits."""
    return model.embed(params, c, b), model.logits(params, c, model.forward(params, c, b))


@compiled
def greedy(params: model.Params, c: config.Model, b: Batch) -> Int[Array, "B steps"]:
    """The most probable text ids after each prompt: one prefill, then one token a step from the cache."""
    hidden, cache = prefill(params, c, b, b.tokens.shape[1] + STEPS)

    def step(carry, _):
        hidden, cache, positions = carry
        token = jnp.argmax(model.logits(params, c, hidden)[:, :TEXT], -1).astype(jnp.int32)
        hidden, cache = decode(params, c, token, positions, cache)
        return (hidden, cache, positions + 1), token

    first = (b.segments > 0).sum(1).astype(jnp.int32)
    return jax.lax.scan(step, (hidden, cache, first), None, STEPS)[1].T


def check(ours: np.ndarray, golden: np.ndarray, largest: float, what: str) -> None:
    error = np.abs(ours - golden).max() / largest
    assert error < TOLERANCE, f"{what}: largest difference {error:.1e} of the largest value"


@pytest.mark.parametrize(("folder", "window"), GROUPS)
def test_soft_tokens_and_logits_equal_the_reference_alone_and_packed(folder: str, window: int) -> None:
    params, c = load(GOLDEN / folder, window)
    found = prompts(folder, window)
    together = found[::-1] if found[1:] else found * 2
    rows = [row([prompt], c) for prompt in found] + [row(together, c)]
    embedded, logits = (np.asarray(a) for a in forward(params, c, batch(rows)))
    starts = np.cumsum([0] + [len(prompt["tokens"]) for prompt in together])
    places = [(i, 0, prompt) for i, prompt in enumerate(found)]
    places += [(len(found), start, prompt) for start, prompt in zip(starts, together, strict=False)]
    for i, start, prompt in places:
        span = slice(start, start + len(prompt["tokens"]))
        golden = prompt["embedded"]
        check(embedded[i, span], golden, np.abs(golden).max(), f"embeddings, row {i}")
        check(logits[i, span, ::4], prompt["logits"], prompt["largest"], f"logits, row {i}")


@pytest.mark.parametrize(("folder", "window"), [group for group in GROUPS if group not in WITHOUT_ANSWERS])
def test_greedy_answers_from_the_cache_equal_the_uncached_reference(folder: str, window: int) -> None:
    params, c = load(GOLDEN / folder, window)
    found = prompts(folder, window)
    answers = greedy(params, c, batch([row([prompt], c) for prompt in found]))
    np.testing.assert_array_equal(answers, np.stack([prompt["greedy"] for prompt in found]))
