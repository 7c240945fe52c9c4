"""Trains the image tokenizer on images of the corpus, measures and plots its reconstructions.

images ─ random crops of a few sizes ─ encode, quantize, decode ─ squared and absolute error ─ Adam
─► image_tokenizer.safetensors, reconstructions.png, PSNR and codebook usage
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
from alhena.shapes import Array, Float, UInt8, pytree
from alhena.train.components.step_loop import StepLoop, run_steps

Image = UInt8[np.ndarray, "_ _ 3"]
Images = UInt8[Array, "B H W 3"]


@dataclass(frozen=True)
class TrainImageTokenizer:
    """Hyperparameters. Crops are square, of ``side`` pixels; the network is convolutional, so other shapes work too."""

    steps: int = 2500
    batch_size: int = 96
    side: int = 32
    learning_rate: float = 4e-3
    seed: int = 0
    save_every: int = 500


@pytree
@dataclass(frozen=True)
class _State:
    """What is trained, and the moments of Adam."""

    params: tokenizer.Params
    moments: optax.OptState


def _loss(params: tokenizer.Params, c: config.ImageTokenizer, images: Images) -> Float[Array, ""]:
    """Reconstruction error. Images 2k and 2k+1 differ in colors only: their structures are exchanged before decoding."""
    x = images.astype(jnp.float32) / 127.5 - 1
    structure, color = jnp.split(tokenizer.encode_levels(params, c, x), [len(c.structure)], -1)
    exchanged = structure.reshape(-1, 2, *structure.shape[1:])[:, ::-1].reshape(structure.shape)
    error = tokenizer.decode_levels(params, c, jnp.concatenate([exchanged, color], -1)) - x
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
def _step(
    state: _State, images: Images, c: config.ImageTokenizer, t: TrainImageTokenizer
) -> tuple[_State, Float[Array, ""]]:
    loss, gradient = jax.value_and_grad(_loss)(state.params, c, images)
    updates, moments = _optimizer(t).update(gradient, state.moments)
    return _State(optax.apply_updates(state.params, updates), moments), loss


def _crops(images: Sequence[Image], t: TrainImageTokenizer, step: int) -> UInt8[np.ndarray, "B H W 3"]:
    """The batch of a step: crops at multiples of the stride, so that they share the grid of the complete image.

    Every crop occurs twice, the second time with its color channels permuted.
    """
    rng = np.random.default_rng([t.seed, step])
    out = np.zeros((t.batch_size, t.side, t.side, 3), np.uint8)
    for i, k in enumerate(rng.integers(0, len(images), t.batch_size // 2)):
        image = images[k]
        y, x = (int(rng.integers(0, (n - t.side) // tokenizer.STRIDE + 1)) * tokenizer.STRIDE for n in image.shape[:2])
        out[2 * i] = image[y : y + t.side, x : x + t.side]
        out[2 * i + 1] = out[2 * i][..., rng.permutation(3)]
    return out


def _digest(images: Sequence[Image]) -> str:
    """Hash of the number of images, and of up to 256 of them, evenly spaced."""
    digest = hashlib.blake2b(str(len(images)).encode(), digest_size=16)
    for k in np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int):
        digest.update(np.ascontiguousarray(images[k]).tobytes())
    return digest.hexdigest()


def train(images: Sequence[Image], c: config.ImageTokenizer, t: TrainImageTokenizer, out: Path) -> dict[str, Any]:
    """Trains on uint8 images, resuming from checkpoints in ``out``; writes the tokenizer there and returns measurements.

    Images smaller than a crop are left out. Where none is left, as in a corpus of text, the weights stay random.
    """
    usable = [image for image in images if min(image.shape[:2]) >= t.side]
    params = tokenizer.init(jax.random.key(t.seed), c)
    if not usable:
        tokenizer.save(out, params, c)
        return {"images": 0}
    training = training_fingerprint(out, "image tokenizer", c, replace(t, save_every=0), _digest(usable))

    def step(state: _State, index: int) -> tuple[_State, Float[Array, ""]]:
        return _step(state, _crops(usable, t, index), c, t)

    loop = StepLoop("image tokenizer", t.steps, t.save_every, out / "checkpoints", training)
    state, _ = run_steps(_State(params, _optimizer(t).init(params)), step, loop)
    tokenizer.save(out, state.params, c)
    return {"images": len(usable), **measure(state.params, c, usable)}


def measure(
    params: tokenizer.Params, c: config.ImageTokenizer, images: Sequence[Image], max_images: int = 1000
) -> dict[str, Any]:
    """Peak signal-to-noise ratio in dB, mean absolute error (of 255), codes in use, and the codes' perplexity.

    Uses at most ``max_images`` images of the shape of the first.
    """
    originals = [image for image in images if image.shape == images[0].shape][:max_images]
    codes = tokenizer.encode_images(params, c, originals)
    decoded = [tokenizer.decode_codes(params, c, grid) for grid in codes[:200]]
    errors = np.stack([a.astype(float) - b for a, b in zip(originals, decoded, strict=False)])
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
    params: tokenizer.Params, c: config.ImageTokenizer, images: Sequence[Image], path: Path
) -> None:
    """Plots originals (above) and their reconstructions (below) as a PNG file."""
    figure = plots.figure(1.05 * len(images), 2.5)
    grid = figure.subplots(2, len(images), squeeze=False)
    for column, (image, codes) in enumerate(zip(images, tokenizer.encode_images(params, c, list(images)), strict=True)):
        for row, shown in enumerate((image, tokenizer.decode_codes(params, c, codes))):
            grid[row][column].imshow(shown, interpolation="nearest")
            grid[row][column].set_axis_off()
    figure.suptitle(f"above: original   below: decoded from one of {c.num_codes} codes for 8×8 pixels", fontsize=9)
    plots.save(figure, path)
