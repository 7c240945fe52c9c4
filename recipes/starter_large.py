"""A larger starter: the teacher of `starter_distilled`. The same documents, tokens and tasks; deeper, wider, half as many steps again.

An hour and a half on two idle CPU cores: `alhena demo runs/starter_large --recipe starter_large`.
"""

from __future__ import annotations

from dataclasses import replace

from alhena.model import config
from alhena.recipe import Recipe
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer
from recipes import starter


def run() -> Recipe:
    """9.2 million parameters, 3.5 times as many as the starter."""
    base = starter.run()
    return replace(
        base,
        name="starter-large",
        decoder=config.Decoder(width=256, layers=8, heads=8, head_dim=32, hidden=768),
        vision=config.Vision(width=144, layers=4, heads=4, hidden=288),
        audio=config.Conformer(width=160, layers=3, heads=5, hidden=320),
        pretrain=Training(
            (Phase(800, starter.PARTS), Phase(2800, starter.TASKS)),
            starter.SHAPE,
            Optimizer(learning_rate=4e-3, warmup=100, decay_fraction=0.5),
            evaluate_every=1200,
        ),
    )
