"""Reads SigLIP's vision encoder from Hugging Face's layout: alone, or inside SigLIP, PaliGemma or Gemma 3 (Zhai et al. 2023).

    config.json, model.safetensors  ── read_siglip ──►  vision.Vision, config.Vision(plain=True)

A test compares the last hidden states with those of the reference. An image that is not square keeps its aspect ratio and uses part
of the position table; the reference resizes it to a square. The projection to the decoder's width is random:

    params, c = read_siglip(folder, width=2048, key=jax.random.key(0))
    model_params = replace(model_params, vision=params)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import config
from alhena.model.encoders import vision
from alhena.model.families.encoder_tensors import Layout, StackedTensors, conv_kernel, encoder_config
from alhena.model.spec import normal


@dataclass(frozen=True)
class Siglip:
    """A SigLIP configuration. Defaults are those of the reference's class, which published files leave out."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16


LAYOUT = Layout(
    Siglip,
    section="vision_config",
    fixed={
        "layer_norm_eps": (vision.LAYER_EPSILON,), "hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,),
        "model_type": ("siglip_vision_model",), "vision_use_head": (True, False, None),
        "projection_dim": (None, 2048), "projector_hidden_act": (None, "gelu_fast"), "num_image_tokens": (None, 256),
    },
    prefixes=(
        "", "vision_model.", "vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower.",
    ),
    probe="post_layernorm.weight",
)  # fmt: skip


def _layers(layers: StackedTensors, E: int, F: int) -> vision.Layers:
    qkv = [f"self_attn.{x}_proj" for x in "qkv"]
    return vision.Layers(
        attention_norm=layers.scale("layer_norm1", E),
        qkv=layers.matrix(*qkv, inner=E, outer=3 * E),
        output=layers.matrix("self_attn.out_proj", inner=E, outer=E),
        mlp_norm=layers.scale("layer_norm2", E),
        gate=None,
        up=layers.matrix("mlp.fc1", inner=E, outer=F),
        down=layers.matrix("mlp.fc2", inner=F, outer=E),
        biases=vision.Biases(
            attention_norm=layers.stack("layer_norm1.bias", E),
            qkv=jnp.concatenate([layers.stack(f"{name}.bias", E) for name in qkv], 1),
            output=layers.stack("self_attn.out_proj.bias", E),
            mlp_norm=layers.stack("layer_norm2.bias", E),
            up=layers.stack("mlp.fc1.bias", F),
            down=layers.stack("mlp.fc2.bias", E),
        ),
    )


def read_siglip(folder: Path, width: int, key: jax.Array, pool: int = 2) -> tuple[vision.Vision, config.Vision]:
    """The encoder in float32, for a decoder of model width ``width``; ``pool``² patches become one soft token.

    Raises ValueError that names the file when the folder holds no SigLIP.
    """
    s, tensors = LAYOUT.open(folder)
    E, F, patch, heads = s.hidden_size, s.intermediate_size, s.patch_size, s.num_attention_heads
    side = s.image_size // max(patch, 1)
    make = partial(config.Vision, E, s.num_hidden_layers, heads, F, patch=patch, pool=pool, side=side, plain=True)
    c = encoder_config(tensors, make)
    read: Callable[..., Any] = tensors.read
    params = vision.Vision(
        patch=conv_kernel(read, "embeddings.patch_embedding.weight", E, 3, patch),
        stem=vision.PlainStem(
            read("embeddings.position_embedding.weight", (side**2, E)), read("embeddings.patch_embedding.bias", (E,))
        ),
        layers=_layers(StackedTensors(read, "encoder.layers.{}.", c.layers), E, F),
        norm=read("post_layernorm.weight", (E,)) - 1,
        project=normal(key, pool**2 * E, width),
        norm_bias=read("post_layernorm.bias", (E,)),
    )
    tensors.finish_part(unused=("head.",))  # SigLIP's attention pooling to one vector
    return jax.tree.map(jnp.asarray, params), c
