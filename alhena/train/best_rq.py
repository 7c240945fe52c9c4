"""BEST-RQ: an audio encoder learns from sound alone, before it meets a word (Chiu et al. 2022; so USM was pre-trained).

    frames ─ four at a time ─ random projection ─ nearest of random codes ─► targets
    frames, some spans replaced by noise ─ encoder ─ scores of the codes ─► cross-entropy where the noise is

The projection and the codes are drawn once and never learned: what has to be told apart is given, and the encoder cannot win by making
it easy. Worth its time where sound is plenty and transcripts are few (docs/results.md).
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
from alhena.tokens.store import Examples
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.small_training import Steps, run_steps

STRIDE = 4  # frames behind one vector of the encoder


@dataclass(frozen=True)
class BestRq:
    steps: int = 1000
    chunks: int = 32  # of sound, in a batch
    codes: int = 1024
    code_width: int = 16
    start: float = 0.06  # chance that a span of noise begins at a vector
    span: int = 10  # vectors of 40 ms
    noise: float = 0.1
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3e-3, warmup=50))
    seed: int = 0
    save_every: int = 200


@pytree
@dataclass(frozen=True)
class BestRqParams:
    """What is learned: the encoder, and the scores of the codes that only this training needs."""

    audio: conformer.Conformer | Usm
    scores: Array  # [E, codes]


def weights(c: config.Conformer, t: BestRq, width: int) -> BestRqParams:
    """The specification of every weight, of an encoder for a decoder of that width."""
    return BestRqParams(
        model.audio_encoder(c).weights(c, width), matrix(0, (c.width, t.codes), ("width", None), gain=0.1)
    )


def _optimizer(trainable: BestRqParams, c: config.Conformer, t: BestRq) -> optax.GradientTransformation:
    return optimizer(t.optimizer, t.steps, weights(c, t, trainable.audio.project.shape[-1]))


@pytree
@dataclass(frozen=True)
class _State:
    trainable: BestRqParams
    moments: optax.OptState


def _unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)


def targets(frames: Float[Array, "X T M"], t: BestRq) -> Int[Array, "X t"]:
    """The code of every four frames, which are brought to mean 0 and size 1 first so that all codes are used."""
    projection, codes = jax.random.split(jax.random.key(t.seed))
    x = frames.reshape(len(frames), -1, STRIDE * frames.shape[-1])
    x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)
    width = x.shape[-1]
    bound = (6 / (width + t.code_width)) ** 0.5  # Xavier's, as in the paper
    x = x @ jax.random.uniform(projection, (width, t.code_width), minval=-bound, maxval=bound)
    return jnp.argmax(_unit(x) @ _unit(jax.random.normal(codes, (t.codes, t.code_width))).T, -1)


def spans(key: Array, shape: tuple[int, int], t: BestRq) -> Bool[Array, "X t"]:
    """Where the noise is."""
    begins = jax.random.bernoulli(key, t.start, shape)
    padded = jnp.pad(begins, ((0, 0), (t.span - 1, 0)))
    return jnp.stack([padded[:, i : i + shape[1]] for i in range(t.span)]).any(0)


def loss(
    trainable: BestRqParams,
    frames: Float[Array, "X T M"],
    lengths: Int[Array, " X"],
    key: Array,
    c: config.Conformer,
    t: BestRq,
) -> Float[Array, ""]:
    """Mean nats of the codes under the noise."""
    where, loud = jax.random.split(key)
    hidden = spans(where, (frames.shape[0], frames.shape[1] // STRIDE), t)
    noise = t.noise * jax.random.normal(loud, frames.shape)
    heard = jnp.where(jnp.repeat(hidden, STRIDE, 1)[..., None], noise, frames)
    x, valid = model.audio_encoder(c).features(trainable.audio, heard, lengths, c, "float32")
    logits = einsum("...i,io->...o", x, trainable.scores)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets(frames, t))
    weight = hidden & valid
    return jnp.sum(nats * weight) / jnp.maximum(weight.sum(), 1)


@partial(jax.jit, static_argnums=(4, 5), donate_argnums=0)
def _step(
    state: _State, frames: Array, lengths: Array, step: Array, c: config.Conformer, t: BestRq
) -> tuple[_State, Float[Array, ""]]:
    key = jax.random.fold_in(jax.random.key(t.seed), step)
    nats, slopes = jax.value_and_grad(loss)(state.trainable, frames, lengths, key, c, t)
    updates, moments = _optimizer(state.trainable, c, t).update(slopes, state.moments, state.trainable)
    return _State(optax.apply_updates(state.trainable, updates), moments), nats


class _Sound:
    """Every chunk of sound of the encoded examples, whatever they are about."""

    def __init__(self, sources: Mapping[str, Examples]) -> None:
        self._sources = [examples for _, examples in sorted(sources.items())]
        chunks = [examples.lengths("frame_lengths") for examples in self._sources]
        self._source_ends = np.cumsum([int(some.sum()) for some in chunks])
        self._example_ends = [np.cumsum(some) for some in chunks]
        self.chunks = int(self._source_ends[-1]) if chunks else 0
        if not self.chunks:
            raise ValueError("no encoded example has sound: BEST-RQ has nothing to learn from")

    def _chunk(self, number: int) -> tuple[Example, int]:
        """The chunk of this number among all of them: its example, and its index there."""
        source = int(np.searchsorted(self._source_ends, number, side="right"))
        ends = self._example_ends[source]
        number -= int(self._source_ends[source] - ends[-1])
        index = int(np.searchsorted(ends, number, side="right"))
        example = self._sources[source][index]
        return example, number - int(ends[index]) + len(example.frame_lengths)

    def batch(self, t: BestRq, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames and their valid numbers: what they are depends on the seed and the step alone."""
        chosen = np.random.default_rng([t.seed, step]).integers(0, self.chunks, t.chunks)
        some = [self._chunk(int(number)) for number in chosen]
        frames = np.stack([example.frames[chunk] for example, chunk in some]).astype(np.float32)
        return frames, np.array([example.frame_lengths[chunk] for example, chunk in some])


def pretrain_audio_encoder(
    params: conformer.Conformer | Usm, c: config.Conformer, t: BestRq, sources: Mapping[str, Examples], out: Path
) -> tuple[conformer.Conformer | Usm, dict[str, Any]]:
    """Trains an encoder on the sound of ``sources``, resuming from checkpoints in ``out``; returns it and measurements."""
    sound = _Sound(sources)
    trainable = BestRqParams(params, normal(jax.random.key(t.seed + 1), c.width, t.codes, gain=0.1))
    state = _State(trainable, _optimizer(trainable, c, t).init(trainable))
    data = data_fingerprint(examples.path for examples in sources.values())
    training = training_fingerprint(out, "BEST-RQ", c, replace(t, save_every=0), data)

    def step(state: _State, number: int) -> tuple[_State, Array]:
        return _step(state, *sound.batch(t, number), jnp.int32(number), c, t)

    state, nats = run_steps(state, step, Steps("listen", t.steps, t.save_every, out / "checkpoints", training))
    ends = [round(float(np.mean([float(n) for n in some])), 3) for some in (nats[:20], nats[-20:]) if some]
    return state.trainable.audio, {"nats": ends, "chunks_of_sound": sound.chunks}
