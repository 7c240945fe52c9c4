"""Gemma 4's audio encoders in Hugging Face's layout: configuration and names of the tensors, in both directions.

audio_config of config.json  ── read_config ──►  config.Usm or config.UnifiedAudio  ── settings ──►  audio_config
table(c, width)     where each weight of ``usm.Usm`` or ``unified_audio.UnifiedAudio`` is, after the prefix ``model.``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alhena.model import config
from alhena.model.families.encoders.shared import clipped_linear
from alhena.model.families.hf_settings import located, parse_settings
from alhena.model.families.tensor_map import Source, Table, convolution, depthwise, matrix, of_layers, plain, scale
from alhena.schema import shown

Encoder = config.Usm | config.UnifiedAudio
# Frames of 10 ms: 30 s, the longest audio that the encoder reads, in one chunk.
MAX_FRAMES = 3000
_FIXED: Mapping[str, Any] = {
    "model_type": ("gemma4_audio",), "hidden_act": ("silu",), "residual_weight": (0.5,), "rms_norm_eps": (1e-6,),
    "attention_context_right": (0,), "attention_invalid_logits_value": (-1e9,), "gradient_clipping": (1e10,),
}  # fmt: skip
_UNIFIED_FIXED: Mapping[str, Any] = {"model_type": ("gemma4_unified_audio",), "rms_norm_eps": (1e-6,)}
_KINDS = ("gemma4_audio", "gemma4_unified_audio")


@dataclass(frozen=True)
class _Audio:
    """``audio_config`` of a conformer. Defaults are those of the reference's class, which files may leave out."""

    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    conv_kernel_size: int = 5
    subsampling_conv_channels: tuple[int, int] = (128, 32)
    attention_chunk_size: int = 12
    attention_context_left: int = 13
    attention_logit_cap: float = 50.0
    use_clipped_linears: bool = True
    output_proj_dims: int = 1536


@dataclass(frozen=True)
class _UnifiedAudio:
    """``audio_config`` of Gemma 4 Unified. Three names of one number."""

    audio_embed_dim: int = 640
    hidden_size: int | None = None
    output_proj_dims: int | None = None
    audio_samples_per_token: int | None = None


def read_config(stored: Any, path: Path) -> Encoder:
    """The configuration of an ``audio_config``. Raises ValueError that names the file and the key for what is not implemented."""
    kind = stored.get("model_type") if isinstance(stored, Mapping) else stored
    if kind not in _KINDS:
        raise ValueError(f"{path}: audio_config.model_type is {shown(kind)}; {' or '.join(_KINDS)} can be read")
    with located(path, "audio_config"):
        return _read_audio(stored, path) if kind == "gemma4_audio" else _read_unified(stored, path)


def _read_audio(stored: Any, path: Path) -> config.Usm:
    s = parse_settings(_Audio, stored, _FIXED, path, "audio_config")
    left, block = s.attention_context_left, s.attention_chunk_size
    # The reference computes relative positions of distances up to this number, and aligns them with the window only then.
    if (block + left - 1) // 2 != left - 1:
        raise ValueError(
            f"attention_context_left is {left} and attention_chunk_size {block}; ours has one more, or equal"
        )
    return config.Usm(
        width=s.hidden_size,
        layers=s.num_hidden_layers,
        heads=s.num_attention_heads,
        hidden=4 * s.hidden_size,
        kernel=s.conv_kernel_size,
        mels=s.subsampling_conv_channels[0],
        chunk=MAX_FRAMES,
        stack=1,
        channels=s.subsampling_conv_channels,
        block=block,
        # The key farthest away that the number in the file counts is masked by the reference: 12 keys.
        left=left - 1,
        cap=s.attention_logit_cap,
        variant="gemma4",
        clipped=s.use_clipped_linears,
        output=s.output_proj_dims,
    )


def _read_unified(stored: Any, path: Path) -> config.UnifiedAudio:
    s = parse_settings(_UnifiedAudio, stored, _UNIFIED_FIXED, path, "audio_config")
    for name, value in asdict(s).items():
        if value not in (None, s.audio_embed_dim):
            raise ValueError(f"{name} is {value}; ours has {s.audio_embed_dim}, that of audio_embed_dim")
    return config.UnifiedAudio(s.audio_embed_dim)


