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
from alhena.model.weights import load_model
from alhena.shapes import Int
from alhena.tokens.loader import BatchShape
from alhena.tokens.store import Examples
from alhena.tokens.tokenize import Encoding
from alhena.train.optimizer import Optimizer
from alhena.train.trainer import Folders, Phase, Training, open_examples, train, validate

MAX_GROWTH = 4  # times as long rows may become, on data of one's own, before there are fewer of them


@dataclass(frozen=True)
class Tune:
    """``weights`` by source; without them each source counts by its number of examples."""

    steps: int
    shape: BatchShape
    optimizer: Optimizer = Optimizer(learning_rate=5e-4, warmup=20, schedule="cosine")
    weights: Mapping[str, float] | None = None
    seed: int = 1
    save_every: int = 50

    def encoding(self, base: Path) -> Encoding:
        """How documents of one's own are encoded: each may be as long as a batch; running text is split at a row of the recipe."""
        return Encoding(base, self.shape.batch_tokens, window=self.shape.tokens)


def _sizes(sources: Mapping[str, Examples]) -> Int[np.ndarray, "examples 3"]:
    """Tokens, patches and chunks of sound of each example, by their lengths alone."""
    return np.concatenate(
        [np.stack([some.lengths(name) for name in ("tokens", "patches", "frames")], 1) for some in sources.values()]
    )


def grow_to_fit(shape: BatchShape, sources: Mapping[str, Examples]) -> BatchShape:
    """Rows in which the largest example fits, fewer of them where they are much larger: the memory of a step is bounded.

    No row holds more than a whole batch of ``shape`` does: what is larger still does not fit. Attention makes memory grow with the
    square of tokens and patches. Rows up to MEMORY times as long keep their number.
    """
    before = np.array([shape.tokens, shape.patches, shape.chunks])
    sizes = _sizes(sources)
    sizes = sizes[(sizes <= before * shape.batch_size).all(1)]
    after = np.maximum(before, sizes.max(0, initial=0))
    growth = after / np.maximum(before, 1) / MAX_GROWTH
    rows = max(1, int(shape.batch_size / max(1.0, growth[0] ** 2, growth[1] ** 2, growth[2])))
    return BatchShape(rows, *(int(size) for size in after))


def shrink_to_fit(shape: BatchShape, sources: Mapping[str, Examples]) -> BatchShape:
    """Rows no larger than these examples can fill: recordings alone need no room for patches, and hardly any for tokens.

    The scarcest budget says how many examples a row holds; the others keep room for a quarter more than those need.
    """
    budgets, sizes = np.array([shape.tokens, shape.patches, shape.chunks]), _sizes(sources)
    sizes = sizes[(sizes <= budgets).all(1)]
    if not len(sizes):
        return shape
    mean, most = sizes.mean(0), sizes.max(0)
    examples = (budgets[mean > 0] / mean[mean > 0]).min()
    room = np.ceil(1.25 * examples * mean / 32) * 32
    tokens, patches, chunks = (int(v) for v in np.where(most > 0, np.minimum(budgets, np.maximum(room, most)), 0))
    return BatchShape(shape.batch_size, tokens, patches, chunks)


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
    shape = t.shape if t.weights else shrink_to_fit(grow_to_fit(t.shape, sources), sources)
    return Training(phases, shape, t.optimizer, t.seed, t.save_every, 5, 100, questions)


def validation_nats(folder: Path, shape: BatchShape) -> dict[str, float]:
    """Loss of a model of a run on the run's validation split, by source.

    Empty where the model lies in no run, or the run's split was encoded with other tokenizers than the model's.
    """
    tokens = folder.parent.parent / "tokens"
    files = ("text.model", "vocabulary.json", "image_tokenizer.safetensors")
    if not all((tokens / n).is_file() and (tokens / n).read_bytes() == (folder / n).read_bytes() for n in files):
        return {}
    params, c = load_model(folder)
    return validate(params, c, open_examples(tokens / "validation"), shape)


def tune(
    params: model.Params, c: config.Model, t: Tune, data: Path, out: Path, questions: float, title: str = "tune"
) -> model.Params:
    """Tunes on encoded examples (answers only), continuing from a checkpoint under ``out`` if there is one."""
    return train(params, c, training(t, data, questions), Folders(data, out), title)
