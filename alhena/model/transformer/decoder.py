"""The decoder: pre- and post-norm Transformer layers with multi-query attention, rotary positions, QK-norm and GeGLU.

    x ─┬─ norm ─ q,k,v ─ attention ─ output ─ norm ─ + ─┬─ norm ─ gelu(gate)·up ─ down ─ norm ─ + ─►
       └────────────────────────────────────────────────┘└───────────────────────────────────────┘

Gemma-compatible on purpose (Gemma Team 2024, 2025); QK-norm and post-norm keep mixed-modal training stable (Chameleon 2024).
Layers are stacked along the first axis of every weight (alhena/model/transformer/layer_kinds.py) and run by ``lax.scan``. Options of the
configuration add to a layer what open weights need: experts, per-layer inputs, AltUp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, spec
from alhena.model.attention import one_token, paged_cache
from alhena.model.attention.full import Visibility, causal_attention
from alhena.model.attention.kernels import AttentionOptions
from alhena.model.layers import gated, rms_norm, rope, rope_table
from alhena.model.linear import Weight, column_parallel, row_parallel
from alhena.model.quantized import sublayers
from alhena.model.spec import Constant, WeightSpec, matrix, stacked, vector, within
from alhena.model.transformer.layer_kinds import LayerKind, Segment, is_global, is_uniform, segments
from alhena.model.transformer.stacks import Stack
from alhena.model.variants import altup, moe, per_layer
from alhena.shapes import Array, Bool, Float, Int, pytree

# A few layers run faster unrolled on a CPU; many compile faster scanned.
MAX_UNROLLED = 12


@pytree
@dataclass(frozen=True)
class Layers:
    """Weights of all layers of a stack: matrices ``[layers, in, out]``, norm scales ``[layers, width]``."""

    attention_norm: Array
    query: Weight  # [D, N·H]
    key: Weight | None  # [D, K·H]; None: the layer shares keys and values of an earlier one
    value: Weight | None  # [D, K·H]; None: the same, or the projected keys are the values
    query_norm: Array | None  # [H]; None: no QK-norm
    key_norm: Array | None  # [H]
    output: Weight  # [N·H, D]
    attention_post_norm: Array | None  # None: no norm after the sub-layer
    mlp_norm: Array
    gate: Weight  # [D, F]
    up: Weight  # [D, F]
    down: Weight  # [F, D]
    mlp_post_norm: Array | None
    layer_scalar: Array | None  # []
    per_layer: per_layer.Layer | None
    experts: moe.Layer | None
    altup: altup.Layer | None


# Of a uniform decoder one stack, else for each segment one stack for each position of its block.
Stacks = Layers | tuple[tuple[Layers, ...], ...]


def _layer_weights(c: config.Decoder, kind: LayerKind) -> Layers:
    """Specifications of the weights of one layer."""
    D, H, F, own_kv = c.width, kind.head_dim, kind.hidden, not kind.shares_kv
    linear = partial(matrix, quantize=True)
    post_norm = vector(D, -1 + 1 / np.sqrt(2 * c.layers)) if c.post_norm else None
    scalar: Any = WeightSpec((), (), Constant(1.0), "adam", decay=False)
    return Layers(
        attention_norm=vector(D),
        query=linear(0, (D, c.heads * H), ("width", "heads")),
        key=linear(1, (D, kind.kv_heads * H), ("width", None)) if own_kv else None,
        value=linear(2, (D, kind.kv_heads * H), ("width", None)) if own_kv and not kind.key_as_value else None,
        query_norm=vector(H) if c.qk_norm else None,
        key_norm=vector(H) if c.qk_norm and own_kv else None,
        output=linear(3, (c.heads * H, D), ("heads", "width")),
        attention_post_norm=post_norm,
        mlp_norm=vector(D),
        gate=linear(4, (D, F), ("width", "hidden")),
        up=linear(5, (D, F), ("width", "hidden")),
        down=linear(6, (F, D), ("hidden", "width")),
        mlp_post_norm=post_norm,
        layer_scalar=scalar if c.layer_scalar else None,
        per_layer=within(7, per_layer.layer_weights(c.per_layer_inputs, c)) if c.per_layer_inputs else None,
        experts=within(8, moe.weights(c)) if c.experts else None,
        altup=within(9, altup.layer_weights(c)) if c.altup else None,
    )


def weights(c: config.Decoder) -> Stacks:
    """Specifications of the weights."""
    if is_uniform(c):
        return stacked(c.layers, _layer_weights(c, segments(c)[0].kinds[0]))

    def of_segment(i: int, segment: Segment) -> tuple[Layers, ...]:
        layers = [within(j, stacked(segment.repeats, _layer_weights(c, kind))) for j, kind in enumerate(segment.kinds)]
        return within(i, tuple(layers))

    return tuple(of_segment(i, segment) for i, segment in enumerate(segments(c)))


def as_segments(layers: Stacks) -> tuple[tuple[Layers, ...], ...]:
    """The stacks of every segment and position; those of a uniform decoder too."""
    return layers if isinstance(layers, tuple) else ((layers,),)


def init(key: Array, c: config.Decoder) -> Stacks:
    return spec.init(key, weights(c))


def _norm(x: Float[Array, "... D"], scale: Float[Array, " D"] | None) -> Float[Array, "... D"]:
    return x if scale is None else rms_norm(x, scale)


def _rope_tables(
    positions: Int[Array, "B L"], c: config.Decoder
) -> tuple[Float[Array, "B L 2 H"], Float[Array, "B L 2 h"]]:
    """RoPE tables, one for queries and one for keys, of the global and of the local layers.

    Attention to more tokens is less sharp; queries that grow with the logarithm of their number compensate for it
    (Chiang & Cholak 2022, arXiv:2202.12172). RoPE is linear, so the factor is part of the table.
    """
    global_positions, H = positions / c.rope_scaling_factor, c.global_head_dim or c.head_dim
    keys = queries = rope_table(global_positions, H, c.rope_base, c.global_rope_fraction)
    if c.log_scaling_start is not None:
        factor = jnp.maximum(1, jnp.log1p(positions.astype(jnp.float32)) / np.log(c.log_scaling_start))
        queries = keys * factor[..., None]
    of_global = jnp.stack([queries, keys], -2)
    if c.window is None:
        return of_global, of_global
    of_local = rope_table(positions, c.head_dim, c.local_rope_base or c.rope_base)
    return of_global, jnp.stack([of_local, of_local], -2)


@pytree
@dataclass(frozen=True)
class Inputs:
    """Embeddings (with AltUp those of every stream) and the per-layer inputs."""

    x: Float[Array, "*streams B L D"]
    per_layer: Float[Array, "layers B L P"] | None


@pytree
@dataclass(frozen=True)
class Packing:
    """The segment (document) of each token, 0 for padding, its position in the segment, and its image (attention.Visibility)."""

    segments: Int[Array, "B L"]
    positions: Int[Array, "B L"]
    blocks: Int[Array, "B L"] | None = None


@dataclass(frozen=True)
class LayerInfo:
    """A layer when it runs: its kind, and what is traced since it differs between the layers of a scan."""

    kind: LayerKind
    is_global: Bool[Array, ""] | bool
    # Of the layer in each entry of the cache.
    index: Int[Array, " kinds"]
    # Of its first expert in the stack of experts.
    first_expert: Int[Array, ""] | int

    def choose(self, of_global: Any, of_local: Any) -> Any:
        """The first of two arrays in a global layer, the second in a local one."""
        if isinstance(self.is_global, bool):
            return of_global if self.is_global else of_local
        return jnp.where(self.is_global, of_global, of_local)


# A layer's attention: from the normalized input and the state (caches) to the heads and the next state.
Attend = Callable[[Layers, Float[Array, "B L D"], LayerInfo, Any], tuple[Float[Array, "B L N H"], Any]]


@dataclass(frozen=True)
class Common:
    """What all layers have in common when they run."""

    c: config.Decoder
    dtype: str
    attend: Attend
    remat: bool = False
    # Segments of up to that many layers are unrolled.
    max_unrolled: int = 0
    # Whether gradients may be computed.
    differentiable: bool = False


def _projected(w: Layers, x: Float[Array, "B L D"], c: config.Decoder, kind: LayerKind, dtype: str) -> list[Array]:
    """Queries of one layer, then keys, then values, as far as it has projections for them."""
    pairs = [(w.query, c.heads), (w.key, kind.kv_heads), (w.value, kind.kv_heads)]
    weights, heads = zip(*(pair for pair in pairs if pair[0] is not None), strict=True)
    return column_parallel(x, weights, tuple("heads" if n > 1 else None for n in heads), dtype)


def _projections(
    w: Layers, x: Float[Array, "B L D"], tables: Float[Array, "B L 2 H"], c: config.Decoder, kind: LayerKind, dtype: str
) -> tuple[Float[Array, "B L N H"], paged_cache.KeysValues | None]:
    """Queries of one layer, and keys and values if it has its own, with QK-norm and RoPE."""
    q, *kv = (a.reshape(*x.shape[:2], -1, kind.head_dim) for a in _projected(w, x, c, kind, dtype))
    q = rope(_norm(q, w.query_norm), tables[:, :, 0])
    if not kv:
        return q, None
    # Without a projection of their own the values are the keys before norm and RoPE.
    k, v = kv[0], kv[-1]
    return q, (rope(_norm(k, w.key_norm), tables[:, :, 1]), rms_norm(v) if c.value_norm else v)


def _mlp(w: Layers, x: Float[Array, "B L D"], info: LayerInfo, common: Common) -> Float[Array, "B L D"]:
    """The MLP sub-layer, with the experts beside it, and its residual connection."""
    c, dtype = common.c, common.dtype
    gate, up = column_parallel(rms_norm(x, w.mlp_norm), (w.gate, w.up), ("hidden", "hidden"), dtype)
    if info.kind.sparse and c.altup:
        gate = altup.sparse(gate, c.altup.sparsity)
    y = row_parallel(gated(gate, up), w.down, dtype)
    if w.experts is not None and c.experts:
        y = moe.with_mlp(w.experts, x, y, c.experts, dtype, info.first_expert)
    return x + _norm(y, w.mlp_post_norm)


def _attention_out(
    w: Layers, x: Float[Array, "B L D"], heads: Float[Array, "B L N H"], dtype: str
) -> Float[Array, "B L D"]:
    """Output projection of the attention sub-layer with its residual connection."""
    B, L = x.shape[:2]
    out = row_parallel(heads.reshape(B, L, -1), w.output, dtype)
    return x + _norm(out, w.attention_post_norm)


def _standard(
    w: Layers, x: Float[Array, "B L D"], vectors: Array | None, info: LayerInfo, state: Any, common: Common
) -> tuple[Float[Array, "B L D"], Any]:
    """A layer of one residual stream, and the next state."""
    heads, state = common.attend(w, rms_norm(x, w.attention_norm), info, state)
    norms, weights = (w.attention_post_norm, w.mlp_norm, w.mlp_post_norm), (w.output, w.gate, w.up, w.down)
    if not common.differentiable and w.experts is None and sublayers.is_available(weights):
        x = sublayers.run(x, heads, norms, weights)
    else:
        x = _mlp(w, _attention_out(w, x, heads, common.dtype), info, common)
    if w.per_layer is not None and vectors is not None:
        x = x + per_layer.residual(w.per_layer, x, vectors, common.dtype)
    return (x if w.layer_scalar is None else x * w.layer_scalar.astype(jnp.float32)), state


def _altup(
    w: Layers, x: Float[Array, "streams B L D"], vectors: Array | None, info: LayerInfo, state: Any, common: Common
) -> tuple[Float[Array, "streams B L D"], Any]:
    """A layer of several residual streams, which computes the first and predicts the others; and the next state."""
    assert w.altup and w.per_layer and vectors is not None
    dtype = common.dtype
    predicted = altup.predict(w.altup, x, dtype)
    n = rms_norm(predicted[0], w.attention_norm)
    heads, state = common.attend(w, n, info, state)
    active = (_attention_out(w, predicted[0], heads, dtype) + altup.laurel(w.altup, n, dtype)) * 2**-0.5
    x = altup.correct(w.altup, predicted, _mlp(w, active, info, common), dtype)
    added = per_layer.residual(w.per_layer, altup.scaled_output(w.altup, x[0]), vectors, dtype)
    return jnp.concatenate([x[:1], x[1:] + added]), state


def _segment(
    segment: Segment, stacks: tuple[Layers, ...], inputs: Inputs, state: Any, common: Common
) -> tuple[Array, Any]:
    """The layers of a segment: from the activations and the state before them to those after them."""
    c = common.c
    # With rematerialization the inputs of the layers are the saved residuals: they take no more bytes than ``dtype``.
    carry_dtype = common.dtype if common.remat else inputs.x.dtype
    # Layers that share keys and values do not change the state: it is no part of the carry, which the backward pass needs.
    constant = segment.kinds[0].shares_kv

    unroll = segment.repeats if segment.layers <= common.max_unrolled else 1
    unrolled = unroll == segment.repeats
    sliced = [Stack.of(stack, unrolled, common.differentiable, segment.repeats) for stack in stacks]

    def layer(j: int, carry: tuple[Array, Any], inputs: Any) -> tuple[Array, Any]:
        (x, carried), (scanned, vectors, is_global, index, repeat) = carry, inputs
        kind, w = segment.kinds[j], sliced[j].layer(scanned, repeat)
        first_expert = repeat * c.experts.number if c.experts and not common.differentiable else 0
        info = LayerInfo(kind, is_global if kind.is_global is None else kind.is_global, index, first_expert)
        run = _standard if w.altup is None else _altup
        x, new = run(w, x.astype(jnp.float32), vectors, info, state if constant else carried, common)
        return x.astype(carry_dtype), carried if constant else new

    layers: list[Callable[..., tuple[Array, Any]]] = [partial(layer, j) for j in range(len(segment.kinds))]
    if common.remat:
        layers = [jax.checkpoint(layer, prevent_cse=False) for layer in layers]

    def block(carry: tuple[Array, Any], inputs: Any) -> tuple[tuple[Array, Any], None]:
        for layer, *of_layer in zip(layers, *inputs, strict=True):
            carry = layer(carry, tuple(of_layer))
        return carry, None

    def by_position(values: Any) -> list[Any]:
        """Values of all layers: those of the layers at each position of the block, stacked."""
        last, step = segment.first + segment.layers, len(segment.kinds)
        return [None if values is None else values[segment.first + j : last : step] for j in range(step)]

    values = inputs.per_layer, is_global(c), paged_cache.layer_index(c)
    repeats = [np.arange(segment.repeats, dtype=np.int32)] * len(segment.kinds)
    scanned = [stack.scanned for stack in sliced], *map(by_position, values), repeats
    carry = inputs.x.astype(carry_dtype), () if constant else state
    (x, carried), _ = jax.lax.scan(block, carry, scanned, unroll=unroll)
    return x.astype(jnp.float32), state if constant else carried


def _all_layers(layers: Stacks, inputs: Inputs, state: Any, common: Common) -> tuple[Array, Any]:
    """All layers: activations and state after the last one."""
    x = inputs.x
    for segment, stacks in zip(segments(common.c), as_segments(layers), strict=True):
        x, state = _segment(segment, stacks, Inputs(x, inputs.per_layer), state, common)
    return x, state


def _image_blocks(blocks: Int[Array, "B L"] | None, info: LayerInfo, c: config.Decoder) -> Int[Array, "B L"] | None:
    """The images whose tokens attend to each other in both directions in this layer."""
    if blocks is None or c.image_attention == "all":
        return blocks
    if isinstance(info.is_global, bool):
        return None if info.is_global else blocks
    return jnp.where(info.is_global, 0, blocks)


def run(
    layers: Stacks, inputs: Inputs, packing: Packing, c: config.Decoder, dtype: str
) -> Float[Array, "*streams B L D"]:
    """All layers over complete sequences."""
    (B, L), tables = packing.segments.shape, _rope_tables(packing.positions, c)
    kinds = paged_cache.kinds(c) if c.kv_sharing_layers else []
    # Keys and values of the latest layer of each kind, for those that share them.
    shared = tuple((jnp.zeros((B, L, k.kv_heads, k.head_dim), dtype),) * 2 for k in kinds)

    def attend(w: Layers, x: Array, info: LayerInfo, shared: Any) -> tuple[Array, Any]:
        kind = info.kind
        q, kv = _projections(w, x, info.choose(*tables), c, kind, dtype)
        entries = paged_cache.entries(c, kind.is_global)
        if kv is None:
            k, v = shared[entries[0]]
        else:
            k, v = (a.astype(dtype) for a in kv)
            shared = tuple((k, v) if i in entries else other for i, other in enumerate(shared))
        visible = Visibility(packing.segments, _image_blocks(packing.blocks, info, c))
        window, scale = None if kind.is_global else c.window, c.attention_scale(kind.head_dim)
        options = AttentionOptions(window, scale, c.attention_softcap)
        return causal_attention(q.astype(dtype), k, v, visible, options, info.is_global), shared

    return _all_layers(layers, inputs, shared, Common(c, dtype, attend, c.remat, MAX_UNROLLED, differentiable=True))[0]


def extend(
    layers: Stacks, inputs: Inputs, at: paged_cache.Tokens, cache: paged_cache.PagedCache, c: config.Decoder, dtype: str
) -> tuple[Float[Array, "*streams B L D"], paged_cache.PagedCache]:
    """All layers over the next tokens of sequences, which are written to their pages and attend to them."""
    tables = _rope_tables(at.positions, c)

    def attend(w: Layers, x: Array, info: LayerInfo, cache: Any) -> tuple[Array, Any]:
        if one_token.is_available(x.shape[1], info.kind):
            q, *own = _projected(w, x, c, info.kind, dtype)
            norms = w.query_norm, w.key_norm
            projected = one_token.Projected(q, [own[0], own[-1]] if own else [], norms, info.choose(*tables))
            return one_token.attend(projected, cache, jnp.asarray(info.index), at, c)
        q, kv = _projections(w, x, info.choose(*tables), c, info.kind, dtype)
        entries = paged_cache.entries(c, info.kind.is_global)
        if kv is not None:
            cache = paged_cache.write(cache, entries, info.index, kv, at)
        attend = [partial(paged_cache.attend, cache, i, info.index[i], q, at, c) for i in entries]
        return attend[0]() if len(attend) == 1 else jax.lax.cond(info.is_global, *attend), cache

    return _all_layers(layers, inputs, cache, Common(c, dtype, attend))
