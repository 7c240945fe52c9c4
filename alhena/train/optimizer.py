"""Muon for matrices, Adam for the rest; warm-up, a long constant rate and a decay at the end (WSD: Hu et al. 2024), or cosine.

Muon (Jordan et al. 2024) orthogonalizes the momentum of each matrix, so that all its directions are learned at one pace; its
update is scaled to the size of Adam's (Liu et al. 2025), one rate serves both. On the starter, where Adam had not yet begun to
read handwritten digits after 160 steps, Muon read most of them (docs/results.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import optax

from alhena.model import spec
from alhena.train.muon import scale_by_muon


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 4e-3
    warmup: int = 60
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay_fraction: float = 0.4  # WSD: fraction of the steps over which the rate falls to ``floor``
    final_learning_rate_fraction: float = 0.03  # last rate, as a fraction of the highest
    muon_momentum: float = 0.95  # Muon's
    adam_betas: tuple[float, float] = (0.9, 0.98)  # Adam's
    weight_decay: float = 0.05
    gradient_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and 0 < self.decay_fraction <= 1 and self.warmup >= 0):
            raise ValueError(
                f"optimizer: rate {self.learning_rate} and decay {self.decay_fraction} must be positive, warmup {self.warmup} not negative"
            )


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate of each step.

    >>> rate = schedule(Optimizer(rate=1.0, warmup=10, decay=0.5, floor=0.1), 100)
    >>> [round(float(rate(step)), 2) for step in (0, 5, 10, 50, 75, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.55, 0.1]
    """
    warmup = min(settings.warmup, max(steps // 2, 1))
    up = optax.linear_schedule(0.0, settings.learning_rate, warmup)
    if settings.schedule == "cosine":
        down = optax.cosine_decay_schedule(
            settings.learning_rate, max(steps - warmup, 1), settings.final_learning_rate_fraction
        )
        return optax.join_schedules([up, down], [warmup])
    start = max(warmup, round(steps * (1 - settings.decay_fraction)))
    down = optax.linear_schedule(
        settings.learning_rate, settings.learning_rate * settings.final_learning_rate_fraction, max(steps - start, 1)
    )
    return optax.join_schedules([up, optax.constant_schedule(settings.learning_rate), down], [warmup, start])


@cache  # the step is compiled for this very object
def optimizer(settings: Optimizer, steps: int, specs: Any) -> optax.GradientTransformation:
    """Clip by global norm, then Muon or Adam at the scheduled rate, with weight decay or without, as each weight's specification says.

    ``specs`` is the tree of specifications of what is trained, such as ``model.weights(c)``.
    """
    rate, decayed = schedule(settings, steps), spec.decay_mask(specs)
    muon = optax.chain(
        scale_by_muon(settings.muon_momentum),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )
    adam = optax.adamw(rate, *settings.adam_betas, weight_decay=settings.weight_decay, mask=decayed, nesterov=True)
    each = optax.partition({"muon": muon, "adam": adam}, spec.groups(specs))
    return optax.chain(optax.clip_by_global_norm(settings.gradient_clip_norm), each)
