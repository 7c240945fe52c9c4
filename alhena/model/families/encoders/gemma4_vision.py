"""Gemma 4's image encoders in Hugging Face's layout: configuration and names of the tensors, in both directions.

vision_config of config.json  ── read_config ──►  config.GemmaVision or config.UnifiedVision  ── settings ──►  vision_config
table(c, width)     where each weight of ``gemma_vision.GemmaVision`` or ``unified.UnifiedVision`` is, after the prefix ``model.``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alhena.model import config
from alhena.model.families.encoders.shared import clipped_linear
from alhena.model.families.hf_settings import located, parse_settings
from alhena.model.families.tensor_map import Source, Table, matrix, of_layers, plain, scale
from alhena.schema import shown

Encoder = config.GemmaVision | config.UnifiedVision
# Budgets of soft tokens that files name; they are settings of the prompt, not of the encoder (alhena/tokens/images.py).
_BUDGETS = (70, 140, 280, 560, 1120)
_FIXED: Mapping[str, Any] = {
    "model_type": ("gemma4_vision",), "hidden_activation": ("gelu_pytorch_tanh",), "rms_norm_eps": (1e-6,),
    "attention_bias": (False, None), "num_channels": (3,), "default_output_length": _BUDGETS,
}  # fmt: skip
_UNIFIED_FIXED: Mapping[str, Any] = {
    "model_type": ("gemma4_unified_vision",), "rms_norm_eps": (1e-6,), "num_channels": (3,), "num_soft_tokens": _BUDGETS,
}  # fmt: skip
_ROPE_TYPES = ("axial", "default")
_MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}


@dataclass(frozen=True)
class _Rope:
    """Positions; files call the only implemented kind by either of two names."""

    rope_theta: float = 100.0
    rope_type: str = "axial"


@dataclass(frozen=True)
class _Vision:
    """``vision_config`` of a ViT. Defaults are those of the reference's class, which files may leave out."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    rope_parameters: _Rope = field(default_factory=_Rope)
    pooling_kernel_size: int = 3
    patch_size: int = 16
    position_embedding_size: int = 10_240
    use_clipped_linears: bool = False
    standardize: bool = False
    # Older files repeat the size of a head.
    global_head_dim: int | None = None


@dataclass(frozen=True)
class _UnifiedVision:
    """``vision_config`` of the image embedder of Gemma 4 Unified."""

    patch_size: int = 16
    pooling_kernel_size: int = 3
    mm_embed_dim: int = 3840
    mm_posemb_size: int = 1120
    output_proj_dims: int = 3840
    # Pixels along a side of a soft token, which some files repeat.
    model_patch_size: int | None = None


def read_config(stored: Any, path: Path) -> Encoder:
    """The configuration of a ``vision_config``. Raises ValueError that names the file and the key for what is not implemented."""
    kind = stored.get("model_type") if isinstance(stored, Mapping) else stored
    if kind not in ("gemma4_vision", "gemma4_unified_vision"):
        known = "gemma4_vision or gemma4_unified_vision"
        raise ValueError(f"{path}: vision_config.model_type is {shown(kind)}; {known} can be read")
    with located(path, "vision_config"):
        return _read_vision(stored, path) if kind == "gemma4_vision" else _read_unified(stored, path)


def _read_vision(stored: Any, path: Path) -> config.GemmaVision:
    s = parse_settings(_Vision, stored, _FIXED, path, "vision_config")
    if s.num_key_value_heads != s.num_attention_heads:
        raise ValueError(
            f"num_key_value_heads is {s.num_key_value_heads}; ours has {s.num_attention_heads}, one a head"
        )
    if s.global_head_dim not in (None, s.head_dim):
        raise ValueError(f"global_head_dim is {s.global_head_dim}; ours has {s.head_dim}, that of head_dim")
    if s.rope_parameters.rope_type not in _ROPE_TYPES:
        kind = shown(s.rope_parameters.rope_type)
        raise ValueError(f"rope_parameters.rope_type is {kind}; ours has {' or '.join(_ROPE_TYPES)}")
    return config.GemmaVision(
        width=s.hidden_size,
        layers=s.num_hidden_layers,
        heads=s.num_attention_heads,
        head_dim=s.head_dim,
        hidden=s.intermediate_size,
        patch=s.patch_size,
        pool=s.pooling_kernel_size,
        side=s.position_embedding_size,
        rope_base=s.rope_parameters.rope_theta,
        clipped=s.use_clipped_linears,
        standardize=s.standardize,
    )


