"""Nano-2: 3.25 B parameters, for devices with more memory (Gemini 1.0 report, table 1). See ``nano_1``."""

from __future__ import annotations

from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.recipe import Recipe
from recipes.family import Architecture, Schedule, family_recipe
from recipes.nano_1 import TOKENS


def run() -> Recipe:
    model = Architecture(
        decoder=config.Decoder(width=2560, layers=25, heads=20, head_dim=128, hidden=10_240, remat=True),
        vision=config.Vision(width=768, layers=12, heads=12, hidden=2048, patch=14, remat=True),
        audio=config.Usm(width=1024, layers=6, heads=16, hidden=4096, remat=True),
    )
    schedule = Schedule(tokens=TOKENS, batch_size=8, learning_rate=1.5e-3, mesh=Mesh(data=4, model=4))
    return family_recipe("nano-2", model, schedule)
