"""Gemma 4's audio encoder as llama.cpp reads it: keys, names and shapes of the tensors (mmproj.py)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from alhena.model import config
from alhena.model.families.export_weights import Part
from alhena.model.families.gguf.vision import finite_bounds
from alhena.model.layers import EPSILON
from alhena.shapes import Float

TOWER = "model.audio_tower."
# Names in Hugging Face's files, and here.
NAMES = {
    TOWER + "subsample_conv_projection.layer0.conv.": "a.conv1d.0.",
    TOWER + "subsample_conv_projection.layer0.norm.": "a.conv1d.0.norm.",
    TOWER + "subsample_conv_projection.layer1.conv.": "a.conv1d.1.",
    TOWER + "subsample_conv_projection.layer1.norm.": "a.conv1d.1.norm.",
    TOWER + "subsample_conv_projection.input_proj_linear.": "a.input_projection.",
    TOWER + "output_proj.": "a.pre_encode.out.",
    "model.embed_audio.embedding_projection.": "mm.a.input_projection.",
}
LAYER_NAMES = {
    "feed_forward1.pre_layer_norm.": "ffn_norm.",
    "feed_forward1.ffw_layer_1.": "ffn_up.",
    "feed_forward1.ffw_layer_2.": "ffn_down.",
    "feed_forward1.post_layer_norm.": "ffn_post_norm.",
    "norm_pre_attn.": "attn_pre_norm.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.post.": "attn_out.",
    "self_attn.relative_k_proj.": "attn_k_rel.",
    "self_attn.per_dim_scale": "per_dim_scale.weight",
    "norm_post_attn.": "attn_post_norm.",
    # llama.cpp has these two the other way round, in its files and its code.
    "lconv1d.pre_layer_norm.": "conv_norm.",
    "lconv1d.conv_norm.": "norm_conv.",
    "lconv1d.linear_start.": "conv_pw1.",
    "lconv1d.depthwise_conv1d.": "conv_dw.",
    "lconv1d.linear_end.": "conv_pw2.",
    "feed_forward2.pre_layer_norm.": "ffn_norm_1.",
    "feed_forward2.ffw_layer_1.": "ffn_up_1.",
    "feed_forward2.ffw_layer_2.": "ffn_down_1.",
    "feed_forward2.post_layer_norm.": "ffn_post_norm_1.",
    "norm_out.": "ln2.",
}
# Kernels of convolutions.
FLOAT32 = re.compile(r"a\.conv1d\.\d\.weight|a\.blk\.\d+\.conv_dw\.weight")
# What llama.cpp's code has for every Gemma 4: mel bands, taps of the depthwise convolution, the window of attention and its cap.
FIXED = {"mels": 128, "kernel": 5, "block": 12, "left": 12, "right": 0, "cap": 50.0}


def is_known(a: config.Audio | None) -> bool:
    """Whether an encoder is one that llama.cpp has."""
    is_gemma4 = isinstance(a, config.Usm) and a.variant == "gemma4"
    return is_gemma4 and all(getattr(a, name) == value for name, value in FIXED.items())


def metadata(a: config.Usm, width: int) -> dict[str, Any]:
    """The keys of an encoder for a decoder of model width ``width``."""
    keys = {
        "projector_type": "gemma4a",
        "embedding_length": a.width,
        "feed_forward_length": a.hidden,
        "projection_dim": width,
        "block_count": a.layers,
        "attention.head_count": a.heads,
        "attention.layer_norm_epsilon": EPSILON,
        "num_mel_bins": a.mels,
    }
    return {"clip.has_audio_encoder": True, **{f"clip.audio.{key}": value for key, value in keys.items()}}


def renamed(name: str) -> str | None:
    """The name of a tensor here; None for one that is not of the audio encoder."""
    if layer := re.fullmatch(re.escape(TOWER) + r"layers\.(\d+)\.(.+)", name):
        theirs = next(theirs for theirs in LAYER_NAMES if layer[2].startswith(theirs))
        return f"a.blk.{layer[1]}.{LAYER_NAMES[theirs]}{layer[2].removeprefix(theirs).removeprefix('linear.')}"
    return next((ours + name.removeprefix(theirs) for theirs, ours in NAMES.items() if name.startswith(theirs)), None)


def _softplus(scale: Float[np.ndarray, " H"]) -> tuple[Float[np.ndarray, " H"], ...]:
    """The factors of queries, computed from what files hold."""
    return (np.logaddexp(scale.astype(np.float32), np.float32(0)),)


def _taps(depthwise: Float[np.ndarray, "taps E"]) -> tuple[Float[np.ndarray, "E taps"], ...]:
    return (depthwise.T,)


def as_written(part: Part) -> Part:
    """A part with the shape and the values of its tensors in this file."""
    s = part.source
    if s.names[0].endswith("per_dim_scale"):
        s = replace(s, to_theirs=_softplus)
    elif s.names[0].endswith("depthwise_conv1d.weight"):
        s = replace(s, shape=(s.shape[0], s.shape[2]), to_theirs=_taps)
    elif not s.shape:
        s = replace(s, shape=(1,), to_theirs=finite_bounds)
    return replace(part, source=s)
