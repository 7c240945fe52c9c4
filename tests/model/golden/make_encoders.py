"""Writes the golden files of ``tests/model/test_encoders.py``: tiny random encoders of the reference implementation and their outputs.

python -m pip install torch transformers       (for this script only)
python tests/model/golden/make_encoders.py     writes siglip/, usm/ and log_mel.npz beside it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma3nAudioConfig,
    Gemma3nAudioEncoder,
    Gemma3nAudioFeatureExtractor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)


def scrambled(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights, norms and biases too: a scale of one or a bias of zero would hide a missing one."""
    for name, weight in model.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") or ("layer_norm" in name and name.endswith("weight")) else 0.0
        torch.nn.init.normal_(weight, mean=mean, std=0.2)
    return model.eval()


def siglip() -> None:
    settings = SiglipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    model = scrambled(SiglipVisionModel(settings))
    pixels = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
    with torch.no_grad():
        hidden = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)).last_hidden_state
    model.save_pretrained(HERE / "siglip")
    np.savez_compressed(HERE / "siglip" / "golden.npz", pixels=pixels, hidden=hidden.numpy())


def usm() -> None:
    """Audio of full length, one frame less, about half, and three frames; the last block of queries is partial."""
    settings = Gemma3nAudioConfig(
        hidden_size=24, conf_num_attention_heads=3, conf_num_hidden_layers=2, input_feat_size=16, conf_attention_chunk_size=4,
        conf_attention_context_left=5, conf_attention_context_right=2, conf_attention_logit_cap=3.0, conf_conv_kernel_size=5,
        conf_reduction_factor=2, sscp_conv_channel_size=[6, 4],
    )  # fmt: skip
    model = scrambled(Gemma3nAudioEncoder(settings))
    lengths = np.array([72, 71, 37, 3])
    invalid = np.arange(72) >= lengths[:, None]
    frames = np.where(invalid[..., None], 0, RNG.standard_normal((4, 72, 16)).astype(np.float32))
    # Padding is zero as in our batches: the convolutions read frames after the current one.
    with torch.no_grad():
        hidden = model(torch.from_numpy(frames), torch.from_numpy(invalid)).last_hidden_state
    model.save_pretrained(HERE / "usm")
    np.savez_compressed(HERE / "usm" / "golden.npz", frames=frames, lengths=lengths, hidden=hidden.numpy())


def log_mel() -> None:
    time = np.arange(8000) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + 3000 * time) * time) + 0.05 * RNG.standard_normal(8000)
    sound = np.concatenate([sound, np.zeros(1600)]).astype(np.float32)
    features = Gemma3nAudioFeatureExtractor()(sound, pad_to_multiple_of=None, return_tensors="np")["input_features"][0]
    np.savez_compressed(HERE / "log_mel.npz", sound=sound, features=features)


if __name__ == "__main__":
    torch.manual_seed(0)
    siglip()
    usm()
    log_mel()
