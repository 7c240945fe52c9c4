"""The complete model: encoder outputs at the placeholders of the token stream, decoder, tied embeddings for the logits.

    patches ─ vision ─┐
    frames ── audio ──┼─► tokens ─ embed ─ x [B, L, D] ─ decoder ─ norm ─ hidden ─ · embeddingᵀ ─► logits [B, L, V]
    tokens ───────────┘

Two functions run it:

    forward  complete sequences             -> hidden states of every token
    extend   the next tokens of sequences   -> their hidden states, KV cache with the tokens written
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from alhena.batch import Batch
from alhena.model import config, sharding, spec
from alhena.model.attention import paged_cache
from alhena.model.encoders import conformer, gemma_vision, unified, unified_audio, usm, vision
from alhena.model.layers import rms_norm, softcap
from alhena.model.linear import einsum
from alhena.model.spec import WeightSpec, matrix, vector, within
from alhena.model.transformer import decoder
from alhena.model.transformer.embedding import Table, embedding_rows, expand_logits, lookup, lookup_on_mesh, whole
from alhena.model.variants import altup, per_layer
from alhena.shapes import Array, Bool, Float, Int, pytree

# Size of the embeddings' shared direction, relative to that of their individual directions.
SHARED = 0.7


@pytree
@dataclass(frozen=True)
class Params:
    """Weights of the model."""

    # [R, D], one row per id except for image codes (alhena/model/transformer/embedding.py); tied to the output projection.
    embedding: Table
    vision: vision.Vision | gemma_vision.GemmaVision | unified.UnifiedVision | None
    audio: conformer.Conformer | usm.Usm | unified_audio.UnifiedAudio | None
    layers: decoder.Stacks
    norm: Array  # [D]
    per_layer: per_layer.Table | None = None
    altup: altup.Streams | None = None
    special: Array | None = None  # [special rows, D]


def vision_encoder(c: config.VisionEncoder) -> ModuleType:
    """The module that implements the vision encoder."""
    return {config.GemmaVision: gemma_vision, config.UnifiedVision: unified}.get(type(c), vision)


def audio_encoder(c: config.Audio) -> ModuleType:
    """The module that implements the audio encoder."""
    return {config.Usm: usm, config.UnifiedAudio: unified_audio}.get(type(c), conformer)


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
        vision=within(1, vision_encoder(c.vision).weights(c.vision, D)) if c.vision else None,
        audio=within(2, audio_encoder(c.audio).weights(c.audio, D)) if c.audio else None,
        layers=within(3, decoder.weights(c.decoder)),
        norm=vector(D),
        per_layer=within(5, per_layer.weights(p, c.decoder)) if (p := c.decoder.per_layer_inputs) else None,
        altup=within(6, altup.weights(c.decoder)) if c.decoder.altup else None,
        special=matrix(7, (c.special_rows, D), (None, "width")) if c.special_rows else None,
    )


@partial(jax.jit, static_argnums=1)
def init(key: Array, c: config.Model) -> Params:
    """Random weights; on a mesh every device makes its own shards."""
    specs = weights(c)
    return spec.constrain(spec.init(key, specs), specs)


def _at_placeholders(
    x: Float[Array, "B L D"], placeholders: Bool[Array, "B L"], vectors: Float[Array, "B W D"], replace: bool
) -> Float[Array, "B L D"]:
    """Adds the k-th encoder output of a sequence to the embedding of its k-th placeholder, or puts it in its place."""
    if vectors.shape[1] == 0:
        return x
    index = jnp.clip(jnp.cumsum(placeholders, 1) - 1, 0, vectors.shape[1] - 1)
    vectors = sharding.constrain(vectors, "batch", None, None)
    vectors, placeholders = jnp.take_along_axis(vectors, index[..., None], 1), placeholders[..., None]
    x = jnp.where(placeholders, vectors, x) if replace else x + jnp.where(placeholders, vectors, 0)
    return sharding.constrain(x, "batch", "length", None)


def _whole_windows(patches: tuple[Array, ...], window: int) -> tuple[Array, ...]:
    """Patches, their positions and images, with padding up to complete pooling windows: budgets of packed batches are of any size."""
    missing = -patches[0].shape[1] % window
    if not missing:
        return patches
    return tuple(jnp.pad(a, ((0, 0), (0, missing), *((0, 0),) * (a.ndim - 2))) for a in patches)


def is_image(c: config.Model, tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Placeholders of images and video frames."""
    return (tokens == c.image_token) | (tokens == c.video_token)


