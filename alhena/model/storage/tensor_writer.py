"""Writer of safetensors files: the header first, then each tensor, or a part of it, at its offset.

    with write_tensors(path, {"norm": Declared("F32", (64,))}) as tensors:
        with tensors.open("norm") as array:       memory-mapped: what is written to it goes to the file
            array[:] = 1

Only the parts that are being written are mapped, so a file may be larger than the memory. Every tensor whose size is a multiple of
64 bytes begins at a multiple of 64 bytes, where JAX uses a memory-mapped array without a copy.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from alhena.files import atomic
from alhena.model.storage.tensors import ALIGNMENT, DTYPES

DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Declared:
    """Dtype (its name in the file) and shape of a tensor that will be written."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def _order(tensors: Mapping[str, Declared]) -> list[str]:
    """Names such that each tensor begins at a multiple of the largest power of two, up to 64, that divides its size."""
    return sorted(tensors, key=lambda name: (-math.gcd(tensors[name].nbytes, ALIGNMENT), name))


@dataclass(frozen=True)
class TensorFile:
    """A file of which the header is written."""

    path: Path
    tensors: Mapping[str, Declared]
    offsets: Mapping[str, int]

    @contextmanager
    def open(self, name: str, index: int | None = None) -> Iterator[np.ndarray]:
        """A tensor, or the part of it at an index of its first dimension, mapped for writing."""
        declared = self.tensors[name]
        shape, offset = declared.shape, self.offsets[name]
        if index is not None:
            shape = shape[1:]
            offset += index * (declared.nbytes // declared.shape[0])
        dtype = np.dtype(DTYPES[declared.dtype])
        size = math.prod(shape) * dtype.itemsize
        if not size:
            yield np.empty(shape, dtype)
            return
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        with open(self.path, "r+b") as file:
            view = mmap.mmap(file.fileno(), offset + size - start, offset=start)
        # The mapping ends with the last array that uses it.
        yield np.frombuffer(view, dtype, math.prod(shape), offset - start).reshape(shape)


def _reserve(file: BinaryIO, size: int) -> None:
    """Makes a file that large. Raises OSError when the disk is too full: writing to a mapping would end the process."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


@contextmanager
def write_tensors(path: Path, tensors: Mapping[str, Declared]) -> Iterator[TensorFile]:
    """A file with these tensors, zeros at first. It is renamed to ``path`` when the block ends without an error."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position, starts = 0, {}
    for name in _order(tensors):
        declared = tensors[name]
        starts[name] = position
        header[name] = {
            "dtype": declared.dtype,
            "shape": list(declared.shape),
            "data_offsets": [position, position + declared.nbytes],
        }
        position += declared.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with atomic(path) as partial:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            _reserve(file, 8 + len(text) + position)
        yield TensorFile(partial, tensors, {name: 8 + len(text) + start for name, start in starts.items()})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file."""
    declared = {name: Declared(DTYPE_NAMES[array.dtype], array.shape) for name, array in arrays.items()}
    with write_tensors(path, declared) as file:
        for name, array in arrays.items():
            with file.open(name) as mapped:
                mapped[...] = array
