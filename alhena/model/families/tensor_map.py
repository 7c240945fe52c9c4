"""Tables of tensor names: where each of our arrays is in a file of a family, and the conversion in both directions.

    {"norm": Source(("post_layernorm.weight",), (E,), …),                an array
     "layers.up": (Source(("encoder.layers.0.mlp.fc1.weight",), …), …)}  a stacked array: one source for each index of its first dimension

Import, export and the accounting of every tensor derive from one table. A tensor that is split here (gate and up of the experts) is in
several sources with different ``part``. A linear map is ``[out, in]`` in the files and ``[in, out]``
here; a convolution ``[out, in, height, width]`` is ``[height·width·in, out]`` here; a scale of one is stored here as zero. Conversions
keep the dtype of the tensors, but for scales, which become float32: bfloat16 would round the offset from one. Where they can they
return views, so that a tensor in a memory-mapped file is converted without being in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from alhena.model.storage.tensors import Read
from alhena.shapes import Float


@dataclass(frozen=True)
class Unused:
    """A tensor that files have and the model does not read: its shape is checked, its values are not."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """The tensors of a file that make up one of our arrays, or one layer of a stacked array. All of them have the same shape."""

    names: tuple[str, ...]
    # Of each tensor.
    shape: tuple[int, ...]
    # Called with one argument for each tensor, in order.
    to_ours: Callable[..., np.ndarray]
    # Returns the tensors, in order; their dtype is that of the argument.
    to_theirs: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    # Index of the part of the tensor that is ours, where other sources have the other parts; both functions take and return this part.
    part: tuple[slice, ...] | None = None

    def read(self, read: Read) -> np.ndarray:
        """Our array."""
        return self.to_ours(*(read(name, self.shape)[self.part or ...] for name in self.names))


# Our dotted name (``spec.named``), and the source of the array, or one for each index of its first dimension.
Table = Mapping[str, Source | tuple[Source, ...]]


def _as_it_is(array: np.ndarray) -> np.ndarray:
    return array


def _alone(array: np.ndarray) -> tuple[np.ndarray, ...]:
    return (array,)


def _less_one(w: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    return w.astype(np.float32) - np.float32(1)


def _plus_one(scale: Float[np.ndarray, " D"]) -> tuple[Float[np.ndarray, " D"], ...]:
    return (scale.astype(np.float32) + np.float32(1),)


def _in_float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def _concatenated(*vectors: Float[np.ndarray, " each"]) -> Float[np.ndarray, " all"]:
    return np.concatenate(vectors)


def _parts(parts: int, vector: Float[np.ndarray, " all"]) -> tuple[Float[np.ndarray, " each"], ...]:
    return tuple(np.split(vector, parts))


def _joined(*matrices: Float[np.ndarray, "O I"]) -> Float[np.ndarray, "I outputs"]:
    # One matrix stays a view.
    return (np.concatenate(matrices, 0) if matrices[1:] else matrices[0]).T


def _split(parts: int, matrix: Float[np.ndarray, "I outputs"]) -> tuple[Float[np.ndarray, "O I"], ...]:
    return tuple(np.split(matrix.T, parts))


def _kernel(w: Float[np.ndarray, "O I side side"]) -> Float[np.ndarray, "inputs O"]:
    return w.transpose(2, 3, 1, 0).reshape(-1, len(w))


def _convolution(shape: tuple[int, ...], kernel: Float[np.ndarray, "inputs O"]) -> tuple[np.ndarray, ...]:
    outer, inner, height, width = shape
    return (kernel.reshape(height, width, inner, outer).transpose(3, 2, 0, 1),)


def _taps(w: Float[np.ndarray, "E 1 taps"]) -> Float[np.ndarray, "taps E"]:
    return w[:, 0].T


def _depthwise(taps: Float[np.ndarray, "taps E"]) -> tuple[Float[np.ndarray, "E 1 taps"], ...]:
    return (taps.T[:, None],)


def plain(name: str, *shape: int) -> Source:
    """A tensor that is stored here as it is there."""
    return Source((name,), shape, _as_it_is, _alone)


def scale(name: str, width: int) -> Source:
    """The scale of a norm that multiplies by it; here an offset from one, in float32."""
    return Source((name,), (width,), _less_one, _plus_one)


def offset(name: str, width: int) -> Source:
    """The scale of a norm that is an offset from one in the file too (Gemma 1 to 3); in float32 here, since one is added to it."""
    return Source((name,), (width,), _in_float32, _alone)


def joined(*names: str, each: int) -> Source:
    """Vectors of ``each`` numbers, concatenated."""
    return Source(names, (each,), _concatenated, partial(_parts, len(names)))


def matrix(*names: str, inner: int, outer: int) -> Source:
    """One linear map, or several concatenated along their outputs: ``outer`` in all."""
    return Source(names, (outer // len(names), inner), _joined, partial(_split, len(names)))


def convolution(name: str, outer: int, inner: int, side: int) -> Source:
    """A convolution of ``side`` × ``side``."""
    shape = (outer, inner, side, side)
    return Source((name,), shape, _kernel, partial(_convolution, shape))


def depthwise(name: str, width: int, taps: int) -> Source:
    """A depthwise convolution along time, ``[width, 1, taps]`` in the file and ``[taps, width]`` here."""
    return Source((name,), (width, 1, taps), _taps, _depthwise)


def of_layers(pattern: str, layers: int, sources: Mapping[str, Source]) -> dict[str, tuple[Source, ...]]:
    """Sources of stacked arrays from those of one layer; ``pattern`` has ``{}`` where a layer's names have its number.

    >>> of_layers("layers.{}.", 2, {"up": matrix("mlp.weight", inner=4, outer=8)})["up"][1].names
    ('layers.1.mlp.weight',)
    """
    return {
        field: tuple(replace(s, names=tuple(pattern.format(i) + name for name in s.names)) for i in range(layers))
        for field, s in sources.items()
    }


def under(prefix: str, table: Table, ours: str = "") -> dict[str, Source | tuple[Source, ...]]:
    """The table with a prefix before the tensors' names, and one before our names."""

    def renamed(s: Source) -> Source:
        return replace(s, names=tuple(prefix + name for name in s.names))

    return {ours + field: renamed(s) if isinstance(s, Source) else tuple(map(renamed, s)) for field, s in table.items()}


def sources(table: Table) -> Iterator[Source]:
    """All sources of a table."""
    for of_array in table.values():
        yield from (of_array,) if isinstance(of_array, Source) else of_array


def names(table: Table) -> Iterator[str]:
    """Names of all tensors of a table."""
    return (name for source in sources(table) for name in source.names)


def read_arrays(table: Table, read: Read) -> dict[str, np.ndarray]:
    """All arrays of a table, by our names."""
    return {
        field: s.read(read) if isinstance(s, Source) else np.stack([source.read(read) for source in s])
        for field, s in table.items()
    }


def tensors(table: Table, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of the tensors of a file, one layer at a time, from our arrays."""
    unfinished: dict[str, np.ndarray] = {}
    filled: dict[str, int] = {}
    for field, sources in table.items():
        layers = [(sources, arrays[field])] if isinstance(sources, Source) else zip(sources, arrays[field], strict=True)
        for source, array in layers:
            for name, tensor in zip(source.names, source.to_theirs(array), strict=True):
                if source.part is None:
                    yield name, tensor
                    continue
                whole = unfinished.setdefault(name, np.empty(source.shape, tensor.dtype))
                whole[source.part] = tensor
                filled[name] = filled.get(name, 0) + tensor.size
                if filled[name] == whole.size:
                    yield name, unfinished.pop(name)
