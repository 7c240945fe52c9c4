"""Factorized image codes in the vocabulary: a code is a pair (structure, color), its embedding and its logit are sums over the pair.

    code k = structure + A·color       ids      0 … text … │ code 0 … code A·B-1                        [V]
                                       rows     0 … text … │ structure 0..A-1 │ color 0..B-1            [R]

A model trained on red circles and blue stars has then trained both factors of a red star, though it may never have seen its codes:
with one row per code it cannot generate it (docs/results.md). Open-MAGVIT2 (Luo et al. 2024) has factorized vocabularies of this kind.
Without factors every id has its own row.

On a mesh the rows are sharded over n chips, at any boundary. A chip computes the logits of its own rows, and of the codes of its share
of the colors, for which all chips sum the A + B logits of the factors:

    columns     R/n rows, masked where they are structures or colors │ A·B/n codes

In a model that extends an imported one (``config.Model.frozen_rows``), the first rows are not trained. Training then has the other
rows as an array of their own, so that neither a gradient nor moments of the frozen ones exist (:class:`Extended`).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.model.linear import Plain, dense, take_rows
from alhena.shapes import Array, Bool, Float, Int, pytree

# A structures, B colors.
Factors = tuple[int, int]


@pytree
@dataclass(frozen=True)
class Extended:
    """An embedding in training whose first rows are frozen: ``rows`` stand in for the last rows of ``table``."""

    table: Float[Array, "R D"]
    rows: Float[Array, "trained D"]


Table = Plain | Extended


def frozen_rows(e: Extended) -> int:
    """Number of rows that are not trained."""
    return e.table.shape[0] - e.rows.shape[0]


def joined(e: Extended, dtype: str = "float32") -> Float[Array, "R D"]:
    """The embedding as one array."""
    return jnp.asarray(e.table, dtype).at[frozen_rows(e) :].set(jnp.asarray(e.rows, dtype))


def whole(embedding: Table) -> Plain:
    """The embedding as one weight."""
    return joined(embedding) if isinstance(embedding, Extended) else embedding


def _row_count(embedding: Table) -> int:
    return embedding.table.shape[0] if isinstance(embedding, Extended) else embedding.shape[0]


def _take(embedding: Table, rows: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of the table."""
    if not isinstance(embedding, Extended):
        return take_rows(embedding, rows)
    trained = rows - frozen_rows(embedding)
    old = take_rows(embedding.table, jnp.where(trained < 0, rows, 0))
    return jnp.where((trained < 0)[..., None], old, take_rows(embedding.rows, jnp.maximum(trained, 0)))


def embedding_rows(vocabulary: int, factors: Factors | None) -> int:
    """Number of rows of the embedding table."""
    return vocabulary - factors[0] * factors[1] + sum(factors) if factors else vocabulary


