"""Likelihood of running text under a model, in nats, from the training loss; nothing is sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import jax
import numpy as np

from alhena.batch import Batch, Example
from alhena.content import Document, text_of
from alhena.model import config, model
from alhena.model.embedding import whole
from alhena.model.linear import dense
from alhena.serve.decoding.buckets import TOKENS, bucket
from alhena.serve.engine import Engine
from alhena.shapes import Array, Float
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder
from alhena.tokens.padding import padded_batch
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


def text_nats(engine: Engine, documents: Sequence[Document]) -> tuple[float, int, int]:
    """Total nats, UTF-8 bytes and tokens of running text; long documents are split into windows."""
    window = window_tokens(engine.encoder)
    examples = [e for d in documents for e in engine.encoder.encode(d, window)]
    total = 0.0
    # Windows of similar length are padded to the same one.
    for length, group in groupby(sorted(examples, key=_length), lambda e: bucket(TOKENS, _length(e), "tokens")):
        padded, size = [*group], max(1, BATCH_TOKENS // length)
        for start in range(0, len(padded), size):
            part = padded[start : start + size]
            batch = padded_batch(part + [part[0]] * (size - len(part)), length, 0, 0)
            total += float(np.sum(sequence_nats(engine.params, engine.config, batch)[: len(part)]))
    size = sum(len(text_of(d.contents).encode()) for d in documents)
    return total, size, sum(int((e.weights > 0).sum()) for e in examples)


def _length(example: Example) -> int:
    return len(example.tokens)


def bits_per_byte(engine: Engine, documents: Sequence[Document]) -> float:
    """Negative log-likelihood of running text in bits, by its UTF-8 bytes."""
    nats, size, _ = text_nats(engine, documents)
    return nats / math.log(2) / max(size, 1)
