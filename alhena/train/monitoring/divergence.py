"""Early warning of divergence: norms that keep growing, long before the loss rises.

Where modalities share all weights, each raises its norms a little to compete with the others, and the sum overflows 16 bits in the end.
The norm of the last layer's output grew without bound in just those runs of Chameleon (2024) that later diverged.

    log norm │        ╱●       least-squares line through the logarithms of the last WINDOW log lines since the warm-up;
             │     ●╱          a warning when it rises by MIN_GROWTH or more from the first to the last of them,
             │   ╱●            and explains at least MIN_R_SQUARED of their variance, so that it is a trend and not noise
             │ ●╱

Monitored are the gradient's norm and, by modality, the root mean square of the decoder's output before its last norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WINDOW, MIN_GROWTH, MIN_R_SQUARED = 12, 2.0, 0.8


def _norms(record: Mapping[str, Any]) -> dict[str, float]:
    outputs = {f"output norm ({kind})": value for kind, value in record["output_norm_by_modality"].items()}
    return {"gradient norm": record["gradient_norm"], **outputs}


def growing_norms(records: Sequence[Mapping[str, Any]], warmup: int) -> dict[str, float]:
    """The factor by which each norm that is growing now has grown, from the log lines of a training's metrics.

    >>> record = lambda n, norm: {"step": n, "gradient_norm": norm, "output_norm_by_modality": {}}
    >>> growing_norms([record(n, 0.5 * 1.1**n) for n in range(20)], warmup=5)
    {'gradient norm': 2.85}
    >>> growing_norms([record(n, 0.5 * 1.05**n) for n in range(20)], warmup=5)
    {}
    >>> growing_norms([record(n, 1.1**n) for n in range(20)], warmup=9)
    {}
    """
    last = [record for record in records if record["step"] > warmup][-WINDOW:]
    out: dict[str, float] = {}
    for name in _norms(last[-1]) if len(last) == WINDOW else ():
        values = np.array([_norms(record).get(name, 0.0) for record in last])
        if not np.all(values > 0):
            continue
        x, y = np.arange(WINDOW) - (WINDOW - 1) / 2, np.log(values) - np.mean(np.log(values))
        rise = x @ y / (x @ x)
        if rise * (WINDOW - 1) >= np.log(MIN_GROWTH) and rise * (x @ y) >= MIN_R_SQUARED * (y @ y):
            out[name] = round(float(np.exp(rise * (WINDOW - 1))), 2)
    return out


def newly_growing_norms(records: Sequence[Mapping[str, Any]], warmup: int) -> dict[str, float]:
    """The norms that grow with the last log line and did not with the one before."""
    before = growing_norms(records[:-1], warmup)
    return {name: factor for name, factor in growing_norms(records, warmup).items() if name not in before}
