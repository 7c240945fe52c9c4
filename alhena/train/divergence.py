"""Early warning: norms that keep growing, which tell of divergence long before the loss does.

Where modalities share all weights each raises its norms a little to be heard, and in 16 bits the sum is lost in the end; the norm
of the last layer's output grew without bound in just those runs of Chameleon (2024) that later diverged.

    log norm │        ╱●       a line by least squares through the logarithms of the last SPAN log lines since the warm-up;
             │     ●╱          a warning when it rises by GROWTH or more from the first to the last of them,
             │   ╱●            and explains at least STRAIGHT of their variance, so that it is a trend and not noise
             │ ●╱

Watched are the gradient's norm and, by modality, the root mean square of the decoder's output before its last norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SPAN, GROWTH, STRAIGHT = 12, 2.0, 0.8


def _norms(record: Mapping[str, Any]) -> dict[str, float]:
    outputs = {f"output norm ({kind})": value for kind, value in record["output_norm_by_modality"].items()}
    return {"gradient norm": record["gradient_norm"], **outputs}


def growing_norms(records: Sequence[Mapping[str, Any]], warmup: int) -> dict[str, float]:
    """By how much each norm has grown that is growing now, from the log lines of a training's metrics.

    >>> record = lambda n, norm: {"step": n, "gradient_norm": norm, "output_norm_by_modality": {}}
    >>> growing([record(n, 0.5 * 1.1**n) for n in range(20)], warmup=5)
    {'gradient norm': 2.85}
    >>> growing([record(n, 0.5 * 1.05**n) for n in range(20)], warmup=5), growing([record(n, 1.1**n) for n in range(20)], warmup=9)
    ({}, {})
    """
    last = [record for record in records if record["step"] > warmup][-SPAN:]
    out: dict[str, float] = {}
    for name in _norms(last[-1]) if len(last) == SPAN else ():
        values = np.array([_norms(record).get(name, 0.0) for record in last])
        if not np.all(values > 0):
            continue
        x, y = np.arange(SPAN) - (SPAN - 1) / 2, np.log(values) - np.mean(np.log(values))
        slope = x @ y / (x @ x)
        if slope * (SPAN - 1) >= np.log(GROWTH) and slope * (x @ y) >= STRAIGHT * (y @ y):
            out[name] = round(float(np.exp(slope * (SPAN - 1))), 2)
    return out


def newly_growing_norms(records: Sequence[Mapping[str, Any]], warmup: int) -> dict[str, float]:
    """What grows with the last of the log lines and did not with the one before: worth a warning."""
    before = growing_norms(records[:-1], warmup)
    return {name: factor for name, factor in growing_norms(records, warmup).items() if name not in before}
