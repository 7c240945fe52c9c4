"""Nano-2: 3.25 B parameters, for devices with more memory (Gemini 1.0 report, table 1). See ``nano_1``."""

from __future__ import annotations

from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.recipe import Recipe
from recipes.family import member
from recipes.nano_1 import TOKENS


def run() -> Recipe:
    return member(
        "nano-2",
        config.Decoder(width=2560, layers=25, heads=20, head_dim=128, hidden=10_240, remat=True),
        config.Vision(width=768, layers=12, heads=12, hidden=2048, patch=14, remat=True),
        config.Usm(width=1024, layers=6, heads=16, hidden=4096, remat=True),
        tokens=TOKENS,
        batch_size=8,
        learning_rate=1.5e-3,
        mesh=Mesh(data=4, model=4),
    )
