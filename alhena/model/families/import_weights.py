"""Imports open weights into a model folder, one tensor at a time: the memory needed does not depend on the size of the model.

    files of a family, memory-mapped  ── a block of a tensor: converted, transposed, quantized ──►  weights.safetensors, memory-mapped

Matrices become bfloat16, float32 or 4-bit; those that a GGUF file holds in the types Q4_0 and Q8_0 keep their bits if nothing else is
asked for. Vectors (norms, biases, scalars) are float32.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from alhena.model import config, model
from alhena.model.families.gguf_file import GgufTensor
from alhena.model.families.open_weights import OpenWeights
from alhena.model.families.tensor_map import Source
from alhena.model.quantized.layout import GROUP, TILE, packed_shapes
from alhena.model.quantized.rounding import quantize
from alhena.model.spec import WeightSpec, named
from alhena.model.storage.tensor_writer import Declared, TensorFile, write_tensors
from alhena.model.storage.tensors import BLOCK, Stored, blocks, check_finite
from alhena.model.storage.weights import WEIGHTS, write_config
from alhena.progress import progress_bar

Weights = Literal["bfloat16", "float32", "int4"]
# A quicker import shows no progress.
LARGE_BYTES = 2**30


def _is_matrix(s: WeightSpec) -> bool:
    """Whether a weight is more than one number or one vector for each layer."""
    return len(s.shape) - (s.axes[:1] == ("layers",)) > 1


def _bits(source: OpenWeights, name: str, s: WeightSpec, weights: Weights | None) -> int | None:
    """Bits of a weight that becomes quantized: it may be, its inputs are whole groups, and the file's values have so many."""
    if s.contracted is None or s.shape[s.contracted] % GROUP or name in source.derived:
        return None
    if weights is not None:
        return 4 if weights == "int4" else None
    sources = source.table[name]
    names = [n for one in ((sources,) if isinstance(sources, Source) else sources) for n in one.names]
    stored = {source.tensors[n].bits for n in names}
    return stored.pop() if len(stored) == 1 else None


def _declare(name: str, s: WeightSpec, bits: int | None, half: bool) -> dict[str, Declared]:
    """The stored arrays of a weight."""
    if bits is None:
        return {name: Declared("BF16" if half and _is_matrix(s) else "F32", s.shape)}
    inner, outputs = s.shape[:-3:-1] if s.contracted == -1 else s.shape[-2:]
    packed, scales = packed_shapes(bits, inner, outputs)
    return {
        f"{name}.packed": Declared("U8" if bits == 4 else "I8", (*s.shape[:-2], *packed)),
        f"{name}.scales": Declared("F16", (*s.shape[:-2], *scales)),
    }


def _forget(array: np.ndarray) -> None:
    """Lets the system take back the pages of a memory-mapped array; written ones stay in its cache until they are on the disk."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _copy(ours: np.ndarray, target: np.ndarray, tensor: Stored) -> None:
    """Copies an array to the file, block by block."""
    for index in blocks(ours):
        part = ours[index]
        check_finite(tensor.path, tensor.name, part)
        # NumPy copies bfloat16 faster as integers.
        if part.dtype == target.dtype == ml_dtypes.bfloat16:
            target.view(np.uint16)[index] = part.view(np.uint16)
        else:
            target[index] = part
        _forget(ours)
        _forget(target)


def _quantize(ours: np.ndarray, packed: np.ndarray, scales: np.ndarray, transposed: bool, tensor: Stored) -> None:
    """Quantizes an array to the file, block by block."""
    outputs = ours.shape[-2 if transposed else -1]
    tiles = max(1, BLOCK // (ours.size // outputs) // TILE)
    for start in range(0, scales.shape[-3], tiles):
        these = slice(start * TILE, (start + tiles) * TILE)
        part = ours[..., these, :] if transposed else ours[..., these]
        check_finite(tensor.path, tensor.name, part)
        q = quantize(part, 4, transposed)
        packed[..., start : start + tiles, :, :, :, :], scales[..., start : start + tiles, :, :] = q.packed, q.scales
        _forget(ours)
        _forget(packed)


@dataclass(frozen=True)
class _Import:
    """An import that runs."""

    source: OpenWeights
    file: TensorFile
    # Bits of the weights that become quantized.
    bits: Mapping[str, int | None]

    def write_all(self, name: str, s: WeightSpec) -> None:
        """Writes a weight."""
        if name in self.source.derived:
            with self.file.open(name) as target:
                target[...] = self.source.derived[name]()
            return
        sources = self.source.table[name]
        if isinstance(sources, Source):
            self._write(name, s, sources, None)
            return
        for index, one in enumerate(sources):
            self._write(name, s, one, index)

    def _write(self, name: str, s: WeightSpec, source: Source, index: int | None) -> None:
        """Writes a weight, or the part of it at an index of its first dimension."""
        tensors, bits = [self.source.tensors[n] for n in source.names], self.bits[name]
        if bits is not None and isinstance(tensors[0], GgufTensor) and tensors[0].bits == bits:
            with self.file.open(f"{name}.packed", index) as packed, self.file.open(f"{name}.scales", index) as scales:
                tensors[0].write_quantized(packed, scales, source.part)
            return
        parts = [t.map()[source.part or ...] for t in tensors]
        ours = source.to_ours(*parts)
        if bits is not None:
            with self.file.open(f"{name}.packed", index) as packed, self.file.open(f"{name}.scales", index) as scales:
                _quantize(ours, packed, scales, s.contracted == -1, tensors[0])
            return
        with self.file.open(name, index) as target:
            _copy(ours, target, tensors[0])


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], object]]:
    """A function that is called with the number of bytes written."""
    if size < LARGE_BYTES:
        yield lambda count: None
        return
    with progress_bar() as progress:
        task = progress.add_task("import (MB)", total=size // 10**6)
        yield lambda count: progress.update(task, advance=count / 10**6)


def write_weights(path: Path, source: OpenWeights, weights: Weights | None) -> set[int]:
    """Writes ``weights.safetensors`` of a model folder; returns the bits of quantized weights.

    Raises ValueError for values that are not finite.
    """
    specs: Mapping[str, WeightSpec] = named(model.weights(source.c))
    bits = {name: _bits(source, name, s, weights) for name, s in specs.items()}
    half = (weights or source.dtype) != "float32"
    arrays = {name: _declare(name, s, bits[name], half) for name, s in specs.items()}
    declared = {stored: d for of_weight in arrays.values() for stored, d in of_weight.items()}
    with write_tensors(path, declared) as file, _progress(sum(d.nbytes for d in declared.values())) as advance:
        running = _Import(source, file, bits)
        for name, s in specs.items():
            running.write_all(name, s)
            advance(sum(d.nbytes for d in arrays[name].values()))
    return {b for b in bits.values() if b is not None}


def compute_dtype(weights: str) -> str:
    """Dtype of matmul operands of an imported model: that of the reference, which computes in the dtype of its weights."""
    return "float32" if weights == "float32" else "bfloat16"


def import_weights(source: OpenWeights, out: Path, weights: Weights | None = None) -> config.Model:
    """Writes ``weights.safetensors`` and ``model.json``. Returns the configuration.

    Without ``weights`` matrices keep the dtype of the files, or the bits where they are quantized as ours.
    """
    bits = write_weights(out / WEIGHTS, source, weights)
    chosen = weights or (f"int{min(bits)}" if bits else source.dtype)
    c = replace(source.c, compute_dtype=compute_dtype(chosen))
    name = source.path.name.removesuffix(".gguf")
    facts = {"name": name, "imported": source.model_type, "weights": chosen}
    write_config(out, c, facts)
    return c
