"""Gemma 3n's audio encoder in Hugging Face's layout, and the embeddings of ids of its embedders.

audio_config of config.json  ── read_config ──►  config.Usm  ── settings ──►  audio_config
table(c, width)     where each weight of ``usm.Usm`` is, but ``padding``, after the prefix ``model.``
finished_rows       embeddings of the ids from 262,144 on, which come from other tables than those of text; the last is ``padding``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from alhena.model import config
from alhena.model.encoders import usm
from alhena.model.families.hf_settings import located, parse_settings
from alhena.model.families.tensor_map import Source, Table, convolution, depthwise, matrix, of_layers, plain, scale
from alhena.model.layers import EPSILON
from alhena.model.storage.tensors import Read
from alhena.schema import parsed, shown
from alhena.shapes import Float

# Frames of 10 ms: 30 s, in one chunk, which become 188 soft tokens.
MAX_FRAMES = 3008
_FIXED: Mapping[str, Any] = {
    "model_type": ("gemma3n_audio",), "rms_norm_eps": (1e-6,), "sscp_conv_group_norm_eps": (usm.GROUP_EPSILON,),
    "conf_residual_weight": (0.5,), "gradient_clipping": (1e10,), "sscp_conv_kernel_size": ([[3, 3], [3, 3]],),
    "sscp_conv_stride_size": ([[2, 2], [2, 2]],),
}  # fmt: skip


@dataclass(frozen=True)
class _Audio:
    """``audio_config``. Defaults are those of the reference's class, which files may leave out."""

    input_feat_size: int = 128
    hidden_size: int = 1536
    conf_num_attention_heads: int = 8
    conf_num_hidden_layers: int = 12
    conf_conv_kernel_size: int = 5
    conf_reduction_factor: int = 4
    conf_attention_chunk_size: int = 12
    conf_attention_context_left: int = 13
    conf_attention_context_right: int = 0
    conf_attention_logit_cap: float = 50.0
    sscp_conv_channel_size: tuple[int, int] = (128, 32)
    # Of the embedder: :func:`embedders` reads them.
    vocab_size: int = 128
    vocab_offset: int = 262_272


@dataclass(frozen=True)
class Embedder:
    """Ids that have embeddings of their own: ``vocab_size`` of them from ``vocab_offset`` on, from a table ``hidden_size`` wide."""

    vocab_size: int
    vocab_offset: int
    hidden_size: int


_EMBEDDERS = (Embedder(128, 262_144, 2048), Embedder(128, 262_272, 1536))


def embedders(sections: Sequence[Mapping[str, Any]], vocabulary: int, path: Path) -> tuple[Embedder, Embedder]:
    """The embedders of images and of audio, from ``vision_config`` and ``audio_config``. Raises ValueError unless theirs are the last ids."""
    names = [field.name for field in fields(Embedder)]
    given = [{name: section[name] for name in names if name in section} for section in sections]
    image, audio = (parsed(Embedder, asdict(e) | g, path) for e, g in zip(_EMBEDDERS, given, strict=True))
    if (image.vocab_offset + image.vocab_size, audio.vocab_offset + audio.vocab_size) != (
        audio.vocab_offset,
        vocabulary,
    ):
        raise ValueError(
            f"{path}: vocab_offset and vocab_size: the ids of images, then of audio must be the last of {vocabulary}"
        )
    return image, audio


def read_config(stored: Any, path: Path) -> config.Usm:
    """The configuration of an ``audio_config``. Raises ValueError that names the file and the key for what is not implemented."""
    kind = stored.get("model_type") if isinstance(stored, Mapping) else stored
    if kind not in _FIXED["model_type"]:
        raise ValueError(f"{path}: audio_config.model_type is {shown(kind)}; gemma3n_audio can be read")
    s = parse_settings(_Audio, stored, _FIXED, path, "audio_config")
    with located(path, "audio_config"):
        return config.Usm(
            width=s.hidden_size,
            layers=s.conf_num_hidden_layers,
            heads=s.conf_num_attention_heads,
            hidden=4 * s.hidden_size,
            kernel=s.conf_conv_kernel_size,
            mels=s.input_feat_size,
            chunk=MAX_FRAMES,
            stack=s.conf_reduction_factor,
            channels=s.sscp_conv_channel_size,
            block=s.conf_attention_chunk_size,
            left=s.conf_attention_context_left,
            right=s.conf_attention_context_right,
            cap=s.conf_attention_logit_cap,
            variant="gemma3n",
        )


