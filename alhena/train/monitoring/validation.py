"""Validation loss by source and by modality."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np

from alhena.model import config, model
from alhena.tokens.examples.loader import batches_in_order
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.train.loss import LossSums
from alhena.train.monitoring.metrics import by_modality
from alhena.train.step import eval_step


def loss_sums(
    params: model.Params,
    c: config.Model,
    sources: Mapping[str, Examples],
    shape: BatchShape,
    batches: int | None = None,
) -> dict[str, list[LossSums]]:
    """Loss sums of the batches of a validation split, by source; at most ``batches`` of each."""
    return {
        name: [eval_step(params, batch, c) for batch in islice(batches_in_order({name: examples}, shape), batches)]
        for name, examples in sources.items()
    }


def _mean(sums: list[LossSums]) -> float | None:
    """Nats per weighted token; None without any."""
    weight = float(np.sum([s.weight for s in sums]))
    return round(float(np.sum([s.nats for s in sums])) / weight, 4) if weight else None


def by_source(sums: Mapping[str, list[LossSums]]) -> dict[str, float]:
    """Mean nats per weighted token, by source."""
    means = {name: _mean(of_source) for name, of_source in sums.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def validate(
    params: model.Params, c: config.Model, sources: Mapping[str, Examples], shape: BatchShape
) -> dict[str, float]:
    """Mean nats per weighted token of a validation split, by source."""
    return by_source(loss_sums(params, c, sources, shape))


# A student whose loss is lower than the teacher's by this share has learned what the teacher does not know.
MARGIN = 0.1


def unknown_to_teacher(teacher: Mapping[str, float], student: Mapping[str, float]) -> list[str]:
    """A line for each source on which the student is clearly better than its teacher, which therefore holds it back there.

    >>> for line in unknown_to_teacher({"text": 3.7, "sums": 7.39}, {"text": 3.69, "sums": 0.62}):
    ...     print(line)
    source 'sums': the teacher's loss is 7.39, the student's 0.62; it was not trained on such documents: leave them out of this mixture, or train without a teacher
    """
    return [
        f"source {name!r}: the teacher's loss is {teacher[name]:.2f}, the student's {loss:.2f}; it was not trained on such "
        "documents: leave them out of this mixture, or train without a teacher"
        for name, loss in student.items()
        if loss < (1 - MARGIN) * teacher[name]
    ]


def losses(
    params: model.Params,
    c: config.Model,
    sources: Mapping[str, Examples],
    shape: BatchShape,
    batches: int | None = None,
) -> dict[str, dict[str, float]]:
    """Mean nats per weighted token: by modality of the target, ``all`` of them together, and by source."""
    sums = loss_sums(params, c, sources, shape, batches)
    together = [s for of_source in sums.values() for s in of_source]
    return {
        "modality": {**by_modality(together)["loss"], "all": _mean(together) or 0.0},
        "source": by_source(sums),
    }
