"""Reads Gemma 3n's audio encoder (USM) from Hugging Face's layout, alone or inside Gemma 3n.

    config.json, model.safetensors  ── read_usm ──►  usm.Usm, config.Usm

A test compares the last hidden states with those of the reference. The projection to the decoder's width is random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import config
from alhena.model.encoders import usm
from alhena.model.families.encoder_tensors import Layout, StackedTensors, conv_kernel, encoder_config
from alhena.model.spec import normal

MAX_FRAMES = 3008  # of 10 ms: the longest audio that Gemma 3n encodes
SUBSAMPLING = "subsample_conv_projection."


@dataclass(frozen=True)
class Gemma3nAudio:
    """The configuration of the audio encoder. Defaults are those of the reference's class."""

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
    # Of the embedder after the encoder, which is not read.
    vocab_size: int = 128
    vocab_offset: int = 262_272


LAYOUT = Layout(
    Gemma3nAudio,
    section="audio_config",
    fixed={
        "rms_norm_eps": (1e-6,), "sscp_conv_group_norm_eps": (usm.GROUP_EPSILON,), "conf_residual_weight": (0.5,),
        "gradient_clipping": (1e10,), "sscp_conv_kernel_size": ([[3, 3], [3, 3]],),
        "sscp_conv_stride_size": ([[2, 2], [2, 2]],), "model_type": ("gemma3n_audio",),
    },
    prefixes=("", "audio_tower.", "model.audio_tower."),
    probe=SUBSAMPLING + "input_proj_linear.weight",
)  # fmt: skip


def _config(s: Gemma3nAudio, chunk: int) -> config.Usm:
    return config.Usm(
        s.hidden_size,
        s.conf_num_hidden_layers,
        s.conf_num_attention_heads,
        4 * s.hidden_size,
        kernel=s.conf_conv_kernel_size,
        mels=s.input_feat_size,
        chunk=chunk,
        stack=s.conf_reduction_factor,
        channels=s.sscp_conv_channel_size,
        block=s.conf_attention_chunk_size,
        left=s.conf_attention_context_left,
        right=s.conf_attention_context_right,
        cap=s.conf_attention_logit_cap,
    )


def _mlp(layers: StackedTensors, field: str, name: str, c: config.Usm) -> dict[str, Any]:
    """Fields of the half-step MLP ``field``, which the file calls ``name``."""
    return {
        f"{field}_norm": layers.scale(f"{name}.pre_layer_norm", c.width),
        f"{field}_up": layers.matrix(f"{name}.ffw_layer_1", inner=c.width, outer=c.hidden),
        f"{field}_down": layers.matrix(f"{name}.ffw_layer_2", inner=c.hidden, outer=c.width),
        f"{field}_post_norm": layers.scale(f"{name}.post_layer_norm", c.width),
    }


def _layers(layers: StackedTensors, c: config.Usm) -> usm.Layers:
    E = c.width
    return usm.Layers(
        **_mlp(layers, "first", "ffw_layer_start", c),
        attention_norm=layers.scale("attention.pre_attn_norm", E),
        qkv=layers.matrix(*(f"attention.attn.{x}_proj" for x in "qkv"), inner=E, outer=3 * E),
        query_scale=layers.stack("attention.attn.per_dim_scale", E // c.heads),
        relative_key=layers.matrix("attention.attn.relative_position_embedding.pos_proj", inner=E, outer=E),
        output=layers.matrix("attention.post", inner=E, outer=E),
        attention_post_norm=layers.scale("attention.post_norm", E),
        convolution_norm=layers.scale("lconv1d.pre_layer_norm", E),
        convolution_in=layers.matrix("lconv1d.linear_start", inner=E, outer=2 * E),
        depthwise=layers.stack("lconv1d.depthwise_conv1d.weight", E, 1, c.kernel)[:, :, 0].swapaxes(1, 2),
        depthwise_norm=layers.scale("lconv1d.conv_norm", E),
        convolution_out=layers.matrix("lconv1d.linear_end", inner=E, outer=E),
        **_mlp(layers, "second", "ffw_layer_end", c),
        last_norm=layers.scale("norm", E),
    )


def read_usm(folder: Path, width: int, key: jax.Array, chunk: int = MAX_FRAMES) -> tuple[usm.Usm, config.Usm]:
    """The encoder in float32, for a decoder of model width ``width``. Audio of up to ``chunk`` frames is encoded as by the reference.

    Raises ValueError that names the file when the folder holds no audio encoder of Gemma 3n.
    """
    s, tensors = LAYOUT.open(folder)
    frames_per_token = 4 * max(s.conf_reduction_factor, 1)
    if chunk % frames_per_token:
        raise ValueError(f"chunks of {chunk} frames; this encoder needs a multiple of {frames_per_token}")
    c = encoder_config(tensors, lambda: _config(s, chunk))
    E, (first, second) = c.width, c.channels
    read: Callable[..., Any] = tensors.read
    params = usm.Usm(
        kernel_1=conv_kernel(read, SUBSAMPLING + "conv_0.conv.weight", first, 1, 3),
        scale_1=read(SUBSAMPLING + "conv_0.norm.weight", (first,)) - 1,
        kernel_2=conv_kernel(read, SUBSAMPLING + "conv_1.conv.weight", second, first, 3),
        scale_2=read(SUBSAMPLING + "conv_1.norm.weight", (second,)) - 1,
        input_projection=read(SUBSAMPLING + "input_proj_linear.weight", (E, c.mels // 4 * second)).T,
        layers=_layers(StackedTensors(read, "conformer.{}.", c.layers), c),
        project=normal(key, E, width),
    )
    tensors.finish_part()
    return jax.tree.map(jnp.asarray, params), c
