"""Imports open weights into a model folder, one tensor at a time: the memory needed does not depend on the size of the model.

    files of a family, memory-mapped  ── a block of a tensor: converted, transposed, quantized ──►  weights.safetensors, memory-mapped

Matrices become bfloat16, float32, or of the types in the table of quantized models (alhena/model/quantized/types.py); those that a GGUF
file holds in the types Q4_0 and Q8_0 keep their bits if nothing else is asked for. Vectors (norms, biases, scalars) are float32.
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
from alhena.model.families.gguf.file import GgufTensor
from alhena.model.families.open_weights import OpenWeights
from alhena.model.families.tensor_map import Source
from alhena.model.quantized.layout import GROUP, TILE, packed_shapes
from alhena.model.quantized.rounding import Bits, quantize
from alhena.model.quantized.types import FLOAT, TensorType, type_table
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


def _kept_bits(source: OpenWeights, name: str, s: WeightSpec) -> Bits | None:
    """Bits of a weight that all its tensors in the files are quantized to, as ours are."""
    if s.contracted is None or s.shape[s.contracted] % GROUP:
        return None
    sources = source.table[name]
    names = [n for one in ((sources,) if isinstance(sources, Source) else sources) for n in one.names]
    stored: set[Any] = {source.tensors[n].bits for n in names}
    return stored.pop() if len(stored) == 1 else None


def types_of(source: OpenWeights, weights: Weights | None, settings: Mapping[str, str]) -> dict[str, TensorType]:
    """The type of every weight; ``settings`` are those of a table (``type_table``), for weights of 4 bits.

    Values that the files hold in 4 bits stay as they are. Raises ValueError for settings that are wrong, or beside other weights.
    """
    tree = model.weights(source.c)
    kept = {name: f"int{bits}" for name, s in named(tree).items() if (bits := _kept_bits(source, name, s))}
    if weights == "int4":
        stay = {name: kind for name, kind in kept.items() if kind == "int4" and name not in settings}
        return type_table(tree, stay | {**settings})
    if settings:
        raise ValueError("types of single tensors belong to weights of 4 bits: --weights int4")
    return type_table(tree, {"*": FLOAT} | (kept if weights is None else {}))


def _declare(s: WeightSpec, entry: TensorType, half: bool) -> dict[str, Declared]:
    """The stored arrays of a weight; ``half``: floats are bfloat16 where nothing else is said."""
    name, bits = entry.name, entry.bits
    if bits is None:
        half = half or entry.type == "bfloat16"
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
    """Quantizes an array to the file, block by block, with the bits of the arrays ``packed``."""
    bits: Bits = 4 if packed.dtype == np.uint8 else 8
    outputs = ours.shape[-2 if transposed else -1]
    tiles = max(1, BLOCK // (ours.size // outputs) // TILE)
    for start in range(0, scales.shape[-3], tiles):
        these = slice(start * TILE, (start + tiles) * TILE)
        part = ours[..., these, :] if transposed else ours[..., these]
        check_finite(tensor.path, tensor.name, part)
        q = quantize(part, bits, transposed)
        packed[..., start : start + tiles, :, :, :, :], scales[..., start : start + tiles, :, :] = q.packed, q.scales
        _forget(ours)
        _forget(packed)


@dataclass(frozen=True)
class _Import:
    """An import that runs."""

    source: OpenWeights
    file: TensorFile
    types: Mapping[str, TensorType]

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
        tensors, bits = [self.source.tensors[n] for n in source.names], self.types[name].bits
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


def write_weights(path: Path, source: OpenWeights, types: Mapping[str, TensorType], half: bool) -> None:
    """Writes ``weights.safetensors`` of a model folder; ``half``: floats are bfloat16 where nothing else is said.

    Raises ValueError for values that are not finite.
    """
    specs: Mapping[str, WeightSpec] = named(model.weights(source.c))
    arrays = {name: _declare(s, types[name], half) for name, s in specs.items()}
    declared = {stored: d for of_weight in arrays.values() for stored, d in of_weight.items()}
    with write_tensors(path, declared) as file, _progress(sum(d.nbytes for d in declared.values())) as advance:
        running = _Import(source, file, types)
        for name, s in specs.items():
            running.write_all(name, s)
            advance(sum(d.nbytes for d in arrays[name].values()))


def compute_dtype(weights: str) -> str:
    """Dtype of matmul operands of an imported model: that of the reference, which computes in the dtype of its weights."""
    return "float32" if weights == "float32" else "bfloat16"


def import_weights(
    source: OpenWeights, out: Path, weights: Weights | None = None, types: Mapping[str, str] | None = None
) -> config.Model:
    """Writes ``weights.safetensors`` and ``model.json``. Returns the configuration.

    Without ``weights`` matrices keep the dtype of the files, or the bits where they are quantized as ours. ``types`` are settings of the
    table of types, for weights of 4 bits.
    """
    table = types_of(source, weights, types or {})
    dtype = source.dtype if weights in (None, "int4") else weights
    write_weights(out / WEIGHTS, source, table, half=dtype != "float32")
    bits = {entry.bits for entry in table.values() if entry.bits}
    chosen = weights or (f"int{min(bits)}" if bits else source.dtype)
    c = replace(source.c, compute_dtype=compute_dtype(chosen))
    name = source.path.name.removesuffix(".gguf")
    facts = {"name": name, "imported": source.model_type, "weights": chosen}
    write_config(out, c, facts)
    return c
