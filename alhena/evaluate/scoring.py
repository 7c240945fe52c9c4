"""Likelihood of running text under a model, in nats, from the training loss; nothing is sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from alhena.batch import Batch
from alhena.content import Document, text_of
from alhena.model import config, model
from alhena.model.linear import dense
from alhena.serve.engine import Engine
from alhena.shapes import Array, Float
from alhena.tokens.loader import padded_batch
from alhena.train.loss import LossOptions, weighted_loss

BATCH_SIZE, WINDOW_TOKENS = 8, 256


@partial(jax.jit, static_argnums=1)
def _nats(params: model.Params, c: config.Model, batch: Batch) -> Float[Array, " B"]:
    """Negative log-likelihood of each sequence: every target of a positive weight counts once."""
    hidden = model.forward(params, c, batch)
    weights = (batch.weights > 0).astype(np.float32)
    flat = hidden.reshape(-1, hidden.shape[-1])
    targets, options = batch.targets.reshape(-1), LossOptions.of(c)
    _, nats = weighted_loss(flat, dense(params.embedding), targets, weights.reshape(-1), options)
    return (nats.reshape(weights.shape) * weights).sum(1)


def text_nats(engine: Engine, documents: Sequence[Document]) -> tuple[float, int, int]:
    """Total nats, UTF-8 bytes and tokens of running text; long documents are split into windows of WINDOW_TOKENS."""
    examples = [e for d in documents for e in engine.encoder.encode(d, WINDOW_TOKENS)]
    total = 0.0
    for start in range(0, len(examples), BATCH_SIZE):
        group = examples[start : start + BATCH_SIZE]
        batch = padded_batch(group + [group[0]] * (BATCH_SIZE - len(group)), WINDOW_TOKENS, 0, 0)
        total += float(np.sum(_nats(engine.params, engine.config, batch)[: len(group)]))
    size = sum(len(text_of(d.contents).encode()) for d in documents)
    return total, size, sum(int((e.weights > 0).sum()) for e in examples)


def bits_per_byte(engine: Engine, documents: Sequence[Document]) -> float:
    """Negative log-likelihood of running text in bits, by its UTF-8 bytes."""
    nats, size, _ = text_nats(engine, documents)
    return nats / math.log(2) / max(size, 1)