def _read_unified(stored: Any, path: Path) -> config.UnifiedVision:
    s = parse_settings(_UnifiedVision, stored, _UNIFIED_FIXED, path, "vision_config")
    if s.output_proj_dims != s.mm_embed_dim:
        raise ValueError(f"output_proj_dims is {s.output_proj_dims}; ours has {s.mm_embed_dim}, that of mm_embed_dim")
    side = s.patch_size * s.pooling_kernel_size
    if s.model_patch_size not in (None, side):
        raise ValueError(f"model_patch_size is {s.model_patch_size}; ours has {side}: patch_size · pooling_kernel_size")
    return config.UnifiedVision(s.mm_embed_dim, s.patch_size, s.pooling_kernel_size, s.mm_posemb_size)


def settings(c: Encoder) -> dict[str, Any]:
    """The ``vision_config`` of a configuration: the inverse of :func:`read_config`."""
    if isinstance(c, config.UnifiedVision):
        unified = _UnifiedVision(c.patch, c.pool, c.width, c.token_side, c.width, c.pixels_per_token)
        return {"model_type": "gemma4_unified_vision", "rms_norm_eps": 1e-6, **asdict(unified)}
    s = asdict(
        _Vision(
            hidden_size=c.width,
            intermediate_size=c.hidden,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.heads,
            head_dim=c.head_dim,
            rope_parameters=_Rope(c.rope_base),
            pooling_kernel_size=c.pool,
            patch_size=c.patch,
            position_embedding_size=c.side,
            use_clipped_linears=c.clipped,
            standardize=c.standardize,
        )
    )
    s.pop("global_head_dim")
    return {"model_type": "gemma4_vision", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, **s}


def table(c: Encoder, width: int) -> Table:
    """Where each weight is, for a decoder of model width ``width``; the names of the tensors follow the prefix ``model.``."""
    project = {"project": matrix("embed_vision.embedding_projection.weight", inner=c.width, outer=width)}
    return {**(_unified(c) if isinstance(c, config.UnifiedVision) else _vision(c)), **project}


def _vision(c: config.GemmaVision) -> Table:
    E, heads = c.width, c.heads * c.head_dim
    sizes = dict.fromkeys(("query", "key", "value"), (E, heads))
    sizes |= {"output": (heads, E), "gate": (E, c.hidden), "up": (E, c.hidden), "down": (c.hidden, E)}
    layer: dict[str, Source] = {}
    for name, (inner, outer) in sizes.items():
        layer |= clipped_linear(f"layers.{name}", _MATRICES[name], inner, outer, c.clipped)
    for name, theirs in _NORMS.items():
        layer[f"layers.{name}"] = scale(f"{theirs}.weight", c.head_dim if theirs.startswith("self_attn") else E)
    standard = {f"standard.{name}": plain(f"vision_tower.std_{name}", E) for name in ("bias", "scale")}
    return {
        "patch": matrix("vision_tower.patch_embedder.input_proj.weight", inner=c.patch_values, outer=E),
        "positions": plain("vision_tower.patch_embedder.position_embedding_table", 2, c.side, E),
        **of_layers("vision_tower.encoder.layers.{}.", c.layers, layer),
        **(standard if c.standardize else {}),
    }


def _unified(c: config.UnifiedVision) -> Table:
    E, values, prefix = c.width, c.pool**2 * c.patch_values, "vision_embedder."

    def norm(field: str, name: str, size: int) -> dict[str, Source]:
        return {
            f"{field}.scale": scale(f"{prefix}{name}.weight", size),
            f"{field}.bias": plain(f"{prefix}{name}.bias", size),
        }

    return {
        **norm("patch_norm", "patch_ln1", values),
        "patch": matrix(prefix + "patch_dense.weight", inner=values, outer=E),
        "patch_bias": plain(prefix + "patch_dense.bias", E),
        **norm("patch_post_norm", "patch_ln2", E),
        "positions": plain(prefix + "pos_embedding", c.token_side, 2, E),
        **norm("position_norm", "pos_norm", E),
    }
