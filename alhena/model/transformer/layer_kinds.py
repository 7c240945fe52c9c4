"""Kinds of layers: what differs between the layers of a decoder, and how their weights are stacked.

Where all layers have weights of the same shapes (a *uniform* decoder) there is one stack, ``[layers, …]``. Otherwise the layers are
split into segments of equal repeating blocks, with one stack ``[repeats, …]`` for each position of the block:

    layers      0  1  2  3  4  5  6  7  8  9 10 11 │ 12 13 14 15 16 17           L local, G global, l g: the same without
    kinds       L  L  G  L  L  G  L  L  G  L  L  G │  l  l  g  l  l  g           keys and values of their own
    segments    └─────── 4 repeats of L L G ───────┘  └ 2 of l l g ─┘
    locate(10)  segment 0, position 1, repeat 3
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

import numpy as np

from alhena.model import config
from alhena.shapes import Bool


@dataclass(frozen=True)
class LayerKind:
    """What is static about a layer."""

    # None: the layers of a uniform stack may differ.
    is_global: bool | None
    head_dim: int
    kv_heads: int
    hidden: int
    # The layer attends to the keys and values of an earlier one.
    shares_kv: bool
    # The projected keys are the values too.
    key_as_value: bool
    # The MLP keeps only the largest activations of its gate.
    sparse: bool


@dataclass(frozen=True)
class Segment:
    """Consecutive layers: a block of layers of these kinds, several times."""

    kinds: tuple[LayerKind, ...]
    repeats: int
    # Number of its first layer.
    first: int

    @property
    def layers(self) -> int:
        return len(self.kinds) * self.repeats


@dataclass(frozen=True)
class Location:
    """Where the weights of a layer are: in which segment, in the stack of which position of its block, at which index."""

    segment: int
    position: int
    repeat: int


def is_global(c: config.Decoder) -> Bool[np.ndarray, " layers"]:
    """Which layers attend to the complete context."""
    return np.array([c.is_global(i) for i in range(c.layers)])


def layer_kind(c: config.Decoder, layer: int) -> LayerKind:
    """The kind of a layer."""
    is_global, shares_kv = c.is_global(layer), layer >= c.layers - c.kv_sharing_layers
    return LayerKind(
        is_global,
        head_dim=(c.global_head_dim if is_global else None) or c.head_dim,
        kv_heads=(c.global_kv_heads if is_global else None) or c.kv_heads,
        hidden=(c.kv_sharing_hidden if shares_kv else None) or c.hidden,
        shares_kv=shares_kv,
        key_as_value=is_global and c.global_key_as_value and not shares_kv,
        sparse=c.altup is not None and layer < c.altup.sparse_layers,
    )


def is_uniform(c: config.Decoder) -> bool:
    """Whether the layers differ in nothing but their windows, so that one stack holds their weights."""
    return len({replace(layer_kind(c, i), is_global=None) for i in range(c.layers)}) == 1


@cache
def segments(c: config.Decoder) -> tuple[Segment, ...]:
    """The segments of the decoder, in order; a uniform one has one, of blocks of one layer.

    >>> gemma_4 = config.Decoder(8, layers=8, heads=2, head_dim=4, hidden=8, window=2, global_every=2, kv_sharing_layers=3)
    >>> [(s.first, len(s.kinds), s.repeats) for s in segments(gemma_4)]
    [(0, 2, 2), (4, 1, 1), (5, 2, 1), (7, 1, 1)]
    """
    kinds = [layer_kind(c, i) for i in range(c.layers)]
    if is_uniform(c):
        return (Segment((replace(kinds[0], is_global=None),), c.layers, 0),)
    out, start = list[Segment](), 0
    for _, group in groupby(kinds, lambda kind: (kind.shares_kv, kind.sparse)):
        run = list(group)
        while run:
            block = run[: _period(run)]
            repeats = len(run) // len(block)
            out.append(Segment(tuple(block), repeats, start))
            start, run = start + out[-1].layers, run[out[-1].layers :]
    return tuple(out)


def _period(kinds: list[LayerKind]) -> int:
    """Length of the shortest block whose repetition begins with these kinds."""
    return next(p for p in range(1, len(kinds) + 1) if all(a == b for a, b in zip(kinds, kinds[p:], strict=False)))


def locate(c: config.Decoder, layer: int) -> Location:
    """Where the weights of a layer are. Raises ValueError for a number that no layer has.

    >>> gemma_4 = config.Decoder(8, layers=8, heads=2, head_dim=4, hidden=8, window=2, global_every=2, kv_sharing_layers=4)
    >>> locate(gemma_4, 7)
    Location(segment=1, position=1, repeat=1)
    """
    for i, segment in enumerate(segments(c)):
        index = layer - segment.first
        if 0 <= index < segment.layers:
            return Location(i, index % len(segment.kinds), index // len(segment.kinds))
    raise ValueError(f"there is no layer {layer}: the decoder has {c.layers}, numbered from 0")
