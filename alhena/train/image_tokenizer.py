"""Trains the image tokenizer on pictures of the corpus, and shows what it can redraw.

pictures ─ random crops of a few sizes ─ encode, quantize, decode ─ squared and absolute error ─ Adam
─► image_tokenizer.safetensors, reconstructions.png, PSNR and use of the codebook
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alhena import plots
from alhena.model import config
from alhena.model import image_tokenizer as tokenizer
from alhena.recovery.identity import training_fingerprint
from alhena.shapes import Array, pytree
from alhena.train.small_training import Steps, run_steps


@dataclass(frozen=True)
class TrainImageTokenizer:
    steps: int = 2500
    batch: int = 96
    side: int = 32  # crops are square; the network is convolutional, other shapes follow
    learning_rate: float = 4e-3
    seed: int = 0
    save_every: int = 500


@pytree
@dataclass(frozen=True)
class _State:
    params: tokenizer.Params
    moments: optax.OptState


def _loss(params: tokenizer.Params, c: config.ImageTokenizer, images: Array) -> Array:
    """Every other picture is the one before it in other colors: the two trade structures and must still be themselves."""
    x = images.astype(jnp.float32) / 127.5 - 1
    structure, color = jnp.split(tokenizer.encode_levels(params, c, x), [len(c.structure)], -1)
    traded = structure.reshape(-1, 2, *structure.shape[1:])[:, ::-1].reshape(structure.shape)
    error = tokenizer.decode_levels(params, c, jnp.concatenate([traded, color], -1)) - x
    return jnp.mean(error**2) + 0.2 * jnp.mean(jnp.abs(error))


def _optimizer(t: TrainImageTokenizer) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(
            optax.warmup_cosine_decay_schedule(
                0, t.learning_rate, min(100, t.steps // 5), t.steps, t.learning_rate / 50
            )
        ),
    )


@partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
def _step(state: _State, images: Array, c: config.ImageTokenizer, t: TrainImageTokenizer) -> tuple[_State, Array]:
    loss, gradient = jax.value_and_grad(_loss)(state.params, c, images)
    updates, moments = _optimizer(t).update(gradient, state.moments)
    return _State(optax.apply_updates(state.params, updates), moments), loss


def _crops(images: Sequence[np.ndarray], t: TrainImageTokenizer, step: int) -> np.ndarray:
    """The batch of a step: crops at whole cells, so that a picture's own grid is what is learned.

    Every crop stands twice, the second time with its color channels permuted.
    """
    rng = np.random.default_rng([t.seed, step])
    out = np.zeros((t.batch, t.side, t.side, 3), np.uint8)
    for row, k in enumerate(rng.integers(0, len(images), t.batch // 2)):
        image = images[k]
        y, x = (int(rng.integers(0, (n - t.side) // tokenizer.STRIDE + 1)) * tokenizer.STRIDE for n in image.shape[:2])
        out[2 * row] = image[y : y + t.side, x : x + t.side]
        out[2 * row + 1] = out[2 * row][..., rng.permutation(3)]
    return out


def _digest(images: Sequence[np.ndarray]) -> str:
    """Of the number of pictures, and of up to 256 of them, spread evenly."""
    digest = hashlib.blake2b(str(len(images)).encode(), digest_size=16)
    for k in np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int):
        digest.update(np.ascontiguousarray(images[k]).tobytes())
    return digest.hexdigest()


def train(images: Sequence[np.ndarray], c: config.ImageTokenizer, t: TrainImageTokenizer, out: Path) -> dict[str, Any]:
    """Trains on uint8 images, resuming from checkpoints in ``out``; writes the tokenizer there and returns measurements.

    Pictures smaller than a crop are left out. Raises ValueError when none is left.
    """
    usable = [image for image in images if min(image.shape[:2]) >= t.side]
    if not usable:
        raise ValueError(f"no picture of at least {t.side}x{t.side} pixels to train the image tokenizer on")
    params = tokenizer.init(jax.random.key(t.seed), c)
    training = training_fingerprint(out, "image tokenizer", c, replace(t, save_every=0), _digest(usable))

    def step(state: _State, number: int) -> tuple[_State, Array]:
        return _step(state, _crops(usable, t, number), c, t)

    plan = Steps("image tokenizer", t.steps, t.save_every, out / "checkpoints", training)
    state, _ = run_steps(_State(params, _optimizer(t).init(params)), step, plan)
    tokenizer.save(out, state.params, c)
    return measure(state.params, c, usable)


def measure(
    params: tokenizer.Params, c: config.ImageTokenizer, images: Sequence[np.ndarray], most: int = 1000
) -> dict[str, Any]:
    """Peak signal-to-noise ratio in dB, mean absolute error (of 255), codes in use, and the codes' perplexity."""
    some = [image for image in images if image.shape == images[0].shape][:most]
    codes = tokenizer.encode_images(params, c, some)
    redrawn = [tokenizer.decode_codes(params, c, grid) for grid in codes[:200]]
    errors = np.stack([a.astype(float) - b for a, b in zip(some, redrawn, strict=False)])
    counts = np.bincount(np.concatenate([grid.reshape(-1) for grid in codes]), minlength=c.num_codes)
    share = counts / counts.sum()
    return {
        "psnr_db": round(float(10 * np.log10(255**2 / max(np.mean(errors**2), 1e-9))), 2),
        "l1": round(float(np.mean(np.abs(errors))), 2),
        "codes": c.num_codes,
        "codes_used": int((counts > 0).sum()),
        "perplexity": round(float(np.exp(-np.sum(share * np.log(share + 1e-12)))), 1),
    }


def plot_reconstructions(
    params: tokenizer.Params, c: config.ImageTokenizer, images: Sequence[np.ndarray], path: Path
) -> None:
    """A picture of originals (above) and what their codes give back (below)."""
    figure = plots.figure(1.05 * len(images), 2.5)
    grid = figure.subplots(2, len(images), squeeze=False)
    for column, (image, codes) in enumerate(zip(images, tokenizer.encode_images(params, c, list(images)), strict=True)):
        for row, shown in enumerate((image, tokenizer.decode_codes(params, c, codes))):
            grid[row][column].imshow(shown, interpolation="nearest")
            grid[row][column].set_axis_off()
    figure.suptitle(f"above: original   below: redrawn from one of {c.num_codes} codes for 8×8 pixels", fontsize=9)
    plots.save(figure, path)
