"""A model with 4-bit weights (alhena/model/int4.py).

The decoder's matrices and the tied embedding are quantised; norms and the encoders (a small share of a large model) stay as they
are.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from alhena.model import model
from alhena.model.int4 import Int4, quantise


def quantise_model(params: model.Params, group: int = 32) -> model.Params:
    """The model with 4-bit decoder matrices and embedding; one that is 4-bit already comes back as it is."""
    layers = params.layers
    chosen: dict[str, Any] = {}
    for field in fields(layers):
        value = getattr(layers, field.name)
        if not isinstance(value, Int4) and value.ndim == 3:
            chosen[field.name] = quantise(value, group)
    embedding = (
        params.embedding if isinstance(params.embedding, Int4) else quantise(params.embedding, group, transposed=True)
    )
    return replace(params, layers=replace(layers, **chosen), embedding=embedding)
