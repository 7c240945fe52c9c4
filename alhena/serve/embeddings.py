"""Embeddings of texts and media: standardized hidden states of three depths, averaged over tokens.

    1  a content is encoded as running text, or as a page with media
    2  hidden states after a third, two thirds and all of the layers are scaled to the same size (RMS) and averaged over the tokens
       after the first, which attracts attention and says nothing of the content
    3  at each depth every dimension is standardized by its mean and spread over a list of sentences, and the vector scaled to length 1
    4  the three are added; the first ``dimension`` values of the sum are scaled to length 1

A decoder is trained to predict the next token: its last layers, and dimensions of large values, serve that and not similarity.
benchmarks/retrieval.py measures what each step is worth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from alhena.batch import Batch, Example
from alhena.content import Content, Document, Text
from alhena.model import model
from alhena.model.config import Model
from alhena.model.layers import rms_norm
from alhena.model.storage.truncated import hidden_states, split_near
from alhena.serve.decoding import buckets
from alhena.serve.embedding_sentences import SENTENCES
from alhena.serve.engine import Engine
from alhena.serve.gemini.wire.fields import overloaded
from alhena.shapes import Array, Float

# Shares of the layers after which hidden states are taken.
DEPTHS = (1 / 3, 2 / 3, 1.0)
# Padded tokens of one batch.
MAX_BATCH_TOKENS = 8192
MAX_WAITING = 64
# Spread of a dimension below which it says nothing.
MIN_SPREAD = 1e-6


@partial(jax.jit, static_argnums=(1, 2))
def _pooled(params: model.Params, c: Model, depths: tuple[int, ...], batch: Batch) -> Float[Array, "depths B D"]:
    """Hidden states after these numbers of layers, averaged over the tokens after the first."""
    counted = (batch.segments > 0) & ((batch.positions > 0) | (batch.segments.sum(1, keepdims=True) == 1))
    weights = counted.astype(jnp.float32)[..., None]
    hidden = jnp.stack([rms_norm(hidden_states(params, c, batch, layers)) for layers in depths])
    return (hidden * weights).sum(2) / weights.sum(1)


class Embedder:
    """Vectors of contents. Its own thread computes them, one batch at a time, beside the engine's."""

    def __init__(self, engine: Engine) -> None:
        self._engine, decoder = engine, engine.config.decoder
        self.depths = tuple(split_near(decoder, share * decoder.layers) for share in DEPTHS)
        self._thread, self._waiting = ThreadPoolExecutor(1, "alhena-embedder"), 0

    @property
    def dimension(self) -> int:
        """Of a complete vector."""
        return self._engine.config.decoder.width

    def encode(self, content: Content) -> Example:
        """Raises ValueError when the content is too long, or its media do not decode."""
        limit = self._engine.max_prompt_tokens
        examples = self._engine.encoder.encode(Document((content,), "", ""), limit)
        if len(examples) != 1:
            count = sum(len(example.tokens) for example in examples)
            raise ValueError(
                f"the content has {count:,} tokens; at most {limit:,} can be read" if count else "it is empty"
            )
        buckets.check_fits(examples[0], self._engine.config, 1, limit)
        return examples[0]

    async def __call__(self, examples: Sequence[Example], dimensions: Sequence[int]) -> list[list[float]]:
        """Unit vectors of these dimensions (0: complete). Raises WireError 429 when too many requests wait."""
        if self._waiting >= MAX_WAITING:
            raise overloaded(f"{MAX_WAITING} requests wait for embeddings")
        self._waiting += 1
        try:
            out: list[list[float]] = [[]] * len(examples)
            loop = asyncio.get_running_loop()
            for group in _groups(examples):
                # A client that disconnects ends the request between two batches.
                vectors = await loop.run_in_executor(self._thread, self.standardized, [examples[i] for i in group])
                for i, vector in zip(group, vectors, strict=True):
                    # The digits that float32 has.
                    out[i] = [round(float(value), 9) for value in unit(vector[: dimensions[i] or None])]
            return out
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def standardized(self, examples: list[Example]) -> Float[np.ndarray, "n D"]:
        """The sum of the standardized vectors of all depths."""
        mean, spread = self.statistics
        return unit((self.pool(examples) - mean) / spread).sum(0)

    def pool(self, examples: list[Example]) -> Float[np.ndarray, "depths n D"]:
        """Averaged hidden states of one batch."""
        size = buckets.bucket(buckets.BATCH_SIZES, len(examples), "sequences")
        batch = buckets.padded(examples + [examples[0]] * (size - len(examples)))
        pooled = _pooled(self._engine.params, self._engine.config, self.depths, batch)
        return np.asarray(pooled, np.float32)[:, : len(examples)]

    @cached_property
    def statistics(self) -> tuple[Float[np.ndarray, "depths 1 D"], Float[np.ndarray, "depths 1 D"]]:
        """Mean and spread of each dimension over the sentences."""
        examples = [self.encode(Content("document", (Text(sentence),))) for sentence in SENTENCES]
        pooled = np.concatenate([self.pool([examples[i] for i in group]) for group in _groups(examples)], 1)
        return pooled.mean(1, keepdims=True), np.maximum(pooled.std(1, keepdims=True), MIN_SPREAD)


def unit(vectors: Float[np.ndarray, "*n D"]) -> Float[np.ndarray, "*n D"]:
    """Vectors of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), MIN_SPREAD)


def _groups(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Indices in batches of similar length."""
    order = sorted(
        range(len(examples)), key=lambda i: (len(examples[i].frames), len(examples[i].patches), len(examples[i].tokens))
    )
    group: list[int] = []
    for i in order:
        padded = buckets.bucket(buckets.TOKENS, max(len(examples[j].tokens) for j in [*group, i]), "tokens")
        alone = len(examples[i].frames) or len(examples[i].patches)
        full = len(group) >= buckets.BATCH_SIZES[-1] or (len(group) + 1) * padded > MAX_BATCH_TOKENS
        if group and (full or alone):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
