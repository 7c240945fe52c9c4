"""Decoders of Gemma 3n and Gemma 4, from and to the ``text_config`` of ``config.json``.

    gemma3n_text                            AltUp, LAuReL, per-layer inputs, shared keys and values
    gemma4_text, gemma4_unified_text        layers of two kinds, per-layer inputs or experts or neither

Sizes of global layers are in two forms: ``global_head_dim`` and ``num_global_key_value_heads``, or ``per_layer_config``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.model import config
from alhena.model.families.hf_settings import (
    ACTIVATION,
    GLOBAL,
    LOCAL,
    Rope,
    common,
    global_every,
    layer_types,
    parse_settings,
    rope_factor,
)
from alhena.schema import parsed, shown

LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0
# Keys of which only these values are implemented.
FIXED: Mapping[str, Sequence[Any]] = {
    "rms_norm_eps": (1e-6,), "attention_bias": (False,), "hidden_activation": (ACTIVATION,), "hidden_act": (ACTIVATION, None),
    "altup_active_idx": (0,), "altup_correct_scale": (True,),
    # Only in training.
    "altup_coef_clip": (120.0, None),
}  # fmt: skip


@dataclass(frozen=True)
class _Text:
    """Keys that Gemma 3n and 4 have in common."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    sliding_window: int
    num_kv_shared_layers: int
    vocab_size: int
    head_dim: int = 256
    tie_word_embeddings: bool = True
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    vocab_size_per_layer_input: int = 262_144
    final_logit_softcapping: float | None = None


@dataclass(frozen=True)
class Gemma3nText(_Text):
    """Configuration of a Gemma 3n decoder. Defaults are those of the reference's class, which files may leave out."""

    vocab_size: int = 262_400
    hidden_size: int = 2048
    intermediate_size: int | list[int] = 16_384
    num_hidden_layers: int = 35
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    sliding_window: int = 512
    num_kv_shared_layers: int = 15
    hidden_size_per_layer_input: int = 256
    final_logit_softcapping: float | None = 30.0
    altup_num_inputs: int = 4
    laurel_rank: int = 64
    activation_sparsity_pattern: list[float] | None = None
    # Older form of rope_parameters.
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None
    rope_scaling: Rope | None = None


@dataclass(frozen=True)
class _LayerSizes:
    """What ``per_layer_config`` has for a layer that differs from the others."""

    head_dim: int | None = None
    num_key_value_heads: int | None = None


@dataclass(frozen=True)
class Gemma4Text(_Text):
    """Configuration of a Gemma 4 decoder. Defaults are those of the reference's class."""

    vocab_size: int = 262_144
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 30
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    sliding_window: int = 512
    num_kv_shared_layers: int = 0
    hidden_size_per_layer_input: int | None = 256
    use_bidirectional_attention: str | None = None
    attention_k_eq_v: bool = False
    use_double_wide_mlp: bool = False
    enable_moe_block: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None
    global_head_dim: int | None = None
    num_global_key_value_heads: int | None = None
    per_layer_config: dict[str, _LayerSizes] | None = None


# The Unified class has other defaults and no per-layer inputs.
UNIFIED = {"sliding_window": 1024, "use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0}


@dataclass(frozen=True)
class _Rotary:
    """RoPE of both kinds of layers."""

    local_base: float
    global_base: float
    fraction: float
    factor: float

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "rope_base": self.global_base,
            "local_rope_base": self.local_base,
            "global_rope_fraction": self.fraction,
            "rope_scaling_factor": self.factor,
        }


def _nested_rope(stored: Mapping[str, Any], path: Path) -> tuple[Rope, Rope]:
    """RoPE of the local and of the global layers. Raises ValueError for other kinds."""
    if unknown := set(stored) - {LOCAL, GLOBAL}:
        raise ValueError(f"{path}: rope_parameters.{min(unknown)}: unexpected field; RoPE of two kinds of layers")
    local, of_global = (
        parsed(Rope, stored.get(kind) or {}, path, f"rope_parameters.{kind}") for kind in (LOCAL, GLOBAL)
    )
    return local, of_global


def _rope_3n(s: Gemma3nText, path: Path) -> _Rotary:
    local, of_global = _nested_rope(s.rope_parameters or {}, path)
    for rope in (local, of_global, s.rope_scaling or Rope()):
        rope_factor(rope, path, ("default",))
    base = common(path, {"rope_theta of rope_parameters": of_global.rope_theta, "rope_theta": s.rope_theta})
    local_base = common(
        path, {"rope_theta of local layers": local.rope_theta, "rope_local_base_freq": s.rope_local_base_freq}
    )
    return _Rotary(local_base or LOCAL_BASE, base or GLOBAL_BASE, 1.0, 1.0)


