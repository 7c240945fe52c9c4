"""Vision encoders of Gemma 3 (SigLIP) and 4 as llama.cpp reads them: keys, names and shapes of the tensors (mmproj.py)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from alhena.model import config
from alhena.model.encoders import vision
from alhena.model.families.export_weights import Part
from alhena.model.layers import EPSILON
from alhena.shapes import Float

PROJECTOR = "multi_modal_projector."
TOWER = "vision_tower.vision_model."
# Names in Hugging Face's files, and here.
NAMES = {
    TOWER + "embeddings.patch_embedding.": "v.patch_embd.",
    TOWER + "embeddings.position_embedding.": "v.position_embd.",
    TOWER + "post_layernorm.": "v.post_ln.",
    PROJECTOR + "mm_soft_emb_norm.": "mm.soft_emb_norm.",
    PROJECTOR + "mm_input_projection_": "mm.input_projection.",
}
LAYER_NAMES = {
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.out_proj.": "attn_out.",
    "layer_norm1.": "ln1.",
    "layer_norm2.": "ln2.",
    "mlp.fc1.": "ffn_up.",
    "mlp.fc2.": "ffn_down.",
}
# Gemma 4's.
TOWER_4 = "model.vision_tower."
NAMES_4 = {
    TOWER_4 + "patch_embedder.input_proj.": "v.patch_embd.",
    TOWER_4 + "patch_embedder.position_embedding_table": "v.position_embd.weight",
    TOWER_4 + "std_": "v.std_",
    "model.embed_vision.embedding_projection.": "mm.input_projection.",
}
LAYER_NAMES_4 = {
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_out.",
    "self_attn.q_norm.": "attn_q_norm.",
    "self_attn.k_norm.": "attn_k_norm.",
    "input_layernorm.": "ln1.",
    "post_attention_layernorm.": "attn_post_norm.",
    "pre_feedforward_layernorm.": "ln2.",
    "post_feedforward_layernorm.": "ffn_post_norm.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}
# What llama.cpp's code has for every Gemma 4: patches in a window, and the base of RoPE.
POOL_4, ROPE_BASE_4 = 3, 100.0
# The kernel of the convolution, the positions and the projection, which llama.cpp transposes.
FLOAT32 = ("v.patch_embd.weight", "v.position_embd.weight", "mm.input_projection.weight")


def is_known(v: config.VisionEncoder | None) -> bool:
    """Whether an encoder is one that llama.cpp has."""
    if isinstance(v, config.GemmaVision):
        return (v.pool, v.rope_base, v.heads * v.head_dim) == (POOL_4, ROPE_BASE_4, v.width)
    return isinstance(v, config.Vision) and v.mean_pool


def metadata(v: config.Vision | config.GemmaVision, width: int) -> dict[str, Any]:
    """The keys of an encoder for a decoder of model width ``width``."""
    is_4 = isinstance(v, config.GemmaVision)
    # Gemma 4's code does not use the size of images, which may have any, nor mean and deviation.
    keys = {
        "image_size": 224 if is_4 else v.side * v.patch,
        "patch_size": v.patch,
        "embedding_length": v.width,
        "feed_forward_length": v.hidden,
        "projection_dim": width,
        "block_count": v.layers,
        "attention.head_count": v.heads,
        "attention.layer_norm_epsilon": EPSILON if is_4 else vision.LAYER_EPSILON,
        "image_mean": [0.0 if is_4 else 0.5] * 3,
        "image_std": [1.0 if is_4 else 0.5] * 3,
        "projector.scale_factor": v.pool,
    }
    kind = {"clip.vision.projector_type": "gemma4v"} if is_4 else {"clip.projector_type": "gemma3"}
    out: dict[str, Any] = {"clip.has_vision_encoder": True, **kind, "clip.use_gelu": True}
    return out | {f"clip.vision.{key}": value for key, value in keys.items()}


def renamed(name: str) -> str | None:
    """The name of a tensor here; None for one of the decoder."""
    for tower, layer_names in ((TOWER, LAYER_NAMES), (TOWER_4, LAYER_NAMES_4)):
        if layer := re.fullmatch(re.escape(tower) + r"encoder\.layers\.(\d+)\.(.+)", name):
            theirs = next(theirs for theirs in layer_names if layer[2].startswith(theirs))
            rest = layer[2].removeprefix(theirs).removeprefix("linear.")
            return f"v.blk.{layer[1]}.{layer_names[theirs]}{rest}"
    names = NAMES | NAMES_4
    return next((ours + name.removeprefix(theirs) for theirs, ours in names.items() if name.startswith(theirs)), None)


def _patch_kernel(
    patch: int, array: Float[np.ndarray, "inputs E"]
) -> tuple[Float[np.ndarray, "E 3 rows columns"], ...]:
    """Gemma 4's matrix of patches, whose inputs are rows, columns and colors, as the kernel of a convolution."""
    return (array.T.reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2),)


def finite_bounds(bounds: Float[np.ndarray, " 4"]) -> tuple[Float[np.ndarray, " 1"], ...]:
    """Bounds of a clipped layer, the largest numbers for infinite ones, as here."""
    return tuple(np.split(bounds.astype(np.float32), len(bounds)))


def as_written(part: Part, v: config.Vision | config.GemmaVision) -> Part:
    """A part with the shape and the values of its tensors in this file."""
    s = part.source
    if s.names[0] == TOWER_4 + "patch_embedder.input_proj.weight":
        s = replace(s, shape=(s.shape[0], 3, v.patch, v.patch), to_theirs=partial(_patch_kernel, v.patch))
    elif not s.shape:
        s = replace(s, shape=(1,), to_theirs=finite_bounds)
    return replace(part, source=s)
