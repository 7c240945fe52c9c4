"""Supervised tuning: chats made of the same Content as everything else, loss on the model's turns only.

    <user> <boi> <img>… <eoi> What is this? <end> <model> a circle <end>
    loss                                                  ■ ■      ■

The same function continues a finished model on a user's own documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alhena.model import config, model
from alhena.pretrain.loop import Folders, Phase, Training, open_examples, train
from alhena.pretrain.optimizer import Optimizer
from alhena.tokens.loader import Shape
from alhena.tokens.store import Examples


@dataclass(frozen=True)
class Tune:
    """``weights`` by source; without them each source counts by its number of examples."""

    steps: int
    shape: Shape
    optimizer: Optimizer = Optimizer(rate=5e-4, warmup=20, schedule="cosine")
    weights: Mapping[str, float] | None = None
    seed: int = 1
    save_every: int = 50


def trimmed(shape: Shape, sources: Mapping[str, Examples]) -> Shape:
    """Rows no larger than these examples can fill: recordings alone need no room for patches, and hardly any for tokens.

    The scarcest budget says how many examples a row holds; the others keep room for a quarter more than those need.
    """
    sizes = np.array(
        [
            (len(e.tokens), len(e.patches), len(e.frames))
            for some in sources.values()
            for e in map(some.__getitem__, range(len(some)))
        ]
    )
    budgets, mean, most = np.array([shape.tokens, shape.patches, shape.chunks]), sizes.mean(0), sizes.max(0)
    examples = (budgets[mean > 0] / mean[mean > 0]).min()
    room = np.ceil(1.25 * examples * mean / 32) * 32
    tokens, patches, chunks = (int(v) for v in np.where(most > 0, np.minimum(budgets, np.maximum(room, most)), 0))
    return Shape(shape.rows, tokens, patches, chunks)


def training(t: Tune, data: Path, questions: float) -> Training:
    """Tuning as a training of one phase; what weighs no more than ``questions`` is not learned.

    Raises ValueError when there is nothing to learn from.
    """
    sources = open_examples(data)
    sizes = {name: float(len(examples)) for name, examples in sources.items()}
    if not sum(sizes.values()):
        raise ValueError(
            f"{data}: no examples to tune on; were all documents dropped? (see report.json of the curated folder)"
        )
    weights = {name: t.weights[name] for name in sizes if name in t.weights} if t.weights else sizes
    phases = (Phase(t.steps, weights),)
    shape = t.shape if t.weights else trimmed(t.shape, sources)
    return Training(phases, shape, t.optimizer, t.seed, t.save_every, 5, 100, questions)


def tune(
    params: model.Params, c: config.Model, t: Tune, data: Path, out: Path, questions: float, title: str = "tune"
) -> model.Params:
    """Tunes on encoded examples (answers only), continuing from a checkpoint under ``out`` if there is one."""
    return train(params, c, training(t, data, questions), Folders(data, out), title)
