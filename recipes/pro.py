"""Pro: the size is not published. Here it is derived from an assumed training compute, by the law of Hoffmann et al. (2022).

The Gemini 1.0 report says that Pro was pre-trained in weeks, with a fraction of Ultra's resources. Assumed: four v5e pods for four weeks.
"""

from __future__ import annotations

from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.planning.hardware import parse_machine
from alhena.recipe import Recipe
from alhena.scaling.laws import Compute, chinchilla
from recipes.family import Architecture, Schedule, family_recipe

MACHINE = parse_machine("v5e:16x16", pods=4)
# 45 B parameters, 0.9 T tokens.
PARAMETERS, TOKENS = chinchilla(Compute(MACHINE.chips, MACHINE.chip.flops, days=28).total)


def run() -> Recipe:
    model = Architecture(
        decoder=config.Decoder(width=7168, layers=58, heads=56, head_dim=128, hidden=28_672, remat=True),
        vision=config.Vision(width=1536, layers=24, heads=24, hidden=4096, patch=14, remat=True),
        audio=config.Usm(width=1536, layers=16, heads=24, hidden=6144, remat=True),
    )
    schedule = Schedule(tokens=TOKENS, batch_size=32, learning_rate=8e-4, mesh=Mesh(data=32, model=8))
    return family_recipe("pro", model, schedule)
