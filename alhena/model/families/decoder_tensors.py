"""Where each weight of the decoder is in the files of a Gemma model: the table of its tensors, and the tensors that nothing reads.

    layers.0.4.query, index 1  ◄──►  layers.9.self_attn.q_proj.weight  [4096, 1536]

Gemma 1 to 3 store the scale of a norm as an offset from one, as we do; Gemma 3n and 4 store the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from alhena.model import config
from alhena.model.families.tensor_map import Source, Table, Unused, matrix, offset, plain, scale
from alhena.model.transformer.layer_kinds import LayerKind, is_uniform, layer_kind, locate
from alhena.shapes import Float

# Makes the source of a norm's scale from its name and width.
Norm = Callable[[str, int], Source]
POST_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
EXPERT_NORMS = {
    "pre_norm": "pre_feedforward_layernorm_2",
    "dense_post_norm": "post_feedforward_layernorm_1",
    "expert_post_norm": "post_feedforward_layernorm_2",
}


def stores_factors(c: config.Decoder) -> bool:
    """Whether files of this decoder's family store the factors of norms: Gemma 3n and 4."""
    return c.value_norm


def _exchanged(array: Float[np.ndarray, "E a b"]) -> Float[np.ndarray, "E b a"]:
    return array.swapaxes(1, 2)


def _exchanged_alone(array: Float[np.ndarray, "E a b"]) -> tuple[Float[np.ndarray, "E b a"], ...]:
    return (array.swapaxes(1, 2),)


def _number(array: Float[np.ndarray, " one"]) -> Float[np.ndarray, ""]:
    return array.reshape(())


def _vector(number: Float[np.ndarray, ""]) -> tuple[Float[np.ndarray, " one"], ...]:
    return (number.reshape(1),)


def _attention(c: config.Decoder, kind: LayerKind, norm: Norm) -> dict[str, Source]:
    D, N, H = c.width, c.heads * kind.head_dim, kind.head_dim
    keys = kind.kv_heads * H
    out = {
        "query": matrix("self_attn.q_proj.weight", inner=D, outer=N),
        "output": matrix("self_attn.o_proj.weight", inner=N, outer=D),
    }
    if not kind.shares_kv:
        out["key"] = matrix("self_attn.k_proj.weight", inner=D, outer=keys)
        if not kind.key_as_value:
            out["value"] = matrix("self_attn.v_proj.weight", inner=D, outer=keys)
    if c.qk_norm:
        out["query_norm"] = norm("self_attn.q_norm.weight", H)
        if not kind.shares_kv:
            out["key_norm"] = norm("self_attn.k_norm.weight", H)
    return out


def _per_layer(D: int, P: int, norm: Norm) -> dict[str, Source]:
    return {
        "per_layer.gate": matrix("per_layer_input_gate.weight", inner=D, outer=P),
        "per_layer.project": matrix("per_layer_projection.weight", inner=P, outer=D),
        "per_layer.post_norm": norm("post_per_layer_input_norm.weight", D),
    }


def _experts(D: int, e: config.Experts, norm: Norm) -> dict[str, Source]:
    E, F = e.number, e.hidden

    def half(start: int) -> Source:
        part = (slice(None), slice(start, start + F))
        return Source(("experts.gate_up_proj",), (E, 2 * F, D), _exchanged, _exchanged_alone, part)

    return {
        "experts.router_scale": plain("router.scale", D),
        "experts.router": matrix("router.proj.weight", inner=D, outer=E),
        "experts.expert_scale": plain("router.per_expert_scale", E),
        "experts.gate": half(0),
        "experts.up": half(F),
        "experts.down": Source(("experts.down_proj",), (E, D, F), _exchanged, _exchanged_alone),
        **{f"experts.{ours}": norm(f"{theirs}.weight", D) for ours, theirs in EXPERT_NORMS.items()},
    }


def _altup(D: int, a: config.AltUp, norm: Norm) -> dict[str, Source]:
    S, R = a.streams, a.laurel_rank
    return {
        "altup.router_norm": norm("altup.router_norm.weight", D),
        "altup.router": matrix("altup.modality_router.weight", inner=D, outer=S),
        "altup.predict": matrix("altup.prediction_coefs.weight", inner=S, outer=S * S),
        "altup.correct": matrix("altup.correction_coefs.weight", inner=S, outer=S),
        "altup.output_scale": plain("altup.correct_output_scale", D),
        "altup.laurel_left": matrix("laurel.linear_left.weight", inner=D, outer=R),
        "altup.laurel_right": matrix("laurel.linear_right.weight", inner=R, outer=D),
        "altup.laurel_post_norm": norm("laurel.post_laurel_norm.weight", D),
    }


