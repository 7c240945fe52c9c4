"""Per-layer inputs: a second embedding table, with a small vector of each token for every layer (Gemma 3n and 4).

    ids        ─ table [V', layers·P] · √P ───────────────────┐
    embeddings ─ projection [D, layers·P] · D^-½ ─ RMSNorm ─ + · 2^-½ ─► p [layers, B, L, P]

    x ─┬─ gate [D, P] ─ gelu ─ · p_i ─ project [P, D] ─ RMSNorm ─ + ─►             after the MLP of layer i
       └─────────────────────────────────────────────────────────┘

A large table costs memory, which may be slow, but no computation: only the rows of the tokens are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding
from alhena.model.layers import gated, rms_norm
from alhena.model.linear import Plain, Weight, column_parallel, row_parallel
from alhena.model.spec import Normal, WeightSpec, matrix, vector
from alhena.model.transformer.embedding import lookup, lookup_on_mesh
from alhena.shapes import Array, Float, Int, pytree


@pytree
@dataclass(frozen=True)
class Layer:
    """Weights of one layer."""

    gate: Weight  # [D, P]
    project: Weight  # [P, D]
    post_norm: Array  # [D]


@pytree
@dataclass(frozen=True)
class Table:
    """Weights that all layers share."""

    table: Plain  # [V', layers·P]
    projection: Weight  # [D, layers·P]
    norm: Array  # [P]


def layer_weights(c: config.PerLayerInputs, decoder: config.Decoder) -> Layer:
    """Specifications of the weights of one layer."""
    D, P = decoder.width, c.width
    return Layer(
        gate=matrix(0, (D, P), ("width", "hidden"), quantize=True),
        project=matrix(1, (P, D), ("hidden", "width"), quantize=True),
        post_norm=vector(D, -1 + 1 / np.sqrt(2 * decoder.layers)),
    )


def weights(c: config.PerLayerInputs, decoder: config.Decoder) -> Table:
    """Specifications of the weights that all layers share."""
    D, P, V = decoder.width, c.width, c.vocabulary
    # As large as token embeddings: √P times a row has a root mean square of one.
    rows = Normal(0, gain=(V / P) ** 0.5)
    return Table(
        table=WeightSpec(  # type: ignore[arg-type]
            (V, decoder.layers * P), ("vocabulary", "width"), rows, "adam", decay=False, contracted=-1
        ),
        projection=matrix(1, (D, decoder.layers * P), ("width", "hidden"), quantize=True),
        norm=vector(P),
    )


def inputs(
    w: Table, ids: Int[Array, "B L"], x: Float[Array, "B L D"], c: config.PerLayerInputs, dtype: str
) -> Float[Array, "layers B L P"]:
    """The vectors of every layer, from the token ids and the embeddings, encoder outputs included.

    Ids below 0 or beyond the table have the row of id 0.
    """
    look_up = lookup_on_mesh if sharding.has_mesh() else lookup
    rows = look_up(w.table, jnp.where((ids < 0) | (ids >= c.vocabulary), 0, ids), None).astype(jnp.float32)
    (projected,) = column_parallel(x, (w.projection,), ("hidden",), dtype)
    rows, projected = (a.reshape(*ids.shape, -1, c.width) for a in (rows, projected))
    both = rms_norm(projected * x.shape[-1] ** -0.5, w.norm) + rows * c.width**0.5
    return jnp.moveaxis(both * 2**-0.5, 2, 0)


def residual(w: Layer, x: Float[Array, "B L D"], vectors: Float[Array, "B L P"], dtype: str) -> Float[Array, "B L D"]:
    """What a layer adds to its output, computed from that output and its vectors."""
    (gate,) = column_parallel(x, (w.gate,), ("hidden",), dtype)
    return rms_norm(row_parallel(gated(gate, vectors), w.project, dtype), w.post_norm)
