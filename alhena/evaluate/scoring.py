"""Likelihood of running text under a model, in nats, from the training loss; nothing is sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import jax
import numpy as np

from alhena.batch import Batch, Example
from alhena.content import Document, text_of
from alhena.model import config, model
from alhena.model.linear import dense
from alhena.model.transformer.embedding import whole
from alhena.serve.decoding.buckets import TOKENS, bucket
from alhena.serve.engine import Engine
from alhena.shapes import Array, Float
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder
from alhena.tokens.examples.padding import padded_batch
from alhena.train.loss import LossOptions, weighted_loss

# Tokens of a window of running text: of our own models, which are trained on sequences of this order, and of imported ones.
WINDOW_TOKENS, IMPORTED_WINDOW_TOKENS = 256, 2048
# Of the windows that are scored at once.
BATCH_TOKENS = 2048


@partial(jax.jit, static_argnums=1)
def sequence_nats(params: model.Params, c: config.Model, batch: Batch) -> Float[Array, " B"]:
    """Negative log-likelihood of each sequence: every target of a positive weight counts once."""
    hidden = model.forward(params, c, batch)
    weights = (batch.weights > 0).astype(np.float32)
    flat = hidden.reshape(-1, hidden.shape[-1])
    targets, options = batch.targets.reshape(-1), LossOptions.of(c)
    _, nats = weighted_loss(flat, dense(whole(params.embedding)), targets, weights.reshape(-1), options)
    return (nats.reshape(weights.shape) * weights).sum(1)


def window_tokens(encoder: AnyEncoder) -> int:
    """The window in which running text is scored. A short one overstates the loss: its first tokens have little context."""
    return WINDOW_TOKENS if isinstance(encoder, Encoder) else min(IMPORTED_WINDOW_TOKENS, encoder.settings.context)


@dataclass(frozen=True)
class TextLoss:
    """Nats of a running text, its UTF-8 bytes and its tokens."""

    nats: float
    size: int
    tokens: int

    def __add__(self, other: TextLoss) -> TextLoss:
        return TextLoss(self.nats + other.nats, self.size + other.size, self.tokens + other.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(self.size, 1)


def text_losses(engine: Engine, documents: Sequence[Document]) -> list[TextLoss]:
    """The loss of each running text; long documents are split into windows."""
    window = window_tokens(engine.encoder)
    examples = [(i, e) for i, d in enumerate(documents) for e in engine.encoder.encode(d, window)]
    nats, tokens = np.zeros(len(documents)), np.zeros(len(documents), int)
    # Windows of similar length are padded to the same one.
    by_length = sorted(examples, key=lambda pair: _length(pair[1]))
    for length, group in groupby(by_length, lambda pair: bucket(TOKENS, _length(pair[1]), "tokens")):
        padded, size = [*group], max(1, BATCH_TOKENS // length)
        for start in range(0, len(padded), size):
            part = padded[start : start + size]
            filled = [example for _, example in part] + [part[0][1]] * (size - len(part))
            found = sequence_nats(engine.params, engine.config, padded_batch(filled, length, 0, 0))
            for (i, example), value in zip(part, np.asarray(found)[: len(part)], strict=True):
                nats[i] += value
                tokens[i] += int((example.weights > 0).sum())
    sizes = [len(text_of(d.contents).encode()) for d in documents]
    return [TextLoss(float(n), size, int(t)) for n, size, t in zip(nats, sizes, tokens, strict=True)]


def text_loss(engine: Engine, documents: Sequence[Document]) -> TextLoss:
    """The loss of all running texts together."""
    return sum(text_losses(engine, documents), TextLoss(0.0, 0, 0))


def _length(example: Example) -> int:
    return len(example.tokens)
