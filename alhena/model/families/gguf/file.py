"""GGUF files: metadata and tensors of one memory-mapped file (ggml-org/ggml, docs/gguf.md).

    "GGUF" version  ─  metadata: key, type, value …  ─  tensors: name, dimensions, type, offset …  ─  aligned data

Every count, length and offset is checked against the size of the file before anything is allocated; the reader of the ``gguf``
library does not do that, so only its tables and its dequantization are used. Tensors are dequantized a few rows at a time.
"""

from __future__ import annotations

import math
import mmap
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from alhena.model.quantized.layout import GROUP, TILE, from_gguf_blocks
from alhena.model.storage.tensors import DTYPES, Stored, check_finite, regular
from alhena.schema import shown
from alhena.shapes import Float, Int8, UInt8

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Of gguf.GGUFValueType; each is a letter of struct.
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
Q = GGMLQuantizationType
# The types that can be read, the first three as they are.
PLAIN = (Q.F32, Q.F16, Q.BF16)
KINDS = (*PLAIN, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K)
MAX_ENTRIES = 2**16
# Values of all arrays of the metadata together; a Gemma has 1.3 million.
MAX_VALUES = 2**22
MAX_NAME = 2**10
# Values that are dequantized at once.
BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class GgufTensor(Stored):
    """A tensor in the file, not read yet. ``shape`` is in NumPy's order, as in Hugging Face's files: ``[out, in]`` for a matrix.

    ``dtype`` is that of the values as they are read: float32 where they are quantized.
    """

    kind: GGMLQuantizationType = Q.F32
    # Subtracted from the values: some are stored with a constant added.
    shift: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size

    def map(self) -> np.ndarray:
        """The values: a view of the file, or dequantized, a few rows at a time, to a temporary file that is mapped in its place.

        Memory for all of them is never needed.
        """
        if self.kind in PLAIN and not self.shift:
            return super().map()
        rows, values = self._rows(), math.prod(self.shape)
        with tempfile.TemporaryFile() as file:
            file.truncate(4 * values)
            out = np.frombuffer(mmap.mmap(file.fileno(), 4 * values), np.float32).reshape(len(rows), -1)
        step = max(1, BLOCK_VALUES // out.shape[1])
        for start in range(0, len(rows), step):
            out[start : start + step] = self._dequantized(rows[start : start + step]) - np.float32(self.shift)
        return out.reshape(self.shape)

    def _rows(self) -> np.ndarray:
        """The bytes of each row: a view of the file."""
        rows = math.prod(self.shape[:-1])
        data = np.memmap(self.path, np.uint8, "r", self.offset, (self.nbytes,))
        return np.asarray(data).reshape(rows, self.nbytes // rows)

    def _dequantized(self, rows: np.ndarray) -> np.ndarray:
        if self.kind in PLAIN:
            return rows.view(DTYPES[self.kind.name])
        # Values that are not finite are found by who reads them.
        with np.errstate(invalid="ignore", over="ignore"):
            return quants.dequantize(rows, self.kind)

    @property
    def bits(self) -> int | None:
        """Bits of a matrix that is quantized here without a loss, in groups of 32 values along its inputs; else None."""
        return {Q.Q4_0: 4, Q.Q8_0: 8}.get(self.kind) if len(self.shape) > 1 else None

    def write_quantized(
        self,
        packed: UInt8[np.ndarray, "*experts T G rows 16 4"] | Int8[np.ndarray, "*experts T G rows 16 4"],
        scales: Float[np.ndarray, "*experts T G 16"],
        part: tuple[slice, ...] | None = None,
    ) -> None:
        """Writes matrices ``[out, in]``, or a part of them, as the arrays of quantized weights ``[in, out]``, bit for bit.

        Raises ValueError for scales that are not finite.
        """
        *outer, inner = self.shape
        blocks = self._rows().reshape(*outer, inner // GROUP, -1)[part or ...]
        tiles = max(1, BLOCK_VALUES // (blocks.shape[-2] * GROUP) // TILE)
        for expert in np.ndindex(blocks.shape[:-3]):
            for start in range(0, scales.shape[-3], tiles):
                w = from_gguf_blocks(blocks[expert][start * TILE : (start + tiles) * TILE])
                check_finite(self.path, self.name, np.asarray(w.scales))
                these = slice(start, start + tiles)
                packed[expert][these], scales[expert][these] = w.packed, w.scales


class _Cursor:
    """Reads the header of a file from its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.zeros(0, np.uint8)
        self.at, self.values_left = 0, MAX_VALUES

    def take(self, size: int) -> np.ndarray:
        """The next bytes, as a view of the file. Raises ValueError when it ends before."""
        if size > len(self.data) - self.at:
            raise ValueError(f"{self.path}: not a complete GGUF file: it ends at byte {len(self.data):,}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, letter: str) -> Any:
        (value,) = struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)).tobytes())
        # The shortest number that is the same float32: 1e-06 in place of 9.99999997e-07.
        return float(str(np.float32(value))) if letter == "f" else value

    def count(self, limit: int, what: str) -> int:
        if (count := self.number("Q")) > limit:
            raise ValueError(f"{self.path}: {what}: {count:,}; at most {limit:,} are read")
        return count

    def text(self, limit: int = 2**24) -> str:
        try:
            return self.take(self.count(limit, "bytes of a text")).tobytes().decode()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: a text at byte {self.at:,} is not UTF-8: a damaged file?") from None

    def value(self, key: str, kind: int) -> Any:
        """A value of the metadata: number, bool, str, NumPy array of numbers, or list of str."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"{self.path}: {shown(key)} is of unknown type {kind}")
        of, count = self.number("I"), self.count(self.values_left, f"values of {shown(key)}")
        self.values_left -= count
        if of in SCALARS:
            dtype = np.dtype(SCALARS[of]).newbyteorder("<")
            return self.take(count * dtype.itemsize).view(dtype).copy()
        if of != STRING:
            raise ValueError(f"{self.path}: {shown(key)} is an array of unknown type {of}")
        return [self.text() for _ in range(count)]


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of a file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @cached_property
    def architecture(self) -> str:
        return self.get("general.architecture", str)

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of the metadata. Raises ValueError when it is of another type, or is absent and there is no default."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ValueError(f"{self.path}: it has no {key}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            raise ValueError(f"{self.path}: {key} is {shown(value)}, which is not of the type expected")
        return value


def open_gguf(path: Path) -> GgufFile:
    """Reads the header of a file. Raises ValueError that names the file when it is damaged, truncated, or cannot be read here."""
    cursor = _Cursor(regular(path))
    if cursor.take(4).tobytes() != MAGIC:
        raise ValueError(f"{path}: not a GGUF file: it does not begin with {MAGIC.decode()}")
    if (version := cursor.number("I")) not in VERSIONS:
        raise ValueError(f"{path}: GGUF of version {version}; versions {' and '.join(map(str, VERSIONS))} can be read")
    tensors = cursor.count(MAX_ENTRIES, "tensors")
    entries = cursor.count(MAX_ENTRIES, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = _new(cursor, metadata)
        metadata[key] = cursor.value(key, cursor.number("I"))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise ValueError(f"{path}: general.alignment is {shown(alignment)}")
    found: dict[str, GgufTensor] = {}
    for _ in range(tensors):
        name = _new(cursor, found)
        found[name] = _tensor(cursor, name)
    start = math.ceil(cursor.at / alignment) * alignment
    placed = {name: _placed(tensor, start, len(cursor.data)) for name, tensor in found.items()}
    if metadata.get("split.count", 1) != 1:
        raise ValueError(f"{path}: one of {metadata['split.count']} parts; join them with llama-gguf-split --merge")
    return GgufFile(path, metadata, placed)


def _new(cursor: _Cursor, known: Mapping[str, Any]) -> str:
    """The next name. Raises ValueError when it is known already."""
    if (name := cursor.text(MAX_NAME)) in known:
        raise ValueError(f"{cursor.path}: {shown(name)} occurs twice")
    return name


def _tensor(cursor: _Cursor, name: str) -> GgufTensor:
    """A tensor of the header; its offset is relative to the data."""
    if not 1 <= (dimensions := cursor.number("I")) <= 4:
        raise ValueError(f"{cursor.path}: {shown(name)} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
    number, offset = cursor.number("I"), cursor.number("Q")
    kind = next((kind for kind in KINDS if kind == number), None)
    if kind is None:
        known = next((kind.name for kind in GGMLQuantizationType if kind == number), str(number))
        allowed = ", ".join(kind.name for kind in KINDS)
        raise ValueError(f"{cursor.path}: {shown(name)} is of type {known}; {allowed} can be read")
    if min(shape) < 1 or shape[-1] % GGML_QUANT_SIZES[kind][0]:
        raise ValueError(f"{cursor.path}: {shown(name)} of type {kind.name} has the shape {shown(shape)}")
    return GgufTensor(cursor.path, name, shape, kind.name if kind in PLAIN else "F32", offset, kind)


def _placed(tensor: GgufTensor, start: int, size: int) -> GgufTensor:
    """The tensor with its offset in the file. Raises ValueError when it is not inside the file."""
    if start + tensor.offset + tensor.nbytes > size:
        raise ValueError(f"{tensor.path}: not a complete GGUF file: {shown(tensor.name)} ends beyond byte {size:,}")
    return replace(tensor, offset=start + tensor.offset)