def settings(c: Encoder) -> dict[str, Any]:
    """The ``audio_config`` of a configuration: the inverse of :func:`read_config`."""
    if isinstance(c, config.UnifiedAudio):
        return {"model_type": "gemma4_unified_audio", "rms_norm_eps": 1e-6, "audio_embed_dim": c.samples_per_token}
    s = _Audio(
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        conv_kernel_size=c.kernel,
        subsampling_conv_channels=c.channels,
        attention_chunk_size=c.block,
        attention_context_left=c.left + 1,
        attention_logit_cap=c.cap,
        use_clipped_linears=c.clipped,
        output_proj_dims=c.output or c.width,
    )
    return {name: values[0] for name, values in _FIXED.items()} | asdict(s)


def table(c: Encoder, width: int) -> Table:
    """Where each weight is, for a decoder of model width ``width``; the names of the tensors follow the prefix ``model.``."""
    inner = c.samples_per_token if isinstance(c, config.UnifiedAudio) else c.output or c.width
    project = {"project": matrix("embed_audio.embedding_projection.weight", inner=inner, outer=width)}
    return project if isinstance(c, config.UnifiedAudio) else {**_tower(c), **project}


def _mlp(field: str, name: str, c: config.Usm) -> dict[str, Source]:
    """The half-step MLP ``field``, which the file calls ``name``."""
    return {
        f"{field}_norm": scale(f"{name}.pre_layer_norm.weight", c.width),
        **clipped_linear(f"{field}_up", f"{name}.ffw_layer_1", c.width, c.hidden, c.clipped),
        **clipped_linear(f"{field}_down", f"{name}.ffw_layer_2", c.hidden, c.width, c.clipped),
        f"{field}_post_norm": scale(f"{name}.post_layer_norm.weight", c.width),
    }


def _qkv(c: config.Usm) -> dict[str, Source]:
    names = [f"self_attn.{x}_proj" for x in "qkv"]
    if not c.clipped:
        return {"qkv": matrix(*(f"{name}.linear.weight" for name in names), inner=c.width, outer=3 * c.width)}
    fields = zip(("qkv.query", "qkv.key", "qkv.value"), names, strict=True)
    return {k: s for field, name in fields for k, s in clipped_linear(field, name, c.width, c.width, True).items()}


def _layer(c: config.Usm) -> dict[str, Source]:
    E, clip = c.width, c.clipped
    return {
        **_mlp("first", "feed_forward1", c),
        "attention_norm": scale("norm_pre_attn.weight", E),
        **_qkv(c),
        "query_scale": plain("self_attn.per_dim_scale", E // c.heads),
        "relative_key": matrix("self_attn.relative_k_proj.weight", inner=E, outer=E),
        **clipped_linear("output", "self_attn.post", E, E, clip),
        "attention_post_norm": scale("norm_post_attn.weight", E),
        "convolution_norm": scale("lconv1d.pre_layer_norm.weight", E),
        **clipped_linear("convolution_in", "lconv1d.linear_start", E, 2 * E, clip),
        "depthwise": depthwise("lconv1d.depthwise_conv1d.weight", E, c.kernel),
        "depthwise_norm": scale("lconv1d.conv_norm.weight", E),
        **clipped_linear("convolution_out", "lconv1d.linear_end", E, E, clip),
        **_mlp("second", "feed_forward2", c),
        "last_norm": scale("norm_out.weight", E),
    }


def _tower(c: config.Usm) -> Table:
    prefix, (first, second), output = "audio_tower.subsample_conv_projection.", c.channels, c.output or c.width
    layer = {f"layers.{field}": source for field, source in _layer(c).items()}
    return {
        "kernel_1": convolution(prefix + "layer0.conv.weight", first, 1, 3),
        "scale_1": scale(prefix + "layer0.norm.weight", first),
        "kernel_2": convolution(prefix + "layer1.conv.weight", second, first, 3),
        "scale_2": scale(prefix + "layer1.norm.weight", second),
        "input_projection": matrix(prefix + "input_proj_linear.weight", inner=c.mels // 4 * second, outer=c.width),
        **of_layers("audio_tower.layers.{}.", c.layers, layer),
        "output": matrix("audio_tower.output_proj.weight", inner=c.width, outer=output),
        "output_bias": plain("audio_tower.output_proj.bias", output),
    }
