"""The complete model: encoder outputs at the placeholders of the token stream, decoder, tied embeddings for the logits.

    patches ─ vision ─┐
    frames ── audio ──┼─► tokens ─ embed ─ x [B, L, D] ─ decoder ─ norm ─ hidden ─ · embeddingᵀ ─► logits [B, L, V]
    tokens ───────────┘

Three functions run it:

    forward  complete sequences                          -> hidden states of every token
    prefill  prompts, right padded                       -> hidden state of each prompt's last token, KV cache of the prompts
    decode   one token per sequence, with its position   -> hidden state of the token, KV cache with the token written
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
from alhena.model.kv_cache import Cache
from alhena.model.layers import rms_norm, softcap
from alhena.model.linear import Weight, einsum
from alhena.model.spec import WeightSpec, vector, within
from alhena.shapes import Array, Bool, Float, Int, pytree

# Size of the embeddings' shared direction, relative to that of their individual directions.
SHARED = 0.7


@pytree
@dataclass(frozen=True)
class Params:
    """Weights of the model."""

    # [R, D], one row per id except for image codes (alhena/model/embedding.py); tied to the output projection.
    embedding: Weight
    vision: vision.Vision | None
    audio: conformer.Conformer | usm.Usm | None
    layers: decoder.Layers
    norm: Array  # [D]


def audio_encoder(c: config.Conformer) -> ModuleType:
    """The module that implements the audio encoder."""
    return usm if isinstance(c, config.Usm) else conformer


@dataclass(frozen=True)
class SharedDirection:
    """Initializer of the embeddings: an individual direction each, plus one that all share.

    Projections have no biases, so a head that attends by *position* (to the previous token, for example) needs a component that all
    queries and keys have. Without it, retrieval from a list is learned many times later (docs/results.md).
    """

    key: int
    shared_key: int

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Float[Array, "R D"]:
        individual, shared = (jax.random.fold_in(key, number) for number in (self.key, self.shared_key))
        D = shape[-1]
        direction = SHARED * jax.random.rademacher(shared, (D,), jnp.float32)
        return (jax.random.normal(individual, shape) + direction) * D**-0.5


def weights(c: config.Model) -> Params:
    """Specifications of the weights (alhena/model/spec.py)."""
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


def _add_at_placeholders(
    x: Float[Array, "B L D"], placeholders: Bool[Array, "B L"], vectors: Float[Array, "B W D"]
) -> Float[Array, "B L D"]:
    """Adds the k-th encoder output of a sequence to the embedding of its k-th placeholder."""
    if vectors.shape[1] == 0:
        return x
    index = jnp.clip(jnp.cumsum(placeholders, 1) - 1, 0, vectors.shape[1] - 1)
    vectors = sharding.constrain(vectors, "batch", None, None)
    added = jnp.where(placeholders[..., None], jnp.take_along_axis(vectors, index[..., None], 1), 0)
    return sharding.constrain(x + added, "batch", "length", None)


def embed(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Token embeddings scaled by √D, with encoder outputs added at their placeholders."""
    look_up = lookup_on_mesh if sharding.has_mesh() else lookup
    x = look_up(params.embedding, batch.tokens, c.code_factors) * c.decoder.width**0.5
    if c.vision and params.vision and batch.patches.shape[1]:
        vectors = vision.encode(
            params.vision, batch.patches, batch.patch_positions, batch.patch_images, c.vision, c.compute_dtype
        )
        x = _add_at_placeholders(x, batch.tokens == c.image_token, vectors)
    if c.audio and params.audio and batch.frames.shape[1]:
        vectors, valid = audio_encoder(c.audio).encode(
            params.audio, batch.frames, batch.frame_lengths, c.audio, c.compute_dtype
        )
        # Valid vectors first, in order.
        order = jnp.argsort(~valid, axis=1, stable=True)
        vectors = jnp.take_along_axis(vectors, order[..., None], 1)
        x = _add_at_placeholders(x, batch.tokens == c.audio_token, vectors)
    return x


def decoder_output(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Hidden states of every token after the last layer. Their size is an early sign of divergence (Chameleon 2024)."""
    packing = decoder.Packing(batch.segments, batch.positions)
    return decoder.run(params.layers, embed(params, c, batch), packing, c.decoder, c.compute_dtype)[0]


def forward(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Final hidden states of every token, normalized: the input of :func:`logits`."""
    return rms_norm(decoder_output(params, c, batch), params.norm)


def prefill(params: Params, c: config.Model, batch: Batch, slots: int) -> tuple[Float[Array, "B D"], Cache]:
    """Final hidden states of the last token of each prompt, and a cache of ``slots`` slots with the prompts.

    Each sequence is one prompt: one segment, right padded. Raises ValueError when there are fewer slots than tokens.
    """
    length = batch.tokens.shape[1]
    if slots < length:
        raise ValueError(f"a cache of {slots} slots cannot hold sequences of {length} tokens")
    x = embed(params, c, batch)
    packing = decoder.Packing(batch.segments, batch.positions)
    x, cache = decoder.run(params.layers, x, packing, c.decoder, c.compute_dtype, slots)
    last = jnp.maximum((batch.segments > 0).sum(1) - 1, 0)
    return rms_norm(jnp.take_along_axis(x, last[:, None, None], 1)[:, 0], params.norm), cache


def decode(
    params: Params, c: config.Model, tokens: Int[Array, " B"], positions: Int[Array, " B"], cache: Cache
) -> tuple[Float[Array, "B D"], Cache]:
    """Final hidden states of one text, control or code token per sequence, and the cache with the token written."""
    x = lookup(params.embedding, tokens, c.code_factors) * c.decoder.width**0.5
    x, cache = decoder.step(params.layers, x, positions, cache, c.decoder, c.compute_dtype)
    return rms_norm(x, params.norm), cache


def logits(params: Params, c: config.Model, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Logits over the vocabulary, by the tied embeddings."""
    scores = expand_logits(einsum("...i,oi->...o", hidden, params.embedding, c.compute_dtype), c.code_factors)
    return softcap(scores, c.decoder.final_logit_softcap)


def count(params: Any) -> int:
    """Number of parameters in a tree of arrays, shapes or specifications."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
