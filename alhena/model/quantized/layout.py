"""Quantized weights: groups of 32 values along the contracted dimension share a scale, exactly as in GGUF's Q4_0 and Q8_0.

    w [I, O]  ──►  tiles of 16 outputs × 32 inputs           T = ceil(O / 16) tiles, G = I / 32 groups

    Int4.packed  uint8   [*layers, T, G, 4, 16, 4]   byte [v, o, t] of a tile: q[o, 4v+t] in its low half, q[o, 16+4v+t] in its high half
    Int8.packed  int8    [*layers, T, G, 8, 16, 4]   byte [v, o, t] of a tile: q[o, 4v+t]
    scales       float16 [*layers, T, G, 16]         w ≈ (q - 8) · scale in 4 bits, q · scale in 8

A vector register of 64 bytes thus holds four inputs of sixteen outputs: the operand of one instruction that adds four products to
each of sixteen sums. The outputs of the last tile are padded with zeros. The same bytes are in files, in memory, and read by the kernel.

A layer of a stack is not a slice, which would be copied, but the complete stack and the index (:func:`at`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from alhena.shapes import Array, Float, Int, UInt8, pytree

Weight = TypeVar("Weight", bound="Quantized")
# Values along the contracted dimension that share a scale; outputs of a tile.
GROUP, TILE = 32, 16
# Dimensions of one layer's packed values.
NDIM = 5


@dataclass(frozen=True)
class Quantized:
    """A frozen quantized matrix ``[in, out]``, or with ``transposed`` an ``[out, in]`` one such as the embedding."""

    packed: Any
    scales: Any
    outputs: int = field(metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})
    # The index of this weight in the stack; None: the complete stack, or a single weight.
    layer: Any = None

    bits: ClassVar[int]

    @property
    def layers(self) -> tuple[int, ...]:
        """Dimensions of the stack, or of the part of it at the index."""
        return self.packed.shape[:-NDIM] if self.layer is None else self.packed.shape[1:-NDIM]

    @property
    def inputs(self) -> int:
        return self.packed.shape[-4] * GROUP

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it stands for."""
        matrix = (self.outputs, self.inputs) if self.transposed else (self.inputs, self.outputs)
        return (*self.layers, *matrix)


@pytree
@dataclass(frozen=True)
class Int4(Quantized):
    """A 4-bit weight: GGUF's Q4_0."""

    packed: UInt8[Array, "*layers tiles groups 4 16 4"]
    scales: Float[Array, "*layers tiles groups 16"]
    bits: ClassVar[int] = 4


@pytree
@dataclass(frozen=True)
class Int8(Quantized):
    """An 8-bit weight: GGUF's Q8_0."""

    packed: Int[Array, "*layers tiles groups 8 16 4"]
    scales: Float[Array, "*layers tiles groups 16"]
    bits: ClassVar[int] = 8


def is_quantized(x: Any) -> bool:
    """Whether a node of a tree of params is a quantized weight, for ``is_leaf``."""
    return isinstance(x, Quantized)