def _rope_4(s: Gemma4Text, path: Path) -> _Rotary:
    default = {GLOBAL: {"rope_type": "proportional", "partial_rotary_factor": 0.25}}
    local, of_global = _nested_rope(default if s.rope_parameters is None else s.rope_parameters, path)
    rope_factor(local, path, ("default",))
    factor = rope_factor(of_global, path, ("proportional", "default"))
    proportional = of_global.rope_type == "proportional"
    fraction = 1.0 if of_global.partial_rotary_factor is None or not proportional else of_global.partial_rotary_factor
    return _Rotary(local.rope_theta or LOCAL_BASE, of_global.rope_theta or GLOBAL_BASE, fraction, factor)


def _global_heads(s: Gemma4Text, every: int, path: Path) -> tuple[int, int]:
    """Head dimension and key/value heads of the global layers, from either form. Raises ValueError where a layer differs from its kind."""
    if s.per_layer_config is None:
        kv = s.num_global_key_value_heads if s.attention_k_eq_v else None
        return s.global_head_dim or 512, kv or s.num_key_value_heads
    sizes = {}
    for layer in range(s.num_hidden_layers):
        own = s.per_layer_config.get(str(layer), _LayerSizes())
        sizes[layer] = own.head_dim or s.head_dim, own.num_key_value_heads or s.num_key_value_heads
    first = sizes.get(every - 1, (s.head_dim, s.num_key_value_heads))
    for layer, pair in sizes.items():
        expected = first if (layer + 1) % every == 0 else (s.head_dim, s.num_key_value_heads)
        if pair != expected:
            raise ValueError(
                f"{path}: per_layer_config gives layer {layer} a head_dim of {pair[0]} and {pair[1]} key/value heads, "
                f"where the other layers of its kind have {expected[0]} and {expected[1]}"
            )
    if unknown := set(s.per_layer_config) - {str(layer) for layer in sizes}:
        raise ValueError(f"{path}: per_layer_config.{min(unknown)}: there are {len(sizes)} layers, numbered from 0")
    common(path, {"head_dim of per_layer_config": first[0], "global_head_dim": s.global_head_dim})
    return first


def _experts(s: Gemma4Text, path: Path) -> config.Experts | None:
    if not s.enable_moe_block:
        return None
    sizes = {
        "num_experts": s.num_experts,
        "top_k_experts": s.top_k_experts,
        "moe_intermediate_size": s.moe_intermediate_size,
    }
    for name, size in sizes.items():
        if size is None:
            raise ValueError(f"{path}: enable_moe_block is true, but {name} is null")
    return config.Experts(*sizes.values())  # type: ignore[arg-type]


def _altup(s: Gemma3nText, path: Path) -> config.AltUp:
    """AltUp with the sparsity of the first layers. Raises ValueError where other layers are sparse, or not all alike."""
    layers = s.num_hidden_layers
    default = [0.95] * (10 if layers > 10 else 0)
    pattern = s.activation_sparsity_pattern or default + [0.0] * (layers - len(default))
    sparse = sum(value != 0 for value in pattern)
    sparsity = pattern[0] if sparse else 0.95
    if len(pattern) != layers or pattern != [sparsity] * sparse + [0.0] * (layers - sparse):
        raise ValueError(
            f"{path}: activation_sparsity_pattern: one number of the first layers and then zeros is needed"
        )
    return config.AltUp(s.altup_num_inputs, s.laurel_rank, sparse, sparsity)


def _decoder_3n(s: Gemma3nText, path: Path) -> config.Decoder:
    hidden = [s.intermediate_size] if isinstance(s.intermediate_size, int) else s.intermediate_size
    if len(set(hidden)) != 1 or len(hidden) not in (1, s.num_hidden_layers):
        raise ValueError(f"{path}: intermediate_size is {shown(hidden)}; one number of all layers is needed")
    return config.Decoder(
        **_common_fields(s, _kinds(s, 5, path), path),
        **_rope_3n(s, path).fields,
        hidden=hidden[0],
        per_layer_inputs=config.PerLayerInputs(s.hidden_size_per_layer_input, s.vocab_size_per_layer_input),
        altup=_altup(s, path),
    )


def _kinds(s: _Text, every: int, path: Path) -> list[str]:
    """``layer_types``, or those that the reference's class has without it."""
    if s.layer_types is None:
        return [LOCAL if (i + 1) % every else GLOBAL for i in range(s.num_hidden_layers)]
    if len(s.layer_types) != s.num_hidden_layers:
        raise ValueError(
            f"{path}: layer_types has {len(s.layer_types)} layers, num_hidden_layers is {s.num_hidden_layers}"
        )
    if unknown := set(s.layer_types) - {LOCAL, GLOBAL}:
        raise ValueError(f"{path}: layer_types has {shown(min(unknown))}; {LOCAL} and {GLOBAL} can be read")
    return s.layer_types


def _common_fields(s: _Text, kinds: list[str], path: Path) -> dict[str, Any]:
    """Fields of the decoder that Gemma 3n and 4 have from the same keys."""
    return {
        "width": s.hidden_size,
        "layers": s.num_hidden_layers,
        "heads": s.num_attention_heads,
        "head_dim": s.head_dim,
        "kv_heads": s.num_key_value_heads,
        "window": s.sliding_window,
        "global_every": global_every(kinds, path),
        "query_pre_attn_scalar": 1.0,
        "final_logit_softcap": s.final_logit_softcapping,
        "value_norm": True,
        "kv_sharing_layers": s.num_kv_shared_layers,
    }


