"""BEST-RQ: self-supervised pre-training of the audio encoder, without transcripts (Chiu et al. 2022; USM was pre-trained so).

    frames ─ four at a time ─ random projection ─ nearest of random codes ─► targets
    frames, some spans replaced by noise ─ audio encoder ─ logits of the codes ─► cross-entropy of the masked vectors

The projection and the codebook are random and never learned: the targets are fixed, and the encoder cannot collapse them. It pays
where audio is plentiful and transcripts are few (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alhena.batch import Example
from alhena.model import config, model
from alhena.model.encoders import conformer
from alhena.model.encoders.usm import Usm
from alhena.model.linear import einsum
from alhena.model.spec import matrix, normal
from alhena.recovery.identity import data_fingerprint, training_fingerprint
from alhena.shapes import Array, Bool, Float, Int, pytree
from alhena.tokens.examples.store import Examples
from alhena.train.components.step_loop import StepLoop, run_steps
from alhena.train.optimizer import Optimizer, optimizer

Frames = Float[Array, "X T M"]
Lengths = Int[Array, " X"]
STRIDE = 4  # frames per output vector of the encoder


@dataclass(frozen=True)
class BestRq:
    """Hyperparameters of the pre-training."""

    steps: int = 1000
    # Audio chunks in a batch.
    batch_size: int = 32
    codes: int = 1024
    code_width: int = 16
    # Probability that a masked span begins at a vector.
    mask_probability: float = 0.06
    # Length of a masked span, in vectors of 40 ms.
    mask_span: int = 10
    # Standard deviation of the noise that replaces masked frames.
    noise: float = 0.1
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3e-3, warmup=50))
    seed: int = 0
    save_every: int = 200


@pytree
@dataclass(frozen=True)
class BestRqParams:
    """Trainable parameters: the encoder, and the output projection to the codes, which only this training uses."""

    audio: conformer.Conformer | Usm
    scores: Float[Array, "E codes"]


def weights(c: config.Conformer, t: BestRq, width: int) -> BestRqParams:
    """Specification of every weight; ``width`` is that of the decoder that the encoder feeds."""
    return BestRqParams(
        model.audio_encoder(c).weights(c, width), matrix(0, (c.width, t.codes), ("width", None), gain=0.1)
    )


def _optimizer(trainable: BestRqParams, c: config.Conformer, t: BestRq) -> optax.GradientTransformation:
    project = trainable.audio.project
    assert isinstance(project, Array)
    return optimizer(t.optimizer, t.steps, weights(c, t, project.shape[-1]))


@pytree
@dataclass(frozen=True)
class _State:
    """What is trained, and the optimizer's state."""

    trainable: BestRqParams
    moments: optax.OptState


