"""Imports open weights into a model folder, one tensor at a time: the memory needed does not depend on the size of the model.

    files of a family, memory-mapped  ── a block of a tensor: converted, transposed, quantized ──►  weights.safetensors, memory-mapped

Matrices become bfloat16, float32 or 4-bit; vectors (norms, biases, scalars) are float32.
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
from alhena.model.int4 import quantize
from alhena.model.spec import WeightSpec, named
from alhena.model.tensor_writer import Declared, TensorFile, write_tensors
from alhena.model.tensors import Stored, blocks, check_finite
from alhena.model.weights import WEIGHTS, write_config
from alhena.progress import progress_bar

Weights = Literal["bfloat16", "float32", "int4"]
# Values along the contracted dimension of a 4-bit weight that share a scale.
GROUP = 32
# A quicker import shows no progress.
LARGE_BYTES = 2**30


def _is_matrix(s: WeightSpec) -> bool:
    """Whether a weight is more than one number or one vector for each layer."""
    return len(s.shape) - (s.axes[:1] == ("layers",)) > 1


def _is_int4(s: WeightSpec, weights: Weights) -> bool:
    """Whether a weight is quantized: it may be, and its inputs are whole groups."""
    return weights == "int4" and s.contracted is not None and s.shape[s.contracted] % GROUP == 0


def _declare(name: str, s: WeightSpec, weights: Weights) -> dict[str, Declared]:
    """The stored arrays of a weight."""
    if not _is_int4(s, weights):
        half = weights != "float32" and _is_matrix(s)
        return {name: Declared("BF16" if half else "F32", s.shape)}
    shape = s.shape if s.contracted == -2 else (*s.shape[:-2], s.shape[-1], s.shape[-2])
    *layers, inner, outer = shape
    return {
        f"{name}.packed": Declared("U8", (*layers, inner // 2, outer)),
        f"{name}.scales": Declared("F32", (*layers, inner // GROUP, outer)),
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
    for index in blocks(ours, whole=-1 if transposed else -2):
        part = ours[index]
        check_finite(tensor.path, tensor.name, part)
        q = quantize(part, GROUP, transposed)
        # A transposed weight [rows, inputs] is stored with its inputs first.
        target = (slice(None), *index) if transposed else index
        packed[target], scales[target] = q.packed, q.scales
        _forget(ours)
        _forget(packed)


@dataclass(frozen=True)
class _Import:
    """An import that runs."""

    source: OpenWeights
    file: TensorFile
    weights: Weights

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
        tensors = [self.source.tensors[n] for n in source.names]
        if _is_int4(s, self.weights) and isinstance(tensors[0], GgufTensor) and tensors[0].is_int4():
            with self.file.open(f"{name}.packed", index) as packed, self.file.open(f"{name}.scales", index) as scales:
                tensors[0].write_int4(packed, scales)
            return
        parts = [t.map()[source.part or ...] for t in tensors]
        ours = source.to_ours(*parts)
        if _is_int4(s, self.weights):
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


def write_weights(path: Path, source: OpenWeights, weights: Weights) -> None:
    """Writes ``weights.safetensors`` of a model folder. Raises ValueError for values that are not finite."""
    specs: Mapping[str, WeightSpec] = named(model.weights(source.c))
    declared = {stored: d for name, s in specs.items() for stored, d in _declare(name, s, weights).items()}
    with write_tensors(path, declared) as file, _progress(sum(d.nbytes for d in declared.values())) as advance:
        running = _Import(source, file, weights)
        for name, s in specs.items():
            running.write_all(name, s)
            advance(sum(d.nbytes for d in _declare(name, s, weights).values()))


def compute_dtype(weights: Weights) -> str:
    """Dtype of matmul operands of an imported model: that of the reference, which computes in the dtype of its weights."""
    return "float32" if weights == "float32" else "bfloat16"


def import_weights(source: OpenWeights, out: Path, weights: Weights | None = None) -> config.Model:
    """Writes ``weights.safetensors`` and ``model.json``; without ``weights`` matrices keep the dtype of the files. Returns the configuration."""
    chosen: Weights = weights or source.dtype
    c = replace(source.c, compute_dtype=compute_dtype(chosen))
    write_weights(out / WEIGHTS, source, chosen)
    name = source.path.name.removesuffix(".gguf")
    facts = {"name": name, "imported": source.model_type, "weights": chosen}
    write_config(out, c, facts)
    return c
