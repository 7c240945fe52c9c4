"""Reader of safetensors files: one file, or a folder in the layout of Hugging Face (one file, or shards and their index).

    stored = open_file(path)              ─► {"norm.weight": Stored}: names, shapes and dtypes; no values are read
    stored["norm.weight"].read()          ─► the array; only this tensor is in memory
    stored["norm.weight"].map()           ─► the array, memory-mapped: its pages are read when they are used

    tensors = Tensors(folder, ("", "model."), "norm.weight")
    tensors.read("norm.weight", (64,))    ─► float32 [64], shape checked
    tensors.finish()                      raises ValueError for tensors that were not read

The header of a file is checked against its size before anything is allocated. Pickles are never opened. Every file must be in the
folder itself, or be a link as the cache of the Hugging Face Hub makes them.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from alhena.schema import parsed, shown

# Called with a tensor's name and its expected shape.
Read = Callable[[str, tuple[int, ...]], np.ndarray]
DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
}
FLOATS = ("F32", "F16", "BF16")
ALIGNMENT = 64
LFS = b"version https://git-lfs"
INDEX, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
MAX_JSON_BYTES = 16 * 2**20
# Bits of the exponent: a number is not finite when all are set.
EXPONENTS = {
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
}
# Elements of an array that are worked on at once.
BLOCK = 2**22


def regular(path: Path) -> Path:
    """The path, if it is a regular file inside its model folder. Raises ValueError otherwise, and for a Git LFS pointer."""
    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.is_symlink():
        folder = path.parent.resolve()
        blobs, target = folder.parent.parent / "blobs", path.resolve()
        if not (target.is_relative_to(folder) or (folder.parent.name == "snapshots" and target.parent == blobs)):
            raise ValueError(f"{path}: a link to a file outside the folder; copy that file here")
    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{path}: a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`")
    return path


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook of the JSON parser. Raises ValueError for a duplicate key."""
    out = dict(pairs)
    if len(out) < len(pairs):
        duplicate = next(name for i, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:i]))
        raise ValueError(f"duplicate key {shown(duplicate)}")
    return out


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises ValueError that names the file."""
    if regular(path).stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; settings of at most {MAX_JSON_BYTES:,} are read")
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_json_object)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, not {shown(value)}")
    return value


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file, not read yet. ``dtype`` is its name in the file, ``offset`` where its values begin there."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def bits(self) -> int | None:
        """Bits of a matrix that is quantized here without a loss; else None."""
        return None

    def map(self) -> np.ndarray:
        """The values, memory-mapped and read-only. Raises ValueError when the file is too short."""
        if not self.nbytes:
            return np.empty(self.shape, DTYPES[self.dtype])
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        try:
            with open(self.path, "rb") as file:
                size = self.offset + self.nbytes - start
                view = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: {self.name} cannot be read ({error})") from None
        count = math.prod(self.shape)
        return np.frombuffer(view, DTYPES[self.dtype], count, self.offset - start).reshape(self.shape)

    def read(self) -> np.ndarray:
        """The values. Raises ValueError when they are not finite."""
        array = aligned(self.map())
        check_finite(self.path, self.name, array)
        return array


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes, where JAX's CPU client takes an array without another copy."""
    space = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    out = space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def blocks(array: np.ndarray, whole: int | None = None) -> Iterator[tuple[Any, ...]]:
    """Indices of the parts of an array, each of about BLOCK elements and near in memory. The dimension ``whole`` is not divided."""
    if array.size <= BLOCK or not array.ndim:
        yield (...,)
        return
    dimensions = [i for i in range(array.ndim) if array.shape[i] > 1 and (whole is None or i != whole % array.ndim)]
    along = max(dimensions, key=lambda i: abs(array.strides[i]), default=0)
    step = max(1, BLOCK * array.shape[along] // array.size)
    for start in range(0, array.shape[along], step):
        yield (*(slice(None),) * along, slice(start, start + step))


def is_finite(array: np.ndarray) -> bool:
    """Whether all values are finite. NumPy's own function is slow for bfloat16."""
    if array.dtype not in EXPONENTS:
        return True
    kind, mask = EXPONENTS[array.dtype]
    return not np.any((array.view(kind) & kind(mask)) == mask)


def check_finite(path: Path, name: str, array: np.ndarray) -> None:
    """Raises ValueError when values of a tensor are not finite. A scalar may be infinite: a bound of a clipped linear layer."""
    if not array.ndim:
        valid = not np.isnan(array.astype(np.float32))
    else:
        valid = all(is_finite(array[index]) for index in blocks(array))
    if not valid:
        raise ValueError(f"{path}: {name} holds values that are not finite: a damaged file?")


def _offsets(path: Path) -> dict[str, int]:
    """Where the values of each tensor begin in a file whose header the library has checked."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file. Raises ValueError that names the file when it is damaged or truncated."""
    regular(path)
    out = {}
    try:
        with safe_open(path, framework="numpy") as file:
            offsets = _offsets(path)
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                out[name] = Stored(path, name, tuple(part.get_shape()), str(part.get_dtype()), offsets[name])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from None
    for stored in out.values():
        if stored.dtype not in DTYPES:
            raise ValueError(f"{path}: {stored.name} is of dtype {stored.dtype}; {', '.join(DTYPES)} can be read")
    return out


def open_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of all shards. Raises ValueError for an index that does not describe the files beside it exactly."""
    index, single = folder / INDEX, folder / SINGLE_FILE
    if index.exists() and single.exists():
        raise ValueError(f"{folder}: both {SINGLE_FILE} and {INDEX} exist; keep the one that is the model")
    if not index.exists() and not single.exists() and not single.is_symlink():
        raise ValueError(f"{folder}: neither {SINGLE_FILE} nor {INDEX} exists")
    weight_map = (
        parsed(dict[str, str], read_settings(index).get("weight_map"), index, "weight_map") if index.exists() else {}
    )
    if any(Path(file).name != file or not file.endswith(".safetensors") for file in weight_map.values()):
        raise ValueError(f"{index}: a shard must be a .safetensors file in the same folder")
    files = sorted(set(weight_map.values())) if index.exists() else [SINGLE_FILE]
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in files:
            raise ValueError(f"{path}: not a part of the model; move it to another folder")
    out: dict[str, Stored] = {}
    for file in files:
        for name, stored in open_file(folder / file).items():
            if index.exists() and weight_map.get(name) != file:
                raise ValueError(
                    f"{folder / file}: it holds {name}, which the index has in {weight_map.get(name, 'no file')}"
                )
            out[name] = stored
    if missing := sorted(set(weight_map) - set(out)):
        raise ValueError(f"{folder / weight_map[missing[0]]}: it has no tensor {missing[0]}, which the index has there")
    return out


def checked(stored: Mapping[str, Stored], name: str, shape: tuple[int, ...], path: Path) -> Stored:
    """A tensor of a model in ``path``. Raises ValueError unless it exists, with this shape, in a float dtype."""
    tensor = stored.get(name)
    if tensor is None:
        raise ValueError(f"{path}: it has no tensor {name}")
    if tensor.shape != shape:
        raise ValueError(f"{tensor.path}: {tensor.name} is {shown(tensor.shape)}, expected {shape}")
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{tensor.path}: {tensor.name} is of dtype {tensor.dtype}: quantized weights cannot be read")
    return tensor


class Tensors:
    """The tensors of a folder, each of which has to be read or listed as unused.

    All names have the first of the prefixes with which the tensor ``known`` exists. Errors are ValueErrors that name the file.
    """

    def __init__(self, folder: Path, prefixes: Sequence[str], known: str) -> None:
        self.folder, self._stored = folder, open_folder(folder)
        prefix = next((p for p in prefixes if p + known in self._stored), None)
        if prefix is None:
            raise ValueError(
                f"{folder}: no tensor {known} with a prefix of {', '.join(map(repr, prefixes))}: another model?"
            )
        self.prefix, self._unread = prefix, dict(self._stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.nbytes for stored in self._stored.values())

    def check(self, name: str, shape: tuple[int, ...]) -> Stored:
        """A tensor by its name without the prefix. Raises ValueError unless it has this shape and can be read as float32."""
        return checked(self._stored, self.prefix + name, shape, self.folder)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The values of a tensor by its name without the prefix, as float32."""
        stored = self.check(name, shape)
        self._unread.pop(stored.name, None)
        return stored.read().astype(np.float32, copy=False)

    def finish(self, unused: Collection[str] = ()) -> None:
        """Raises ValueError for an unread tensor whose name begins with none of ``unused``."""
        for name, stored in sorted(self._unread.items()):
            if not name.startswith(tuple(unused)):
                raise ValueError(f"{stored.path}: unknown tensor {shown(name)}: this model has no such weight")

    def finish_part(self, unused: Collection[str] = ()) -> None:
        """:meth:`finish` for one part of a larger model, where other parts may have other prefixes."""
        others = [name for name in self._unread if self.prefix and not name.startswith(self.prefix)]
        self.finish([*others, *(self.prefix + name for name in unused)])