def _unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Vectors scaled to length 1."""
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)


def targets(frames: Frames, t: BestRq) -> Int[Array, "X t"]:
    """The code of every four frames, which are normalized to mean 0 and variance 1 first, so that all codes are used."""
    projection, codes = jax.random.split(jax.random.key(t.seed))
    x = frames.reshape(len(frames), -1, STRIDE * frames.shape[-1])
    x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)
    width = x.shape[-1]
    bound = (6 / (width + t.code_width)) ** 0.5  # Xavier's, as in the paper
    x = x @ jax.random.uniform(projection, (width, t.code_width), minval=-bound, maxval=bound)
    return jnp.argmax(_unit(x) @ _unit(jax.random.normal(codes, (t.codes, t.code_width))).T, -1)


def masked_spans(key: Array, shape: tuple[int, int], t: BestRq) -> Bool[Array, "X t"]:
    """Which output vectors are masked."""
    begins = jax.random.bernoulli(key, t.mask_probability, shape)
    padded = jnp.pad(begins, ((0, 0), (t.mask_span - 1, 0)))
    return jnp.stack([padded[:, i : i + shape[1]] for i in range(t.mask_span)]).any(0)


def loss(
    trainable: BestRqParams,
    frames: Frames,
    lengths: Lengths,
    key: Array,
    c: config.Conformer,
    t: BestRq,
) -> Float[Array, ""]:
    """Mean nats of the codes of the masked vectors."""
    span_key, noise_key = jax.random.split(key)
    masked = masked_spans(span_key, (frames.shape[0], frames.shape[1] // STRIDE), t)
    noise = t.noise * jax.random.normal(noise_key, frames.shape)
    noisy = jnp.where(jnp.repeat(masked, STRIDE, 1)[..., None], noise, frames)
    x, valid = model.audio_encoder(c).features(trainable.audio, noisy, lengths, c, "float32")
    logits = einsum("...i,io->...o", x, trainable.scores)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets(frames, t))
    weight = masked & valid
    return jnp.sum(nats * weight) / jnp.maximum(weight.sum(), 1)


@partial(jax.jit, static_argnums=(4, 5), donate_argnums=0)
def _step(
    state: _State, frames: Frames, lengths: Lengths, step: Int[Array, ""], c: config.Conformer, t: BestRq
) -> tuple[_State, Float[Array, ""]]:
    key = jax.random.fold_in(jax.random.key(t.seed), step)
    nats, gradient = jax.value_and_grad(loss)(state.trainable, frames, lengths, key, c, t)
    updates, moments = _optimizer(state.trainable, c, t).update(gradient, state.moments, state.trainable)
    return _State(optax.apply_updates(state.trainable, updates), moments), nats


class AudioChunks:
    """All audio chunks of the encoded examples, located by lengths alone; an example is read when a batch needs it."""

    def __init__(self, sources: Mapping[str, Examples]) -> None:
        self._sources = [examples for _, examples in sorted(sources.items())]
        chunks = [examples.lengths("frame_lengths") for examples in self._sources]
        self._source_ends = np.cumsum([int(counts.sum()) for counts in chunks])
        self._example_ends = [np.cumsum(counts) for counts in chunks]
        self.count = int(self._source_ends[-1]) if chunks else 0
        if not self.count:
            raise ValueError(
                "BEST-RQ: no encoded example has audio to learn from; add audio, or set Recipe.audio_pretraining to None"
            )

    def chunk(self, number: int) -> tuple[Example, int]:
        """The example of a chunk, and the chunk's index in it."""
        source = int(np.searchsorted(self._source_ends, number, side="right"))
        ends = self._example_ends[source]
        number -= int(self._source_ends[source] - ends[-1])
        index = int(np.searchsorted(ends, number, side="right"))
        example = self._sources[source][index]
        return example, number - int(ends[index]) + len(example.frame_lengths)

    def batch(self, t: BestRq, step: int) -> tuple[Float[np.ndarray, "X T M"], Int[np.ndarray, " X"]]:
        """Frames, and the number of valid ones of each chunk. The batch depends on the seed and the step alone."""
        chosen = np.random.default_rng([t.seed, step]).integers(0, self.count, t.batch_size)
        examples = [self.chunk(int(number)) for number in chosen]
        frames = np.stack([example.frames[chunk] for example, chunk in examples]).astype(np.float32)
        return frames, np.array([example.frame_lengths[chunk] for example, chunk in examples])


def pretrain_audio_encoder(
    params: conformer.Conformer | Usm, c: config.Conformer, t: BestRq, sources: Mapping[str, Examples], out: Path
) -> tuple[conformer.Conformer | Usm, dict[str, Any]]:
    """Trains an encoder on the audio of ``sources``, resuming from checkpoints in ``out``; returns it and measurements."""
    audio = AudioChunks(sources)
    trainable = BestRqParams(params, normal(jax.random.key(t.seed + 1), c.width, t.codes, gain=0.1))
    state = _State(trainable, _optimizer(trainable, c, t).init(trainable))
    data = data_fingerprint(examples.path for examples in sources.values())
    training = training_fingerprint(out, "BEST-RQ", c, replace(t, save_every=0), data)

    def step(state: _State, index: int) -> tuple[_State, Float[Array, ""]]:
        return _step(state, *audio.batch(t, index), jnp.int32(index), c, t)

    state, nats = run_steps(
        state, step, StepLoop("pre-train audio encoder", t.steps, t.save_every, out / "checkpoints", training)
    )
    ends = [round(float(np.mean([float(n) for n in part])), 3) for part in (nats[:20], nats[-20:]) if part]
    return state.trainable.audio, {"nats": ends, "audio_chunks": audio.count}