def packed_shapes(bits: int, inputs: int, outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the packed values and of the scales of a matrix. Raises ValueError unless the inputs are whole groups.

    >>> packed_shapes(4, 64, 20)
    ((2, 2, 4, 16, 4), (2, 2, 16))
    """
    if inputs % GROUP:
        raise ValueError(f"a weight of {inputs} inputs cannot be quantized: groups of {GROUP} must fill them")
    tiles, groups = -(-outputs // TILE), inputs // GROUP
    return (tiles, groups, bits, TILE, 4), (tiles, groups, TILE)


def at(w: Weight, index: Int[Array, ""] | int) -> Weight:
    """The weight at an index of the first dimension of the stack, without a copy."""
    if w.layer is not None:
        # A layer of a stack of stacks: all of them in one stack.
        index = w.layer * w.packed.shape[1] + index
        w = flat(w)
    return replace(w, layer=jnp.asarray(index, jnp.int32))


def flat(w: Weight) -> Weight:
    """A stack of stacks as one stack."""
    packed, scales = (a.reshape(-1, *a.shape[2:]) for a in (w.packed, w.scales))
    return replace(w, packed=packed, scales=scales)


def sliced(w: Weight) -> Weight:
    """The weight without the stack that it is a part of."""
    if w.layer is None:
        return w
    packed, scales = (jax.lax.dynamic_index_in_dim(a, w.layer, keepdims=False) for a in (w.packed, w.scales))
    return replace(w, packed=packed, scales=scales, layer=None)


def integers(packed: UInt8[Array, "*tiles 4 o 4"] | Int[Array, "*tiles 8 o 4"]) -> Int[Array, "*tiles o 32"]:
    """The values of groups, -8..7 or -128..127, in order."""
    if packed.dtype == np.uint8:
        halves = jnp.concatenate([packed & 15, packed >> 4], axis=-3)
        packed = halves.astype(jnp.int8) - 8
    return jnp.swapaxes(packed, -3, -2).reshape(*packed.shape[:-3], -1, GROUP)


def dequantize(w: Quantized) -> Float[Array, "*layers I O"]:
    """The float32 weight, in its original orientation."""
    w = sliced(w)
    # [*layers, T, G, 16, 32]
    values = integers(w.packed).astype(jnp.float32) * w.scales.astype(jnp.float32)[..., None]
    *layers, tiles, groups, _, _ = values.shape
    rows = jnp.swapaxes(values, -3, -2).reshape(*layers, tiles * TILE, groups * GROUP)[..., : w.outputs, :]
    return rows if w.transposed else jnp.swapaxes(rows, -1, -2)


def dequantize_rows(w: Quantized, rows: Int[Array, " n"]) -> Float[Array, "n I"]:
    """The weights of some outputs, float32; only these are read."""
    w = sliced(w)
    tile, o = rows // TILE, rows % TILE
    # [n, G, 1, 32]
    values = integers(w.packed[tile, :, :, o][..., None, :]).astype(jnp.float32)
    return (values[:, :, 0] * w.scales[tile, :, o].astype(jnp.float32)[..., None]).reshape(len(rows), -1)


def no_gradient(w: Weight) -> Weight:
    """The cotangent of a quantized weight: zeros."""

    def zeros(a: Array) -> Any:
        inexact = jnp.issubdtype(a.dtype, jnp.inexact)
        return jnp.zeros(a.shape, a.dtype) if inexact else np.zeros(a.shape, jax.dtypes.float0)

    return jax.tree.map(zeros, w)


def to_gguf_blocks(w: Quantized) -> UInt8[np.ndarray, "*layers O G bytes"]:
    """The blocks of GGUF's Q4_0 (18 bytes) or Q8_0 (34): a float16 scale and the values of a group, of each output."""
    w = sliced(w)
    packed, scales = np.asarray(w.packed).view(np.uint8), np.asarray(w.scales)
    *layers, tiles, groups, vectors, _, _ = packed.shape
    blocks = np.empty((*layers, tiles, TILE, groups, 2 + 4 * vectors), np.uint8)
    blocks[..., :2] = np.ascontiguousarray(np.swapaxes(scales, -1, -2))[..., None].view(np.uint8)
    # [*layers, T, 16, G, vectors, 4]
    blocks[..., 2:] = np.moveaxis(packed, -2, -4).reshape(*layers, tiles, TILE, groups, 4 * vectors)
    return blocks.reshape(*layers, tiles * TILE, groups, -1)[..., : w.outputs, :, :]


def from_gguf_blocks(blocks: UInt8[np.ndarray, "*layers O G bytes"], transposed: bool = False) -> Int4 | Int8:
    """The weight of blocks of GGUF's Q4_0 or Q8_0, which hold an ``[out, in]`` matrix; bit for bit. Its arrays are NumPy's."""
    *layers, outputs, groups, size = blocks.shape
    if size not in (18, 34):
        raise ValueError(f"blocks of {size} bytes; those of Q4_0 have 18, those of Q8_0 34")
    tiles = -(-outputs // TILE)
    padded = np.zeros((*layers, tiles * TILE, groups, size), np.uint8)
    padded[..., :outputs, :, :] = blocks
    if size == 18:
        # The value 0 in 4 bits.
        padded[..., outputs:, :, 2:] = 0x88
    padded = padded.reshape(*layers, tiles, TILE, groups, size)
    scales = np.swapaxes(np.ascontiguousarray(padded[..., :2]).view(np.float16)[..., 0], -1, -2)
    packed = np.moveaxis(padded[..., 2:].reshape(*layers, tiles, TILE, groups, -1, 4), -4, -2)
    kind: Any = Int4 if size == 18 else Int8
    values = np.ascontiguousarray(packed).view(np.uint8 if size == 18 else np.int8)
    return kind(values, np.ascontiguousarray(scales), outputs, transposed)
