"""Nano-1: 1.8 B parameters, for devices with little memory (Gemini 1.0 report, table 1); quantized to 4 bits it is about 1 GB.

Trained on far more tokens than Hoffmann's law asks for, since what counts is the cost of answering (Touvron et al. 2023).
"""

from __future__ import annotations

from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.recipe import Recipe
from recipes.family import member

TOKENS = 2e12  # Llama 2's number


def run() -> Recipe:
    return member(
        "nano-1",
        config.Decoder(width=2048, layers=18, heads=16, head_dim=128, hidden=8192, remat=True),
        config.Vision(width=768, layers=12, heads=12, hidden=2048, patch=14, remat=True),
        config.Usm(width=768, layers=6, heads=12, hidden=3072, remat=True),
        tokens=TOKENS,
        batch_size=16,
        learning_rate=2e-3,
        mesh=Mesh(data=4, model=4),
    )