def layer_sources(c: config.Decoder, layer: int) -> dict[str, Source]:
    """The sources of one layer's weights, by the names of its fields; names of tensors follow ``layers.N.``."""
    kind, norm = layer_kind(c, layer), scale if stores_factors(c) else offset
    D, F = c.width, kind.hidden
    out = {
        **{ours: norm(f"{theirs}.weight", D) for ours, theirs in (POST_NORMS if c.post_norm else PRE_NORMS).items()},
        **_attention(c, kind, norm),
        "gate": matrix("mlp.gate_proj.weight", inner=D, outer=F),
        "up": matrix("mlp.up_proj.weight", inner=D, outer=F),
        "down": matrix("mlp.down_proj.weight", inner=F, outer=D),
    }
    if c.layer_scalar:
        out["layer_scalar"] = Source(("layer_scalar",), (1,), _number, _vector)
    if c.per_layer_inputs:
        out |= _per_layer(D, c.per_layer_inputs.width, norm)
    if c.experts:
        out |= _experts(D, c.experts, norm)
    if c.altup:
        out |= _altup(D, c.altup, norm)
    return out


def _named(prefix: str, source: Source) -> Source:
    return Source(tuple(prefix + n for n in source.names), source.shape, source.to_ours, source.to_theirs, source.part)


def _layers(c: config.Decoder) -> dict[str, tuple[Source, ...]]:
    """The sources of all layers, by our dotted names."""
    out: dict[str, list[Source]] = {}
    for layer in range(c.layers):
        at = locate(c, layer)
        stack = "layers." if is_uniform(c) else f"layers.{at.segment}.{at.position}."
        for field, source in layer_sources(c, layer).items():
            # Layers of one stack come in the order of their indices.
            out.setdefault(stack + field, []).append(_named(f"layers.{layer}.", source))
    return {field: tuple(sources) for field, sources in out.items()}


def _streams(D: int, streams: int) -> dict[str, tuple[Source, ...]]:
    projection = partial(matrix, inner=D, outer=D)
    names = {"altup.entry": "altup_projections", "altup.exit": "altup_unembed_projections"}
    return {
        ours: tuple(projection(f"{theirs}.{i}.weight") for i in range(streams - 1)) for ours, theirs in names.items()
    }


def table(c: config.Model) -> Table:
    """Where each weight is, for the decoder and the embeddings; names of tensors follow the decoder's prefix."""
    d = c.decoder
    norm = scale if stores_factors(d) else offset
    out: dict[str, Source | tuple[Source, ...]] = {
        "embedding": plain("embed_tokens.weight", c.vocabulary, d.width),
        **_layers(d),
        "norm": norm("norm.weight", d.width),
    }
    if p := d.per_layer_inputs:
        values = d.layers * p.width
        out["per_layer.table"] = plain("embed_tokens_per_layer.weight", p.vocabulary, values)
        out["per_layer.projection"] = matrix("per_layer_model_projection.weight", inner=d.width, outer=values)
        out["per_layer.norm"] = norm("per_layer_projection_norm.weight", p.width)
    return out | (_streams(d.width, d.altup.streams) if d.altup else {})


def unused(c: config.Decoder) -> list[Unused]:
    """Tensors of published files that nothing reads: keys, values and key norms of layers that share those of others."""
    out = []
    for layer in range(c.layers - c.kv_sharing_layers, c.layers):
        kind = layer_kind(c, layer)
        prefix, keys = f"layers.{layer}.self_attn.", kind.kv_heads * kind.head_dim
        shapes: Mapping[str, tuple[int, ...]] = {"k_proj": (keys, c.width), "v_proj": (keys, c.width)}
        out += [Unused(f"{prefix}{name}.weight", shape) for name, shape in shapes.items()]
        out.append(Unused(f"{prefix}k_norm.weight", (kind.head_dim,)))
    return out
