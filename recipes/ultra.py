"""Ultra: the size is not published. Here it is derived from an assumed training compute, by the law of Hoffmann et al. (2022).

The Gemini 1.0 report says that Ultra was trained on several superpods of 4,096 TPU v4 chips. Assumed: two of them for a hundred days.
"""

from __future__ import annotations

from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.planning.hardware import parse_machine
from alhena.recipe import Recipe
from alhena.scaling.laws import Compute, chinchilla
from recipes.family import Architecture, Schedule, family_recipe

MACHINE = parse_machine("v4:16x16x16", pods=2)
# 285 B parameters, 5.7 T tokens.
PARAMETERS, TOKENS = chinchilla(Compute(MACHINE.chips, MACHINE.chip.flops, days=100).total)


def run() -> Recipe:
    model = Architecture(
        decoder=config.Decoder(width=16_384, layers=73, heads=128, head_dim=128, hidden=65_536, remat=True),
        vision=config.Vision(width=2048, layers=32, heads=16, hidden=8192, patch=14, remat=True),
        audio=config.Usm(width=2048, layers=24, heads=16, hidden=8192, remat=True),
    )
    schedule = Schedule(tokens=TOKENS, batch_size=512, learning_rate=3e-4, mesh=Mesh(pod=2, data=256, model=16))
    return family_recipe("ultra", model, schedule)
