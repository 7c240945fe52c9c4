"""Which tensor of a model is stored in which type: one table, derived from the specifications of the weights (model/spec.py).

    embedding           int8     read as input and as output: an error there reaches every logit (docs/results/quantization.md)
    per_layer.table     int4     one row a token
    other matrices      int4     of decoder and encoders, where groups of 32 fill the inputs
    everything else     float    norms, biases, position embeddings, convolution kernels, routers: small

A setting ``NAME=TYPE`` overrides it for one tensor, for all below a name (``vision=bfloat16``) or for a pattern (``*.down=int8``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from alhena.model.quantized.layout import GROUP
from alhena.model.quantized.rounding import Bits
from alhena.model.spec import WeightSpec, named

FLOAT = "float"
BITS: dict[str, Bits] = {"int4": 4, "int8": 8}
# float: the dtype of the model that is compressed.
TYPES = (*BITS, "bfloat16", FLOAT)
DEFAULT = "int4"
# By name or by a part of it.
EXCEPTIONS = {"embedding": "int8"}


@dataclass(frozen=True)
class TensorType:
    """The type of one tensor; and why it is not quantized, or rounded to nearest by every method."""

    name: str
    shape: tuple[int, ...]
    type: str
    reason: str = ""

    @property
    def bits(self) -> Bits | None:
        """Of a quantized tensor."""
        return BITS.get(self.type)

    @property
    def bytes(self) -> int:
        """Of the stored tensor; of one that keeps its dtype as float32."""
        size = math.prod(self.shape)
        return (
            size * (self.bits * GROUP + 16) // (8 * GROUP)
            if self.bits
            else size * (2 if self.type == "bfloat16" else 4)
        )


def _obstacle(s: WeightSpec) -> str:
    """Why a tensor cannot be quantized; empty if it can."""
    if s.contracted is None:
        return "no matrix of a matmul"
    inputs = s.shape[s.contracted]
    return f"{inputs} inputs are not whole groups of {GROUP}" if inputs % GROUP else ""


def _only_rounded(s: WeightSpec, name: str) -> str:
    """Why no method does more for a quantized tensor than to round it; empty if one does."""
    if s.contracted == -1:
        return "rounded to nearest: each row is a token's own"
    return "rounded to nearest: few tokens for each expert" if ".experts." in name else ""


def _matches(name: str, key: str) -> bool:
    return name == key or name.startswith(key + ".") or fnmatchcase(name, key)


def _check(specs: Mapping[str, WeightSpec], settings: Mapping[str, str]) -> None:
    """Raises ValueError for a setting of no tensor, of an unknown type, or of tensors none of which can be quantized."""
    for key, kind in settings.items():
        if kind not in TYPES:
            raise ValueError(f"type {key}={kind}: choose one of {', '.join(TYPES)}")
        matching = [name for name in specs if _matches(name, key)]
        if not matching:
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in specs))
            raise ValueError(f"type {key}={kind}: the model has no tensor of that name; names begin with {parts}")
        if kind in BITS and all(map(_obstacle, (specs[name] for name in matching))):
            raise ValueError(f"type {key}={kind}: {matching[0]} cannot be quantized: {_obstacle(specs[matching[0]])}")


def type_table(specs: Any, settings: Mapping[str, str] | None = None) -> dict[str, TensorType]:
    """The type of every tensor, by name; of several settings that match one the last holds. Raises ValueError for a wrong setting."""
    weights, settings = named(specs), settings or {}
    _check(weights, settings)
    out = {}
    for name, s in weights.items():
        kind = EXCEPTIONS.get(name, DEFAULT if s.contracted is not None else FLOAT)
        kind = next((settings[key] for key in reversed([*settings]) if _matches(name, key)), kind)
        entry = TensorType(name, s.shape, kind)
        if entry.bits and (obstacle := _obstacle(s)):
            entry = replace(entry, type=FLOAT, reason=obstacle)
        elif entry.bits:
            entry = replace(entry, reason=_only_rounded(s, name))
        out[name] = entry
    return out


def summary(table: Mapping[str, TensorType]) -> list[tuple[str, str, int, int, str]]:
    """Rows of the table for people: tensors of one name, in any layer, together. Name, type, tensors, bytes, reason."""
    rows: dict[tuple[str, str, str], list[TensorType]] = {}
    for entry in table.values():
        name = ".".join("*" if part.isdigit() else part for part in entry.name.split("."))
        rows.setdefault((name, entry.type, entry.reason), []).append(entry)
    return [
        (name, kind, len(entries), sum(e.bytes for e in entries), reason)
        for (name, kind, reason), entries in rows.items()
    ]


def read_types(settings: Sequence[str]) -> dict[str, str]:
    """Settings ``NAME=TYPE`` of a command line. Raises ValueError for one of another form."""
    out = {}
    for setting in settings:
        name, equals, kind = setting.partition("=")
        if not (name and equals):
            raise ValueError(f"type {setting!r}: write NAME=TYPE, as in vision=bfloat16")
        out[name] = kind
    return out
