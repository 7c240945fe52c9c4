"""Nano-1: 1.8 B parameters, for devices with little memory (Gemini 1.0 report, table 1); quantized to 4 bits it is about 1 GB.

Trained on far more tokens than is compute-optimal (Hoffmann et al. 2022), because the cost of inference matters more (Touvron et al. 2023).
"""

from __future__ import annotations

from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.recipe import Recipe
from recipes.family import Architecture, Schedule, family_recipe

# As many as Llama 2.
TOKENS = 2e12


def run() -> Recipe:
    model = Architecture(
        decoder=config.Decoder(width=2048, layers=18, heads=16, head_dim=128, hidden=8192, remat=True),
        vision=config.Vision(width=768, layers=12, heads=12, hidden=2048, patch=14, remat=True),
        audio=config.Usm(width=768, layers=6, heads=12, hidden=3072, remat=True),
    )
    schedule = Schedule(tokens=TOKENS, batch_size=16, learning_rate=2e-3, mesh=Mesh(data=4, model=4))
    return family_recipe("nano-1", model, schedule)
