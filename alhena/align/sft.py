"""Supervised fine-tuning (SFT): conversations of the same Content as in pre-training, loss on the model turns only.

    <user> <boi> <img>… <eoi> What is this? <end> <model> a circle <end>
    loss                                                  ■ ■      ■

The same settings continue a finished model on a user's own documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alhena.model import config
from alhena.model.storage.folders import load_model
from alhena.schema import bounded
from alhena.shapes import Int
from alhena.tokens.encoders import encoder_files
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.tokens.examples.tokenize import Encoding
from alhena.train.mixture import Phase, Training, open_examples
from alhena.train.monitoring.validation import validate
from alhena.train.optimizer import Optimizer

# On a user's own data sequences may grow to this multiple before the batch size is reduced.
MAX_GROWTH = 4


@dataclass(frozen=True)
class LoraOptions:
    """Adapters are trained instead of all weights; their factor is ``alpha`` / ``rank``."""

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        bounded(self, rank=(1, 2**12), alpha=(1e-3, 1e6))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Tune:
    """Settings of a fine-tuning. ``weights`` by source; None weighs each source by its number of examples."""

    steps: int
    shape: BatchShape
    optimizer: Optimizer = Optimizer(learning_rate=5e-4, warmup=20, schedule="cosine")
    weights: Mapping[str, float] | None = None
    seed: int = 1
    save_every: int = 50
    # None: all weights are trained.
    lora: LoraOptions | None = None

    def encoding(self, base: Path) -> Encoding:
        """Encoding of a user's own documents: each may be as long as a batch; running text is split at a sequence of the recipe."""
        return Encoding(base, self.shape.batch_tokens, window=self.shape.tokens)


def _sizes(sources: Mapping[str, Examples]) -> Int[np.ndarray, "examples 3"]:
    """Tokens, patches and audio chunks of each example of all sources."""
    return np.concatenate([source.sizes() for source in sources.values()])


def shape_for(c: config.Model, batch_size: int, tokens: int) -> BatchShape:
    """A shape whose sequences may be filled with soft tokens of images, or of audio."""
    patches = tokens * c.vision.pool**2 if c.vision else 0
    chunks = max(1, tokens // c.audio.tokens(c.audio.chunk)) if c.audio else 0
    return BatchShape(batch_size, tokens, patches, chunks)


def grow_to_fit(shape: BatchShape, sources: Mapping[str, Examples]) -> BatchShape:
    """A shape whose sequences hold the largest example; the batch size shrinks, so that the memory of a step is bounded.

    A sequence never exceeds a batch of ``shape``: a larger example does not fit. Memory grows with the square of tokens and patches
    (attention). Up to MAX_GROWTH times the length, the batch size stays.
    """
    before = np.array([shape.tokens, shape.patches, shape.chunks])
    sizes = _sizes(sources)
    sizes = sizes[(sizes <= before * shape.batch_size).all(1)]
    after = np.maximum(before, sizes.max(0, initial=0))
    growth = after / np.maximum(before, 1) / MAX_GROWTH
    batch_size = max(1, int(shape.batch_size / max(1.0, growth[0] ** 2, growth[1] ** 2, growth[2])))
    return BatchShape(batch_size, *(int(size) for size in after))


def shrink_to_fit(shape: BatchShape, sources: Mapping[str, Examples]) -> BatchShape:
    """A shape without budgets that the examples cannot use: recordings alone need no patches, and few tokens.

    The tightest budget gives the number of examples in a sequence; the other budgets get a quarter more than those need.
    """
    budgets, sizes = np.array([shape.tokens, shape.patches, shape.chunks]), _sizes(sources)
    sizes = sizes[(sizes <= budgets).all(1)]
    if not len(sizes):
        return shape
    mean, largest = sizes.mean(0), sizes.max(0)
    examples = (budgets[mean > 0] / mean[mean > 0]).min()
    needed = np.maximum(np.ceil(1.25 * examples * mean / 32) * 32, largest)
    tokens, patches, chunks = (int(v) for v in np.where(largest > 0, np.minimum(budgets, needed), 0))
    return BatchShape(shape.batch_size, tokens, patches, chunks)


def fitted_shape(shape: BatchShape, sources: Mapping[str, Examples]) -> BatchShape:
    """The shape of batches of a user's own examples."""
    return shrink_to_fit(grow_to_fit(shape, sources), sources)


def training(t: Tune, data: Path, ignored_loss_weight: float) -> Training:
    """Fine-tuning as a training of one phase; targets of ``ignored_loss_weight`` or less are not learned.

    Raises ValueError when there are no examples.
    """
    sources = open_examples(data)
    sizes = {name: float(len(examples)) for name, examples in sources.items()}
    if not sum(sizes.values()):
        raise ValueError(
            f"{data}: no examples to tune on; were all documents dropped? (see report.json of the curated folder)"
        )
    weights = {name: t.weights[name] for name in sizes if name in t.weights} if t.weights else sizes
    phases = (Phase(t.steps, weights),)
    shape = t.shape if t.weights else fitted_shape(t.shape, sources)
    return Training(phases, shape, t.optimizer, t.seed, t.save_every, 5, 100, ignored_loss_weight)


def run_tokens(folder: Path) -> Path | None:
    """The encoded examples of the run of a model, if they were made with its tokenizers."""
    tokens, names = folder.parent.parent / "tokens", encoder_files(folder)
    same = all(
        (tokens / name).is_file() and (tokens / name).read_bytes() == (folder / name).read_bytes() for name in names
    )
    return tokens if same else None


def validation_nats(folder: Path, shape: BatchShape) -> dict[str, float]:
    """Validation loss in nats of a model of a run, by source.

    Empty where the model is in no run folder, or where the split was encoded with other tokenizers than the model's.
    """
    tokens = run_tokens(folder)
    if tokens is None:
        return {}
    params, c = load_model(folder)
    return validate(params, c, open_examples(tokens / "validation"), shape)
