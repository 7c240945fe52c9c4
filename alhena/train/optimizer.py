"""Optimizer: Muon for matrices, Adam for the rest; learning rate schedule with warm-up: WSD (Hu et al. 2024) or cosine.

Muon (Jordan et al. 2024) orthogonalizes the momentum of each matrix, so that all its directions are learned at one pace; its
update is scaled to the size of Adam's (Liu et al. 2025), so one learning rate serves both. On the starter, a model trained for 160
steps with Adam could not yet recognize handwritten digits; with Muon it recognized most of them (docs/results.md).
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
    """Hyperparameters of the optimizer and of the learning rate schedule."""

    learning_rate: float = 4e-3
    warmup: int = 60
    # WSD: warm-up, a long constant learning rate, a linear decay at the end.
    schedule: Literal["wsd", "cosine"] = "wsd"
    # WSD: fraction of the steps over which the learning rate decays.
    decay_fraction: float = 0.4
    # The last learning rate, as a fraction of ``learning_rate``.
    final_learning_rate_fraction: float = 0.03
    muon_momentum: float = 0.95
    adam_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    gradient_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and 0 < self.decay_fraction <= 1 and self.warmup >= 0):
            raise ValueError(
                f"Optimizer: learning_rate {self.learning_rate} must be positive, decay_fraction {self.decay_fraction} in (0, 1], "
                f"warmup {self.warmup} not negative"
            )


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate of each step.

    >>> rate = schedule(Optimizer(1.0, warmup=10, decay_fraction=0.5, final_learning_rate_fraction=0.1), 100)
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


# Cached because the jitted step is compiled for this very object.
@cache
def optimizer(settings: Optimizer, steps: int, specs: Any) -> optax.GradientTransformation:
    """Clips by global norm, then applies Muon or Adam at the scheduled learning rate, with or without weight decay.

    ``specs`` is the tree of specifications of the trained weights, such as ``model.weights(c)``: each names its optimizer group.
    """
    learning_rate, decayed = schedule(settings, steps), spec.decay_mask(specs)
    muon = optax.chain(
        scale_by_muon(settings.muon_momentum),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.scale_by_learning_rate(learning_rate),
    )
    adam = optax.adamw(
        learning_rate, *settings.adam_betas, weight_decay=settings.weight_decay, mask=decayed, nesterov=True
    )
    by_group = optax.partition({"muon": muon, "adam": adam}, spec.groups(specs))
    return optax.chain(optax.clip_by_global_norm(settings.gradient_clip_norm), by_group)