def _decoder_4(s: Gemma4Text, path: Path) -> config.Decoder:
    # The reference makes the last layer global, whatever the file says.
    fields = _common_fields(s, [*_kinds(s, 6, path)[:-1], GLOBAL], path)
    head_dim, kv_heads = _global_heads(s, fields["global_every"], path)
    if s.use_bidirectional_attention not in ("vision", None):
        shown_value = shown(s.use_bidirectional_attention)
        raise ValueError(f"{path}: use_bidirectional_attention is {shown_value}; ours has 'vision' or None")
    inputs = s.hidden_size_per_layer_input
    return config.Decoder(
        **fields,
        **_rope_4(s, path).fields,
        hidden=s.intermediate_size,
        global_head_dim=head_dim if head_dim != s.head_dim else None,
        global_kv_heads=kv_heads if kv_heads != s.num_key_value_heads else None,
        global_key_as_value=s.attention_k_eq_v,
        kv_sharing_hidden=2 * s.intermediate_size if s.use_double_wide_mlp and s.num_kv_shared_layers else None,
        layer_scalar=True,
        image_attention="local" if s.use_bidirectional_attention == "vision" else "causal",
        per_layer_inputs=config.PerLayerInputs(inputs, s.vocab_size_per_layer_input) if inputs else None,
        experts=_experts(s, path),
    )


def read_text(section: Mapping[str, Any], path: Path, field: str) -> tuple[config.Decoder, int, bool]:
    """The decoder, the vocabulary size and whether embeddings are tied, from the section ``field`` of ``config.json`` (``path``)."""
    kind = section.get("model_type")
    if kind == "gemma3n_text":
        s = parse_settings(Gemma3nText, section, FIXED, path, field)
        return _decoder_3n(s, path), s.vocab_size, s.tie_word_embeddings
    given = {**UNIFIED, **section} if kind == "gemma4_unified_text" else section
    s4 = parse_settings(Gemma4Text, given, FIXED, path, field)
    return _decoder_4(s4, path), s4.vocab_size, s4.tie_word_embeddings


# Writing


def write_text(c: config.Model, kind: str) -> dict[str, Any]:
    """The ``text_config`` of a model whose ``model_type`` there is ``kind``."""
    d = c.decoder
    out = {
        "model_type": kind, "vocab_size": c.vocabulary, "hidden_size": d.width, "num_hidden_layers": d.layers,
        "num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "head_dim": d.head_dim, "intermediate_size": d.hidden,
        "sliding_window": d.window, "layer_types": layer_types(d), "num_kv_shared_layers": d.kv_sharing_layers,
        "final_logit_softcapping": d.final_logit_softcap, "hidden_activation": ACTIVATION, "rms_norm_eps": 1e-6,
        "attention_bias": False, "tie_word_embeddings": True,
    }  # fmt: skip
    local = {"rope_type": "default", "rope_theta": d.local_rope_base or d.rope_base}
    of_global: dict[str, Any] = {"rope_type": "default", "rope_theta": d.rope_base}
    if p := d.per_layer_inputs:
        out |= {"hidden_size_per_layer_input": p.width, "vocab_size_per_layer_input": p.vocabulary}
    if d.altup:
        sparse = [d.altup.sparsity] * d.altup.sparse_layers
        out["activation_sparsity_pattern"] = sparse + [0.0] * (d.layers - len(sparse))
        out |= {"altup_num_inputs": d.altup.streams, "laurel_rank": d.altup.laurel_rank}
        out["intermediate_size"] = [d.hidden] * d.layers
    else:
        of_global |= {"rope_type": "proportional", "partial_rotary_factor": d.global_rope_fraction}
        of_global |= {"factor": d.rope_scaling_factor} if d.rope_scaling_factor != 1 else {}
        out |= _only_gemma4(d, kind)
    return {**out, "rope_parameters": {LOCAL: local, GLOBAL: of_global}}


def _only_gemma4(d: config.Decoder, kind: str) -> dict[str, Any]:
    """Keys of ``text_config`` that Gemma 3n does not have."""
    out: dict[str, Any] = {
        "global_head_dim": d.global_head_dim or d.head_dim,
        "num_global_key_value_heads": d.global_kv_heads,
        "attention_k_eq_v": d.global_key_as_value,
        "use_double_wide_mlp": d.kv_sharing_hidden is not None,
        "use_bidirectional_attention": "vision" if d.image_attention == "local" else None,
    }
    if kind == "gemma4_unified_text":
        return out
    if not d.per_layer_inputs:
        out["hidden_size_per_layer_input"] = 0
    e = d.experts
    out |= {"enable_moe_block": e is not None}
    if e:
        out |= {"num_experts": e.number, "top_k_experts": e.chosen, "moe_intermediate_size": e.hidden}
    return out
