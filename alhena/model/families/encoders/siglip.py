"""SigLIP's vision encoder in Hugging Face's layout: alone, or inside SigLIP, PaliGemma or Gemma 3 (Zhai et al. 2023).

    config.json, model.safetensors  ── read_siglip ──►  vision.Vision, config.Vision(plain=True)
    vision_config of Gemma 3  ── read_config ──►  config.Vision(plain=True, mean_pool=True)  ── settings ──►  vision_config
    table(c, width)     where each weight of Gemma 3's encoder is

A test compares the last hidden states with those of the reference. Outside Gemma 3 an image that is not square keeps its aspect ratio
and uses part of the position table; the reference resizes it to a square. The projection to the decoder's width is then random:

    params, c = read_siglip(folder, width=2048, key=jax.random.key(0))
    model_params = replace(model_params, vision=params)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import config
from alhena.model.encoders import vision
from alhena.model.families.encoders.shared import Layout, encoder_config
from alhena.model.families.hf_settings import located, parse_settings
from alhena.model.families.tensor_map import (
    Source,
    Table,
    convolution,
    joined,
    matrix,
    of_layers,
    offset,
    plain,
    read_arrays,
    scale,
    under,
)
from alhena.model.spec import named, normal


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


def _config(s: Siglip, pool: int, mean_pool: bool) -> config.Vision:
    E, F, side = s.hidden_size, s.intermediate_size, s.image_size // max(s.patch_size, 1)
    make = partial(config.Vision, E, s.num_hidden_layers, s.num_attention_heads, F, patch=s.patch_size, side=side)
    return make(pool=pool, plain=True, mean_pool=mean_pool)


def read_config(stored: Any, tokens: int, path: Path) -> config.Vision:
    """The configuration of Gemma 3's ``vision_config``, with ``tokens`` soft tokens an image: its ``mm_tokens_per_image``.

    Raises ValueError that names the file and the key for what is not implemented.
    """
    s = parse_settings(Siglip, stored, LAYOUT.fixed, path, LAYOUT.section)
    side, tokens_side = s.image_size // max(s.patch_size, 1), math.isqrt(max(tokens, 0))
    if not tokens_side or tokens_side**2 != tokens or side % tokens_side:
        raise ValueError(
            f"{path}: mm_tokens_per_image is {tokens}; a square of a divisor of {side}, the side in patches"
        )
    with located(path, LAYOUT.section):
        return _config(s, side // tokens_side, mean_pool=True)


def settings(c: config.Vision) -> dict[str, Any]:
    """The ``vision_config`` of a configuration: the inverse of :func:`read_config`, whose tokens are (side / pool)²."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_channels": 3,
        "image_size": c.side * c.patch,
        "patch_size": c.patch,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": vision.LAYER_EPSILON,
        "vision_use_head": False,
    }


def tower(c: config.Vision) -> Table:
    """Where each weight is, but for the projection; the names of the tensors follow the encoder's own prefix."""
    E, F = c.width, c.hidden
    qkv = [f"self_attn.{x}_proj" for x in "qkv"]
    vectors = {
        "attention_norm": ("layer_norm1", E),
        "output": ("self_attn.out_proj", E),
        "mlp_norm": ("layer_norm2", E),
    }
    vectors |= {"up": ("mlp.fc1", F), "down": ("mlp.fc2", E)}
    layer: dict[str, Source] = {
        "attention_norm": scale("layer_norm1.weight", E),
        "qkv": matrix(*(f"{name}.weight" for name in qkv), inner=E, outer=3 * E),
        "output": matrix("self_attn.out_proj.weight", inner=E, outer=E),
        "mlp_norm": scale("layer_norm2.weight", E),
        "up": matrix("mlp.fc1.weight", inner=E, outer=F),
        "down": matrix("mlp.fc2.weight", inner=F, outer=E),
        "biases.qkv": joined(*(f"{name}.bias" for name in qkv), each=E),
        **{f"biases.{field}": plain(f"{name}.bias", size) for field, (name, size) in vectors.items()},
    }
    return {
        "patch": convolution("embeddings.patch_embedding.weight", E, 3, c.patch),
        "stem.positions": plain("embeddings.position_embedding.weight", c.side**2, E),
        "stem.bias": plain("embeddings.patch_embedding.bias", E),
        **of_layers("encoder.layers.{}.", c.layers, {f"layers.{field}": source for field, source in layer.items()}),
        "norm": scale("post_layernorm.weight", E),
        "norm_bias": plain("post_layernorm.bias", E),
    }


def table(c: config.Vision, width: int) -> Table:
    """Where each weight of Gemma 3's encoder is in its published files, for a decoder of model width ``width``."""
    projector = "multi_modal_projector."
    return {
        **under("vision_tower.vision_model.", tower(c)),
        "token_norm": offset(projector + "mm_soft_emb_norm.weight", c.width),
        "project": plain(projector + "mm_input_projection_weight", c.width, width),
    }


def read_siglip(folder: Path, width: int, key: jax.Array, pool: int = 2) -> tuple[vision.Vision, config.Vision]:
    """The encoder in float32, for a decoder of model width ``width``; ``pool``² patches become one soft token.

    Raises ValueError that names the file when the folder holds no SigLIP.
    """
    s, tensors = LAYOUT.open(folder)
    c = encoder_config(tensors, lambda: _config(s, pool, mean_pool=False))
    arrays: dict[str, Any] = dict(read_arrays(tower(c), tensors.read))
    # SigLIP's attention pooling to one vector.
    tensors.finish_part(unused=("head.",))
    arrays["project"] = normal(key, pool**2 * c.width, width)
    specs = vision.weights(c, width)
    weights = [jnp.asarray(arrays[name]) for name in named(specs)]
    return jax.tree.unflatten(jax.tree.structure(specs), weights), c