def _row_pair(
    ids: Int[Array, "*batch"], rows: int, factors: Factors
) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
    """The two rows of each id in a table of ``rows``; the second is -1 for ids that are not codes."""
    first_code, A = rows - sum(factors), factors[0]
    code = jnp.maximum(ids - first_code, 0)
    first = jnp.where(ids < first_code, ids, first_code + code % A)
    return first, jnp.where(ids < first_code, -1, first_code + A + code // A)


def lookup(embedding: Table, ids: Int[Array, "*batch"], factors: Factors | None) -> Float[Array, "*batch D"]:
    """Embeddings of ids of the vocabulary."""
    if not factors:
        return _take(embedding, ids)
    first, second = _row_pair(ids, _row_count(embedding), factors)
    return _take(embedding, first) + jnp.where((second < 0)[..., None], 0, _take(embedding, second))


def lookup_on_mesh(embedding: Plain, ids: Int[Array, "B L"], factors: Factors | None) -> Float[Array, "B L D"]:
    """:func:`lookup` where every chip looks up the rows of its shard and the results are summed."""
    data, model = sharding.mesh_axis("width"), sharding.mesh_axis("vocabulary")

    def local(shard: Float[Array, "r d"], ids: Int[Array, "b L"]) -> Float[Array, "b l D"]:
        table = jax.lax.all_gather(shard, data, axis=1, tiled=True)
        out = jnp.zeros((*ids.shape, table.shape[1]), table.dtype)
        rows = table.shape[0] * jax.lax.axis_size(model)
        for row in _row_pair(ids, rows, factors) if factors else (ids,):
            local_row = row - jax.lax.axis_index(model) * table.shape[0]
            in_shard = (local_row >= 0) & (local_row < table.shape[0])
            out += jnp.where(in_shard[..., None], table[jnp.where(in_shard, local_row, 0)], 0)
        return sharding.reduce_scatter(out)

    inputs = (("vocabulary", "width"), ("batch", None))
    return sharding.on_shards(local, inputs, ("batch", "length", None))(dense(embedding), ids)


def expand_logits(logits: Float[Array, "*batch R"], factors: Factors | None) -> Float[Array, "*batch V"]:
    """Logits of the rows to logits of the vocabulary."""
    if not factors:
        return logits
    first = logits.shape[-1] - sum(factors)
    text, structure, color = jnp.split(logits, [first, first + factors[0]], -1)
    codes = color[..., :, None] + structure[..., None, :]
    return jnp.concatenate([text, codes.reshape(*codes.shape[:-2], -1)], -1)


def collapse_gradient(gradient: Float[Array, "*batch V"], factors: Factors | None) -> Float[Array, "*batch R"]:
    """Transpose of :func:`expand_logits`: gradients of the vocabulary's logits to gradients of the rows' logits."""
    if not factors:
        return gradient
    text, codes = jnp.split(gradient, [gradient.shape[-1] - factors[0] * factors[1]], -1)
    codes = codes.reshape(*codes.shape[:-1], factors[1], factors[0])
    return jnp.concatenate([text, codes.sum(-2), codes.sum(-1)], -1)


def _factor_rows(rows: int, factors: Factors, axis: str) -> tuple[Int[Array, " factors"], Bool[Array, " factors"]]:
    """Local index of each structure and color in a shard of ``rows``, and which of them the shard holds."""
    first = rows * jax.lax.axis_size(axis) - sum(factors)
    index = first + jnp.arange(sum(factors)) - jax.lax.axis_index(axis) * rows
    in_shard = (index >= 0) & (index < rows)
    return jnp.where(in_shard, index, 0), in_shard


def _local_factors(factors: Factors, axis: str) -> Factors:
    """Factors of a chip's codes: all structures, its share of the colors."""
    return factors[0], factors[1] // jax.lax.axis_size(axis)


def shard_ids(rows: int, factors: Factors | None, axis: str) -> Int[Array, " columns"]:
    """The id of each column of a chip's logits; -1: none."""
    row = jax.lax.axis_index(axis) * rows + jnp.arange(rows)
    if not factors:
        return row
    first = rows * jax.lax.axis_size(axis) - sum(factors)
    A, colors = _local_factors(factors, axis)
    codes = first + jax.lax.axis_index(axis) * A * colors + jnp.arange(A * colors)
    return jnp.concatenate([jnp.where(row < first, row, -1), codes])


def shard_columns(ids: Int[Array, "*batch"], columns: int, factors: Factors | None, axis: str) -> Int[Array, "*batch"]:
    """Inverse of :func:`shard_ids`: the column of each id in a chip's logits; ``columns``, their number, where another chip has it."""
    chip = jax.lax.axis_index(axis)
    if not factors:
        local = ids - chip * columns
        return jnp.where((local >= 0) & (local < columns), local, columns)
    A, colors = _local_factors(factors, axis)
    rows = columns - A * colors
    first = rows * jax.lax.axis_size(axis) - sum(factors)
    row, code = ids - chip * rows, ids - first - chip * A * colors
    column = jnp.where((ids < first) & (row >= 0) & (row < rows), row, columns)
    return jnp.where((ids >= first) & (code >= 0) & (code < A * colors), rows + code, column)


def expand_logits_shard(
    logits: Float[Array, "*batch r"], factors: Factors | None, axis: str
) -> Float[Array, "*batch columns"]:
    """:func:`expand_logits` on a chip: logits of its rows to logits of its columns."""
    if not factors:
        return logits
    index, in_shard = _factor_rows(logits.shape[-1], factors, axis)
    pairs = jax.lax.psum(jnp.where(in_shard, logits[..., index], 0), axis)
    A, colors = _local_factors(factors, axis)
    local_colors = jax.lax.dynamic_slice_in_dim(pairs, A + jax.lax.axis_index(axis) * colors, colors, -1)
    codes = expand_logits(jnp.concatenate([pairs[..., :A], local_colors], -1), (A, colors))
    return jnp.concatenate([logits, codes], -1)


def collapse_gradient_shard(
    gradient: Float[Array, "*batch columns"], factors: Factors | None, axis: str
) -> Float[Array, "*batch r"]:
    """:func:`collapse_gradient` on a chip; the gradient of masked columns must be 0."""
    if not factors:
        return gradient
    A, colors = _local_factors(factors, axis)
    rows, codes = jnp.split(gradient, [gradient.shape[-1] - A * colors], -1)
    codes = collapse_gradient(codes, (A, colors))
    pairs = jnp.zeros((*codes.shape[:-1], sum(factors)), codes.dtype).at[..., :A].set(codes[..., :A])
    start = A + jax.lax.axis_index(axis) * colors
    pairs = jax.lax.dynamic_update_slice_in_dim(pairs, codes[..., A:], start, -1)
    index, in_shard = _factor_rows(rows.shape[-1], factors, axis)
    return rows.at[..., index].add(jnp.where(in_shard, jax.lax.psum(pairs, axis), 0))
