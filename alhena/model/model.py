"""The whole model: encoders fill the placeholders of the token stream, the decoder reads it, tied embeddings score it.

patches ─ vision ─┐
frames ── audio ──┼─► tokens ─ embed ─ x [B, L, D] ─ decoder ─ norm ─ hidden ─ · embeddingᵀ ─► logits [B, L, V]
tokens ───────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from alhena.batch import Batch
from alhena.model import config, decoder, sharding, spec
from alhena.model.embedding import embedding_rows, expand_logits, lookup, lookup_on_mesh
from alhena.model.encoders import conformer, usm, vision
from alhena.model.layers import rms_norm, softcap
from alhena.model.linear import Weight, einsum
from alhena.model.spec import WeightSpec, vector, within
from alhena.shapes import Array, Bool, Float, pytree

SHARED = 0.7  # size of the embeddings' common direction, where that of each one's own is 1


@pytree
@dataclass(frozen=True)
class Params:
    embedding: (
        Weight  # [R, D], a row for each id but image codes (alhena/model/embedding.py); tied: it also gives the logits
    )
    vision: vision.Vision | None
    audio: conformer.Conformer | usm.Usm | None
    layers: decoder.Layers
    norm: Array  # [D]


def audio_encoder(c: config.Conformer) -> ModuleType:
    """The module of the audio encoder."""
    return usm if isinstance(c, config.Usm) else conformer


@dataclass(frozen=True)
class SharedDirection:
    """Initializer of the embeddings: each has a direction of its own and one that all share. Projections have no biases, so a head
    that is to look at a *position* (the token before this one, say) needs something that every query and every key has. Without it,
    looking things up in a list is learned many times later (docs/results.md).
    """

    key: int
    shared_key: int

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        own, shared = (jax.random.fold_in(key, number) for number in (self.key, self.shared_key))
        D = shape[-1]
        direction = SHARED * jax.random.rademacher(shared, (D,), jnp.float32)
        return (jax.random.normal(own, shape) + direction) * D**-0.5


def weights(c: config.Model) -> Params:
    """The specification of every weight (alhena/model/spec.py)."""
    D, rows = c.decoder.width, embedding_rows(c.vocabulary, c.code_factors)
    embedding: Any = WeightSpec(
        (rows, D), ("vocabulary", "width"), SharedDirection(0, 4), "adam", decay=False, contracted=-1
    )
    return Params(
        embedding=embedding,
        vision=within(1, vision.weights(c.vision, D)) if c.vision else None,
        audio=within(2, audio_encoder(c.audio).weights(c.audio, D)) if c.audio else None,
        layers=within(3, decoder.weights(c.decoder)),
        norm=vector(D),
    )


@partial(jax.jit, static_argnums=1)
def init(key: Array, c: config.Model) -> Params:
    """Random weights; on a mesh every device makes its own shards."""
    specs = weights(c)
    return spec.constrain(spec.init(key, specs), specs)


def _fill(x: Float[Array, "B L D"], where: Bool[Array, "B L"], vectors: Float[Array, "B W D"]) -> Float[Array, "B L D"]:
    """Adds the k-th vector of a row at the row's k-th marked place, to the placeholder's own embedding."""
    if vectors.shape[1] == 0:
        return x
    index = jnp.clip(jnp.cumsum(where, 1) - 1, 0, vectors.shape[1] - 1)
    vectors = sharding.constrain(vectors, "batch", None, None)
    return sharding.constrain(
        x + jnp.where(where[..., None], jnp.take_along_axis(vectors, index[..., None], 1), 0), "batch", "length", None
    )


def embed(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Token embeddings scaled by √D, with the encoders' vectors in their places."""
    look_up = lookup_on_mesh if sharding.has_mesh() else lookup
    x = look_up(params.embedding, batch.tokens, c.code_factors) * c.decoder.width**0.5
    if c.vision and params.vision and batch.patches.shape[1]:
        seen = vision.encode(
            params.vision, batch.patches, batch.patch_positions, batch.patch_images, c.vision, c.compute_dtype
        )
        x = _fill(x, batch.tokens == c.image_token, seen)
    if c.audio and params.audio and batch.frames.shape[1]:
        heard, valid = audio_encoder(c.audio).encode(
            params.audio, batch.frames, batch.frame_lengths, c.audio, c.compute_dtype
        )
        order = jnp.argsort(~valid, axis=1, stable=True)  # valid vectors first, in order
        x = _fill(x, batch.tokens == c.audio_token, jnp.take_along_axis(heard, order[..., None], 1))
    return x


def decoder_output(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Hidden states of every token after the last layer. Their size is an early sign of divergence (Chameleon 2024)."""
    packing = decoder.Packing(batch.segments, batch.positions)
    return decoder.run(params.layers, embed(params, c, batch), packing, c.decoder, c.compute_dtype)[0]


def forward(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Final hidden states of every token, normed: multiply by the embedding (:func:`logits`) to score the vocabulary."""
    return rms_norm(decoder_output(params, c, batch), params.norm)


def logits(params: Params, c: config.Model, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    scores = expand_logits(einsum("...i,oi->...o", hidden, params.embedding, c.compute_dtype), c.code_factors)
    return softcap(scores, c.decoder.final_logit_softcap)


def count(params: Params) -> int:
    """Number of parameters; shapes or specifications of weights will do."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
