"""Validation loss by source."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alhena.model import config, model
from alhena.tokens.loader import BatchShape, batches_in_order
from alhena.tokens.store import Examples
from alhena.train.step import eval_step


def validate(
    params: model.Params, c: config.Model, sources: Mapping[str, Examples], shape: BatchShape
) -> dict[str, float]:
    """Mean nats per weighted token of a validation split, by source."""
    out = {}
    for name, examples in sources.items():
        sums = [eval_step(params, batch, c) for batch in batches_in_order({name: examples}, shape)]
        weight = float(np.sum([s.weight for s in sums]))
        if weight:
            out[name] = round(float(np.sum([s.nats for s in sums])) / weight, 4)
    return out
