"""A GGUF file that is written one tensor at a time: the header with all tensors first, then each tensor at its offset.

tensors = {"output_norm.weight": TensorOut(Q.F32, (640,), parts), …}
write_header(path, "gemma3", metadata, tensors)
write_tensor(open_gguf(path), "output_norm.weight", tensors["output_norm.weight"])
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from gguf import GGUFWriter

from alhena.model.families.export_weights import Part
from alhena.model.families.gguf.file import GgufFile, GgufTensor, Q
from alhena.model.storage.tensors import check_finite

Floats = Literal["f32", "bf16", "f16"]
FLOAT_KINDS = {"f32": Q.F32, "bf16": Q.BF16, "f16": Q.F16}
DTYPES = {Q.F32: np.dtype(np.float32), Q.BF16: np.dtype(ml_dtypes.bfloat16), Q.F16: np.dtype(np.float16)}
# llama.cpp computes with these in float32.
ALWAYS_FLOAT32 = ("ffn_gate_inp.weight",)


@dataclass(frozen=True)
class TensorOut:
    """A tensor that will be written: its type, its shape in NumPy's order, and where its values come from."""

    kind: Q
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    # Which of the tensors that a part becomes.
    at: int = 0

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """The shape of the array in the file: bytes for a quantized tensor."""
        header = GgufTensor(Path(), "", self.shape, "F32", 0, self.kind)
        return self.shape if self.kind in DTYPES else (*self.shape[:-1], header.nbytes // int(np.prod(self.shape[:-1])))


def kind_of(name: str, shape: tuple[int, ...], of_tensor: Sequence[Part], floats: Floats | None) -> Q:
    """The type of a tensor: that of its weights, and of matrices of floats the one that was chosen."""
    bits = {part.bits for part in of_tensor}
    if bits <= {4, 8} and len(bits) == 1:
        return Q.Q4_0 if bits == {4} else Q.Q8_0
    if len(shape) == 1 or name.endswith(ALWAYS_FLOAT32):
        return Q.F32
    if floats is None:
        return Q.BF16 if all(part.is_half for part in of_tensor) else Q.F32
    return FLOAT_KINDS[floats]


def write_header(path: Path, name: str, values: Mapping[str, Any], tensors: Mapping[str, TensorOut]) -> None:
    """Writes the header, and reserves the rest of the file. Raises OSError when the disk is too full."""
    writer = GGUFWriter(path, name)
    for key, value in values.items():
        add_value(writer, key, value)
    for tensor, t in tensors.items():
        quantized = t.kind not in DTYPES
        dtype = np.dtype(np.uint8) if quantized else DTYPES[t.kind]
        size = int(np.prod(t.byte_shape)) * dtype.itemsize
        writer.add_tensor_info(tensor, t.byte_shape, dtype, size, raw_dtype=t.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    ends = sum(-(-info.nbytes // 32) * 32 for info in writer.tensors[0].values())
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, start + ends)
        else:
            file.truncate(start + ends)


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds a value of the metadata, of the type by which llama.cpp reads it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def mapped(file: GgufFile, name: str, t: TensorOut) -> np.ndarray:
    """The tensor in the file, mapped for writing."""
    dtype = DTYPES.get(t.kind, np.dtype(np.uint8))
    raw = np.memmap(file.path, np.uint8, "r+", file.tensors[name].offset, (file.tensors[name].nbytes,))
    return raw.view(dtype).reshape(t.byte_shape)


def write_tensor(file: GgufFile, name: str, t: TensorOut, plus_one: bool = False) -> None:
    """Writes a tensor, with ``plus_one`` its values with one added. Raises ValueError for values that its type does not hold."""
    target = mapped(file, name, t)
    for part in t.parts:
        if t.kind not in DTYPES:
            blocks = part.blocks()
            target[part.source.part or ...] = blocks.reshape(*blocks.shape[:-2], -1)
            continue
        tensor = part.tensors()[t.at]
        if plus_one:
            tensor = tensor.astype(np.float32) + np.float32(1)
        with np.errstate(over="ignore"):
            target[part.source.part or ...] = tensor.reshape(-1) if tensor.ndim == 0 else tensor
    if t.kind in DTYPES:
        check_finite(file.path, name, target)