def embed_tokens(params: Params, c: config.Model, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """Scaled token embeddings."""
    scale = c.decoder.embedding_scale or c.decoder.width**0.5
    if sharding.has_mesh():
        x = lookup_on_mesh(whole(params.embedding), tokens, c.code_factors)
    else:
        x = lookup(params.embedding, tokens, c.code_factors)
    x = x.astype(jnp.float32) * scale
    if params.special is None:
        return x
    index = tokens - (c.vocabulary - c.special_rows)
    return jnp.where(index[..., None] < 0, x, params.special[jnp.maximum(index, 0)])


def image_vectors(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B W D"]:
    """Outputs of the vision encoder, in the order of the placeholders. The model must have one, and the batch patches."""
    assert c.vision and params.vision
    patches = _whole_windows((batch.patches, batch.patch_positions, batch.patch_images), c.vision.pool**2)
    return vision_encoder(c.vision).encode(params.vision, *patches, c.vision, c.compute_dtype)


def audio_vectors(params: Params, c: config.Model, batch: Batch) -> tuple[Float[Array, "B A D"], Bool[Array, "B A"]]:
    """Outputs of the audio encoder, and which of them have a placeholder. The model must have one, and the batch frames."""
    assert c.audio and params.audio
    return audio_encoder(c.audio).encode(params.audio, batch.frames, batch.frame_lengths, c.audio, c.compute_dtype)


def embed(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Token embeddings, with encoder outputs, which are not scaled, at their placeholders."""
    x = embed_tokens(params, c, batch.tokens)
    if c.vision and params.vision and batch.patches.shape[1]:
        vectors = image_vectors(params, c, batch)
        x = _at_placeholders(x, is_image(c, batch.tokens), vectors, c.replace_placeholders)
    if c.audio and params.audio and batch.frames.shape[1]:
        vectors, valid = audio_vectors(params, c, batch)
        # Valid vectors first, in order.
        order = jnp.argsort(~valid, axis=1, stable=True)
        vectors = jnp.take_along_axis(vectors, order[..., None], 1)
        x = _at_placeholders(x, batch.tokens == c.audio_token, vectors, c.replace_placeholders)
    return x


def _decoder_inputs(
    params: Params, c: config.Model, tokens: Int[Array, "B L"], x: Float[Array, "B L D"]
) -> decoder.Inputs:
    """The decoder's inputs for tokens with these embeddings."""
    vectors, settings = None, c.decoder.per_layer_inputs
    if settings and params.per_layer:
        placeholders = is_image(c, tokens) | (tokens == c.audio_token)
        ids = jnp.where(placeholders, 0, tokens)
        vectors = per_layer.inputs(params.per_layer, ids, x, settings, c.compute_dtype)
    return decoder.Inputs(altup.enter(params.altup, x, c.compute_dtype) if params.altup else x, vectors)


def _decoder_result(params: Params, c: config.Model, x: Float[Array, "*streams B L D"]) -> Float[Array, "B L D"]:
    """The decoder's output as one stream."""
    return altup.leave(params.altup, x, c.compute_dtype) if params.altup else x


def packing(c: config.Model, batch: Batch) -> decoder.Packing:
    """Segments, positions and, where they matter, the images of a batch: maximal runs of placeholders inside a segment."""
    blocks = None
    if c.decoder.image_attention != "causal":
        image = is_image(c, batch.tokens) & (batch.segments > 0)
        same = (batch.segments[:, 1:] == batch.segments[:, :-1]) & image[:, :-1]
        starts = image & ~jnp.pad(same, ((0, 0), (1, 0)))
        blocks = jnp.where(image, jnp.cumsum(starts, 1), 0)
    return decoder.Packing(batch.segments, batch.positions, blocks)


def decoder_output(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Hidden states of every token after the last layer. Their size is an early sign of divergence (Chameleon 2024)."""
    inputs = _decoder_inputs(params, c, batch.tokens, embed(params, c, batch))
    return _decoder_result(params, c, decoder.run(params.layers, inputs, packing(c, batch), c.decoder, c.compute_dtype))


def forward(params: Params, c: config.Model, batch: Batch) -> Float[Array, "B L D"]:
    """Final hidden states of every token, normalized: the input of :func:`logits`."""
    return rms_norm(decoder_output(params, c, batch), params.norm)


@pytree
@dataclass(frozen=True)
class Media:
    """Encoder outputs at the placeholders among the next tokens."""

    vectors: Float[Array, "B L D"]
    placeholders: Bool[Array, "B L"]


def extend(
    params: Params,
    c: config.Model,
    tokens: Int[Array, "B L"],
    at: paged_cache.Tokens,
    cache: paged_cache.PagedCache,
    media: Media | None = None,
) -> tuple[Float[Array, "B L D"], paged_cache.PagedCache]:
    """Final hidden states of the next tokens of sequences, and the cache with these tokens written."""
    x = embed_tokens(params, c, tokens)
    if media is not None:
        added = media.vectors if c.replace_placeholders else x + media.vectors
        x = jnp.where(media.placeholders[..., None], added, x)
    inputs = _decoder_inputs(params, c, tokens, x)
    x, cache = decoder.extend(params.layers, inputs, at, cache, c.decoder, c.compute_dtype)
    return rms_norm(_decoder_result(params, c, x), params.norm), cache


def logits(params: Params, c: config.Model, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Logits over the vocabulary, by the tied embeddings."""
    scores = expand_logits(einsum("...i,oi->...o", hidden, whole(params.embedding), c.compute_dtype), c.code_factors)
    return softcap(scores, c.decoder.final_logit_softcap)


def count(params: Any) -> int:
    """Number of parameters in a tree of arrays, shapes or specifications."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
