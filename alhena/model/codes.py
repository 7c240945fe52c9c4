"""Image codes in the vocabulary: each is a pair (structure, colour), its embedding the sum of theirs, its score too.

    code k = structure + A·colour       ids      0 … text … │ code 0 … code A·B-1        [V]
                                        rows     0 … text … │ structure 0..A-1 │ colour 0..B-1        [R]

A model that has drawn red circles and blue stars has then learned every part of a red star, though it may never have met the codes
of one: with a row of its own for each code it cannot draw it (docs/results.md). Factorised vocabularies of this kind are in
Open-MAGVIT2 (Luo et al. 2024). Without factors every id has its own row.
"""

from __future__ import annotations

import jax.numpy as jnp

from alhena.model.einsum import Weight, take
from alhena.shapes import Array, Float, Int

Factors = tuple[int, int]  # A structures, B colours


def num_rows(vocabulary: int, factors: Factors | None) -> int:
    """Rows of the embedding."""
    return vocabulary - factors[0] * factors[1] + sum(factors) if factors else vocabulary


def lookup(embedding: Weight, ids: Int[Array, ...], factors: Factors | None) -> Float[Array, "... D"]:
    """Embeddings of ids of the vocabulary."""
    if not factors:
        return take(embedding, ids)
    A = factors[0]
    first = (embedding.shape[0] if isinstance(embedding, Array) else embedding.packed.shape[-1]) - sum(factors)
    code = jnp.maximum(ids - first, 0)
    own = take(embedding, jnp.where(ids < first, ids, first + code % A))
    return own + jnp.where((ids < first)[..., None], 0, take(embedding, first + A + code // A))


def expand(scores: Float[Array, "... R"], factors: Factors | None) -> Float[Array, "... V"]:
    """Scores of the rows to scores of the vocabulary."""
    if not factors:
        return scores
    first = scores.shape[-1] - sum(factors)
    text, structure, colour = jnp.split(scores, [first, first + factors[0]], -1)
    codes = colour[..., :, None] + structure[..., None, :]
    return jnp.concatenate([text, codes.reshape(*codes.shape[:-2], -1)], -1)


def collapse(slopes: Float[Array, "... V"], factors: Factors | None) -> Float[Array, "... R"]:
    """The transpose of :func:`expand`: gradients of the vocabulary's scores to gradients of the rows' scores."""
    if not factors:
        return slopes
    text, codes = jnp.split(slopes, [slopes.shape[-1] - factors[0] * factors[1]], -1)
    codes = codes.reshape(*codes.shape[:-1], factors[1], factors[0])
    return jnp.concatenate([text, codes.sum(-2), codes.sum(-1)], -1)