def settings(c: config.Usm) -> dict[str, Any]:
    """The ``audio_config`` of a configuration: the inverse of :func:`read_config`."""
    s = _Audio(
        input_feat_size=c.mels,
        hidden_size=c.width,
        conf_num_attention_heads=c.heads,
        conf_num_hidden_layers=c.layers,
        conf_conv_kernel_size=c.kernel,
        conf_reduction_factor=c.stack,
        conf_attention_chunk_size=c.block,
        conf_attention_context_left=c.left,
        conf_attention_context_right=c.right,
        conf_attention_logit_cap=c.cap,
        sscp_conv_channel_size=c.channels,
    )
    return {name: values[0] for name, values in _FIXED.items()} | asdict(s)


def table(c: config.Usm, width: int) -> Table:
    """Where each weight but ``padding`` is, for a decoder of model width ``width``; the tensors' names follow the prefix ``model.``."""
    prefix, (first, second) = "audio_tower.subsample_conv_projection.", c.channels
    layer = {f"layers.{field}": source for field, source in _layer(c).items()}
    return {
        "kernel_1": convolution(prefix + "conv_0.conv.weight", first, 1, 3),
        "scale_1": scale(prefix + "conv_0.norm.weight", first),
        "kernel_2": convolution(prefix + "conv_1.conv.weight", second, first, 3),
        "scale_2": scale(prefix + "conv_1.norm.weight", second),
        "input_projection": matrix(prefix + "input_proj_linear.weight", inner=c.mels // 4 * second, outer=c.width),
        **of_layers("audio_tower.conformer.{}.", c.layers, layer),
        "project_norm": scale("embed_audio.soft_embedding_norm.weight", c.width),
        "project": matrix("embed_audio.embedding_projection.weight", inner=c.width, outer=width),
    }


def _layer(c: config.Usm) -> dict[str, Source]:
    E, attention = c.width, "attention.attn."
    return {
        **_mlp("first", "ffw_layer_start", c),
        "attention_norm": scale("attention.pre_attn_norm.weight", E),
        "qkv": matrix(*(f"{attention}{x}_proj.weight" for x in "qkv"), inner=E, outer=3 * E),
        "query_scale": plain(attention + "per_dim_scale", E // c.heads),
        "relative_key": matrix(attention + "relative_position_embedding.pos_proj.weight", inner=E, outer=E),
        "output": matrix("attention.post.weight", inner=E, outer=E),
        "attention_post_norm": scale("attention.post_norm.weight", E),
        "convolution_norm": scale("lconv1d.pre_layer_norm.weight", E),
        "convolution_in": matrix("lconv1d.linear_start.weight", inner=E, outer=2 * E),
        "depthwise": depthwise("lconv1d.depthwise_conv1d.weight", E, c.kernel),
        "depthwise_norm": scale("lconv1d.conv_norm.weight", E),
        "convolution_out": matrix("lconv1d.linear_end.weight", inner=E, outer=E),
        **_mlp("second", "ffw_layer_end", c),
        "last_norm": scale("norm.weight", E),
    }


def _mlp(field: str, name: str, c: config.Usm) -> dict[str, Source]:
    """The half-step MLP ``field``, which the file calls ``name``."""
    return {
        f"{field}_norm": scale(f"{name}.pre_layer_norm.weight", c.width),
        f"{field}_up": matrix(f"{name}.ffw_layer_1.weight", inner=c.width, outer=c.hidden),
        f"{field}_down": matrix(f"{name}.ffw_layer_2.weight", inner=c.hidden, outer=c.width),
        f"{field}_post_norm": scale(f"{name}.post_layer_norm.weight", c.width),
    }


def finished_rows(read: Read, image: Embedder, audio: Embedder, width: int) -> Float[np.ndarray, "rows D"]:
    """Embeddings of the ids of both embedders, in float32: not to be scaled by √D. ``read`` gets names after the prefix ``model.``."""
    return np.concatenate([_rows(read, "embed_vision.", image, width), _rows(read, "embed_audio.", audio, width)])


def _rows(read: Read, prefix: str, e: Embedder, width: int) -> Float[np.ndarray, "rows D"]:
    inner = e.hidden_size
    table, scale, matrix = (
        read(prefix + name, shape).astype(np.float32)
        for name, shape in (
            ("embedding.weight", (e.vocab_size, inner)),
            ("hard_embedding_norm.weight", (inner,)),
            ("embedding_projection.weight", (width, inner)),
        )
    )
    return _normalized((_normalized(table) * scale) @ matrix.T)


def _normalized(x: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    return x / np.sqrt(np.square(x).mean(1, keepdims=True) + EPSILON)
