"""Supervised tuning: chats made of the same Content as everything else, loss on the model's turns only.

    <user> <boi> <img>… <eoi> What is this? <end> <model> a circle <end>
    loss                                                  ■ ■      ■

The same function continues a finished model on a user's own documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alhena.model import config, model
from alhena.pretrain.loop import Phase, Training, open_examples, train
from alhena.pretrain.optimizer import Optimizer
from alhena.tokens.loader import Shape


@dataclass(frozen=True)
class Tune:
    """``weights`` by source; without them each source counts by its number of examples."""

    steps: int
    shape: Shape
    optimizer: Optimizer = Optimizer(rate=5e-4, warmup=20, schedule="cosine")
    weights: Mapping[str, float] | None = None
    seed: int = 1
    save_every: int = 50


def training(t: Tune, data: Path) -> Training:
    """Tuning as a training of one phase. Raises ValueError when there is nothing to learn from."""
    sizes = {name: float(len(examples)) for name, examples in open_examples(data).items()}
    if not sum(sizes.values()):
        raise ValueError(
            f"{data}: no examples to tune on; were all documents dropped? (see report.json of the curated folder)"
        )
    weights = {name: t.weights[name] for name in sizes if name in t.weights} if t.weights else sizes
    phases = (Phase(t.steps, weights),)
    return Training(phases, t.shape, t.optimizer, t.seed, t.save_every, log_every=5, evaluate_every=100)


def tune(params: model.Params, c: config.Model, t: Tune, data: Path, out: Path, title: str = "tune") -> model.Params:
    """Tunes on encoded examples (answers only), continuing from a checkpoint under ``out`` if there is one."""
    return train(params, c, training(t, data), data, out, title)
