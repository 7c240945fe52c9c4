"""Image codes in the vocabulary: each is a pair (structure, color), its embedding the sum of theirs, its score too.

    code k = structure + A·color       ids      0 … text … │ code 0 … code A·B-1        [V]
                                        rows     0 … text … │ structure 0..A-1 │ color 0..B-1        [R]

A model that has drawn red circles and blue stars has then learned every part of a red star, though it may never have met the codes
of one: with a row of its own for each code it cannot draw it (docs/results.md). Factorized vocabularies of this kind are in
Open-MAGVIT2 (Luo et al. 2024). Without factors every id has its own row.

On a mesh the rows are cut over n chips, wherever text ends. Chip i scores its own rows and the codes of its share of the colors:

    columns     R/n rows, those of structures and colors void │ A·B/n codes         of which all chips add up the A + B scores
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.model.linear import Weight, take_rows
from alhena.shapes import Array, Bool, Float, Int

Factors = tuple[int, int]  # A structures, B colors


def embedding_rows(vocabulary: int, factors: Factors | None) -> int:
    """Rows of the embedding."""
    return vocabulary - factors[0] * factors[1] + sum(factors) if factors else vocabulary


def _rows(ids: Int[Array, " ..."], rows: int, factors: Factors) -> tuple[Int[Array, " ..."], Int[Array, " ..."]]:
    """The two rows of ids, out of ``rows``; the second of what is no code is -1."""
    first, A = rows - sum(factors), factors[0]
    code = jnp.maximum(ids - first, 0)
    own, second = jnp.where(ids < first, ids, first + code % A), first + A + code // A
    return own, jnp.where(ids < first, -1, second)


def lookup(embedding: Weight, ids: Int[Array, " ..."], factors: Factors | None) -> Float[Array, "... D"]:
    """Embeddings of ids of the vocabulary."""
    if not factors:
        return take_rows(embedding, ids)
    rows = embedding.shape[0] if isinstance(embedding, Array) else embedding.packed.shape[-1]
    own, second = _rows(ids, rows, factors)
    return take_rows(embedding, own) + jnp.where((second < 0)[..., None], 0, take_rows(embedding, second))


def lookup_on_mesh(embedding: Weight, ids: Int[Array, "B L"], factors: Factors | None) -> Float[Array, "B L D"]:
    """:func:`lookup` where every chip finds the rows of its part, to which the others add zeros."""
    data, model = sharding.mesh_axis("width"), sharding.mesh_axis("vocabulary")

    def local(table: Array, ids: Array) -> Array:
        part = jax.lax.all_gather(table, data, axis=1, tiled=True)
        found = jnp.zeros((*ids.shape, part.shape[1]), part.dtype)
        rows = part.shape[0] * jax.lax.axis_size(model)
        for wanted in _rows(ids, rows, factors) if factors else (ids,):
            place = wanted - jax.lax.axis_index(model) * part.shape[0]
            here = (place >= 0) & (place < part.shape[0])
            found += jnp.where(here[..., None], part[jnp.where(here, place, 0)], 0)
        return sharding.scatter(found)

    inputs = (("vocabulary", "width"), ("batch", None))
    return sharding.on_shards(local, inputs, ("batch", "length", None))(embedding, ids)


def expand_logits(scores: Float[Array, "... R"], factors: Factors | None) -> Float[Array, "... V"]:
    """Scores of the rows to scores of the vocabulary."""
    if not factors:
        return scores
    first = scores.shape[-1] - sum(factors)
    text, structure, color = jnp.split(scores, [first, first + factors[0]], -1)
    codes = color[..., :, None] + structure[..., None, :]
    return jnp.concatenate([text, codes.reshape(*codes.shape[:-2], -1)], -1)


def collapse_gradient(slopes: Float[Array, "... V"], factors: Factors | None) -> Float[Array, "... R"]:
    """The transpose of :func:`expand`: gradients of the vocabulary's scores to gradients of the rows' scores."""
    if not factors:
        return slopes
    text, codes = jnp.split(slopes, [slopes.shape[-1] - factors[0] * factors[1]], -1)
    codes = codes.reshape(*codes.shape[:-1], factors[1], factors[0])
    return jnp.concatenate([text, codes.sum(-2), codes.sum(-1)], -1)


def _places(rows: int, factors: Factors, axis: str) -> tuple[Int[Array, " pairs"], Bool[Array, " pairs"]]:
    """Where in a chip's ``rows`` those of structures and colors are, and which of them are there."""
    first = rows * jax.lax.axis_size(axis) - sum(factors)
    place = first + jnp.arange(sum(factors)) - jax.lax.axis_index(axis) * rows
    here = (place >= 0) & (place < rows)
    return jnp.where(here, place, 0), here


def _share(factors: Factors, axis: str) -> Factors:
    """The codes of a chip: all structures in its share of the colors."""
    return factors[0], factors[1] // jax.lax.axis_size(axis)


def shard_ids(rows: int, factors: Factors | None, axis: str) -> Int[Array, " columns"]:
    """The id that each column of a chip stands for; -1: none."""
    own = jax.lax.axis_index(axis) * rows + jnp.arange(rows)
    if not factors:
        return own
    first = rows * jax.lax.axis_size(axis) - sum(factors)
    A, colors = _share(factors, axis)
    codes = first + jax.lax.axis_index(axis) * A * colors + jnp.arange(A * colors)
    return jnp.concatenate([jnp.where(own < first, own, -1), codes])


def expand_logits_shard(
    scores: Float[Array, "... r"], factors: Factors | None, axis: str
) -> Float[Array, "... columns"]:
    """:func:`expand` on a chip: scores of its rows to scores of its columns."""
    if not factors:
        return scores
    place, here = _places(scores.shape[-1], factors, axis)
    pairs = jax.lax.psum(jnp.where(here, scores[..., place], 0), axis)
    A, colors = _share(factors, axis)
    mine = jax.lax.dynamic_slice_in_dim(pairs, A + jax.lax.axis_index(axis) * colors, colors, -1)
    codes = expand_logits(jnp.concatenate([pairs[..., :A], mine], -1), (A, colors))
    return jnp.concatenate([scores, codes], -1)


def collapse_gradient_shard(
    slopes: Float[Array, "... columns"], factors: Factors | None, axis: str
) -> Float[Array, "... r"]:
    """:func:`collapse` on a chip: void columns have no slope."""
    if not factors:
        return slopes
    A, colors = _share(factors, axis)
    own, codes = jnp.split(slopes, [slopes.shape[-1] - A * colors], -1)
    codes = collapse_gradient(codes, (A, colors))
    pairs = jnp.zeros((*codes.shape[:-1], sum(factors)), codes.dtype).at[..., :A].set(codes[..., :A])
    start = A + jax.lax.axis_index(axis) * colors
    pairs = jax.lax.dynamic_update_slice_in_dim(pairs, codes[..., A:], start, -1)
    place, here = _places(own.shape[-1], factors, axis)
    return own.at[..., place].add(jnp.where(here, jax.lax.psum(pairs, axis), 0))
