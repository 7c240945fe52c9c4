"""Writes Gemma 3's vision encoder (SigLIP) as the second GGUF file that llama.cpp reads beside the decoder's: ``mmproj``.

model.gguf, mmproj-model.gguf  ──  llama-server --model model.gguf --mmproj mmproj-model.gguf
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alhena.files import atomic
from alhena.model import config, model
from alhena.model.encoders import vision
from alhena.model.families.export_weights import Part, parts
from alhena.model.families.gguf_file import Q, open_gguf
from alhena.model.families.gguf_output import Floats, TensorOut, kind_of, write_header, write_tensor

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
# The kernel of the convolution, the positions and the projection, which llama.cpp transposes.
FLOAT32 = ("v.patch_embd.weight", "v.position_embd.weight", "mm.input_projection.weight")


def has_mmproj(c: config.Model) -> bool:
    """Whether the vision encoder of a model is one that can be written."""
    return isinstance(c.vision, config.Vision) and c.vision.mean_pool


def metadata(c: config.Vision, width: int) -> dict[str, Any]:
    """The keys of an encoder for a decoder of model width ``width``."""
    keys = {
        "image_size": c.side * c.patch,
        "patch_size": c.patch,
        "embedding_length": c.width,
        "feed_forward_length": c.hidden,
        "projection_dim": width,
        "block_count": c.layers,
        "attention.head_count": c.heads,
        "attention.layer_norm_epsilon": vision.LAYER_EPSILON,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "projector.scale_factor": c.pool,
    }
    out: dict[str, Any] = {"general.type": "mmproj", "clip.has_vision_encoder": True, "clip.projector_type": "gemma3"}
    return out | {"clip.use_gelu": True} | {f"clip.vision.{key}": value for key, value in keys.items()}


def _renamed(name: str) -> str | None:
    """The name of a tensor here; None for one of the decoder."""
    layer = re.fullmatch(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.(.+\.)(weight|bias)", name)
    if layer:
        return f"v.blk.{layer[1]}.{LAYER_NAMES[layer[2]]}{layer[3]}"
    return next((ours + name.removeprefix(theirs) for theirs, ours in NAMES.items() if name.startswith(theirs)), None)


def _tensors(all_parts: list[Part], floats: Floats | None) -> dict[str, TensorOut]:
    out = {}
    for part in all_parts:
        for i, theirs in enumerate(part.source.names):
            if name := _renamed(theirs):
                kind = Q.F32 if name in FLOAT32 else kind_of(name, part.source.shape, [part], floats)
                # Weights of an encoder are written as floats.
                kind = kind if kind in (Q.F32, Q.BF16, Q.F16) else Q.F32
                out[name] = TensorOut(kind, part.source.shape, (part,), i)
    return out


def write_mmproj(path: Path, params: model.Params, c: config.Model, floats: Floats | None = None) -> None:
    """Writes the vision encoder of a Gemma 3."""
    assert isinstance(c.vision, config.Vision) and has_mmproj(c)
    tensors = _tensors(list(parts(params, c)), floats)
    with atomic(path) as partial:
        write_header(partial, "clip", metadata(c.vision, c.decoder.width), tensors)
        file = open_gguf(partial)
        for name, t in tensors.items():
            write_tensor(file, name, t, plus_one=name == "mm.soft_emb_norm.weight")
