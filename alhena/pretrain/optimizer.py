"""AdamW with warm-up, a long constant rate and a decay at the end (WSD: Hu et al. 2024), or cosine; weight decay on matrices only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from alhena.shapes import Array


@dataclass(frozen=True)
class Optimizer:
    rate: float = 3e-3
    warmup: int = 60
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay: float = 0.4  # WSD: fraction of the steps over which the rate falls to ``floor``
    floor: float = 0.03  # last rate, as a fraction of the highest
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not (self.rate > 0 and 0 < self.decay <= 1 and self.warmup >= 0):
            raise ValueError(f"optimizer: rate {self.rate} and decay {self.decay} must be positive, warmup {self.warmup} not negative")


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate of each step.

    >>> rate = schedule(Optimizer(rate=1.0, warmup=10, decay=0.5, floor=0.1), 100)
    >>> [round(float(rate(step)), 2) for step in (0, 5, 10, 50, 75, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.55, 0.1]
    """
    warmup = min(settings.warmup, max(steps // 2, 1))
    up = optax.linear_schedule(0.0, settings.rate, warmup)
    if settings.schedule == "cosine":
        down = optax.cosine_decay_schedule(settings.rate, max(steps - warmup, 1), settings.floor)
        return optax.join_schedules([up, down], [warmup])
    start = max(warmup, round(steps * (1 - settings.decay)))
    down = optax.linear_schedule(settings.rate, settings.rate * settings.floor, max(steps - start, 1))
    return optax.join_schedules([up, optax.constant_schedule(settings.rate), down], [warmup, start])


def _decays(params: Any) -> Any:
    """Matrices decay; norm scales, positions and the depthwise kernels do not."""

    def matrix(path: tuple[Any, ...], leaf: Array) -> bool:
        name = jax.tree_util.keystr(path)
        return leaf.ndim >= 2 and not any(word in name for word in ("norm", "rows", "columns", "depthwise"))

    return jax.tree_util.tree_map_with_path(matrix, params)


def optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW at the scheduled rate."""
    adam = optax.adamw(
        schedule(settings, steps), *settings.betas, eps=1e-8, weight_decay=settings.weight_decay, mask=_decays
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip), adam)
