"""Writes the golden files of ``tests/model/test_encoders.py``: tiny random encoders of the reference implementation and their outputs.

python -m pip install torch transformers       (for this script only)
python tests/model/golden/make_encoders.py     writes siglip/ beside it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

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


if __name__ == "__main__":
    torch.manual_seed(0)
    siglip()
