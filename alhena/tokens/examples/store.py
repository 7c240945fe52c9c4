"""Stored Examples: memory-mapped Arrow IPC files with random access."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alhena.batch import Example
from alhena.files import atomic
from alhena.schema import shown
from alhena.shapes import Int

_DTYPES = {"weights": np.float32, "patches": np.uint8}
# Of frames; the metadata of a file names it where it is not the first. It is ``frame_dtype`` of the audio encoder's configuration.
_FRAME_DTYPES = ("float16", "float32")
# Fields whose shape behind the first axis is stored in the metadata of the file.
_SHAPED = ("patches", "frames")
# Of the Examples of one record batch.
BATCH_BYTES = 64 << 20
NAMES = tuple(field.name for field in fields(Example))


def _dtypes(frame_dtype: str) -> dict[str, Any]:
    """Dtypes of the fields that are not int32. Raises ValueError for frames of another dtype."""
    if frame_dtype not in _FRAME_DTYPES:
        raise ValueError(f"frames of dtype {shown(frame_dtype)}; {' and '.join(_FRAME_DTYPES)} can be stored")
    return _DTYPES | {"frames": np.dtype(frame_dtype)}


class ExampleWriter:
    """Writes Examples to one file: ``with ExampleWriter(path, inner_shapes) as writer: writer.add(example)``.

    The file gets its name, flushed to disk, when the block ends without an error; otherwise it is removed.
    ``inner_shapes`` gives the shapes of patches and frames behind their first axis, ``frame_dtype`` the dtype of frames. At most
    ``max_examples`` Examples or ``max_bytes`` are buffered in memory: they become one record batch of the file.
    """

    def __init__(
        self,
        path: Path,
        inner_shapes: dict[str, tuple[int, ...]],
        max_examples: int = 256,
        max_bytes: int = BATCH_BYTES,
        frame_dtype: str = "float16",
    ) -> None:
        self.path, self._max_examples, self._max_bytes = path, max_examples, max_bytes
        self._metadata = {name: ",".join(map(str, inner_shapes[name])) for name in _SHAPED}
        self._metadata |= {} if frame_dtype == _FRAME_DTYPES[0] else {"frame_dtype": frame_dtype}
        self._dtypes = _dtypes(frame_dtype)
        self._buffer: list[dict[str, bytes]] = []
        self.examples, self.tokens, self.buffered_bytes = 0, 0, 0

    def __enter__(self) -> ExampleWriter:
        self._schema = pa.schema([(name, pa.large_binary()) for name in NAMES], metadata=self._metadata)
        with ExitStack() as stack:
            partial = stack.enter_context(atomic(self.path))
            sink = stack.enter_context(pa.OSFile(str(partial), "wb"))
            self._writer = stack.enter_context(pa.ipc.new_file(sink, self._schema))
            stack.push(lambda kind, *error: self.flush() if kind is None else None)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(self, example: Example) -> None:
        row = {n: np.ascontiguousarray(getattr(example, n), self._dtypes.get(n, np.int32)).tobytes() for n in NAMES}
        self._buffer.append(row)
        self.buffered_bytes += sum(map(len, row.values()))
        self.examples, self.tokens = self.examples + 1, self.tokens + len(example.tokens)
        if len(self._buffer) == self._max_examples or self.buffered_bytes >= self._max_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered Examples as a record batch."""
        if self._buffer:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._buffer, self._schema))
        self._buffer, self.buffered_bytes = [], 0


def write_examples(
    path: Path, examples: Iterable[Example], inner_shapes: dict[str, tuple[int, ...]], frame_dtype: str = "float16"
) -> int:
    """Writes Examples to one file and returns their number."""
    with ExampleWriter(path, inner_shapes, frame_dtype=frame_dtype) as writer:
        for example in examples:
            writer.add(example)
    return writer.examples


class Examples:
    """Random access to the Examples of one file; arrays are views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise ValueError(f"{self.path}: not a file of encoded examples ({error}); run alhena tokenize") from None
        if tuple(reader.schema.names) != NAMES:
            raise ValueError(
                f"{self.path}: examples with the fields {', '.join(reader.schema.names)}, not {', '.join(NAMES)}; remove "
                f"{self.path.parent} and run alhena tokenize"
            )
        metadata = {name.decode(): value.decode() for name, value in reader.schema.metadata.items()}
        self._inner = {name: tuple(map(int, metadata[name].split(","))) for name in _SHAPED}
        self._dtypes = _dtypes(metadata.get("frame_dtype", _FRAME_DTYPES[0]))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[number], int(index - self._starts[number])
        values: dict[str, Any] = {}
        for name, column in zip(NAMES, batch.columns, strict=True):
            array = np.frombuffer(column[row].as_buffer(), self._dtypes.get(name, np.int32))
            values[name] = array.reshape(-1, *self._shape(name)) if self._shape(name) else array
        return Example(**values)

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a field behind its first axis."""
        return self._inner.get(name, (2,) if name == "patch_positions" else ())

    def lengths(self, name: str) -> Int[np.ndarray, " examples"]:
        """Length of the first axis of a field in every example; no example is read for it."""
        item_bytes = np.dtype(self._dtypes.get(name, np.int32)).itemsize * math.prod(self._shape(name))
        sizes = [pc.binary_length(batch.column(name)).to_numpy() // item_bytes for batch in self._batches]
        return np.concatenate([np.zeros(0, np.int64), *sizes])

    def sizes(self) -> Int[np.ndarray, "examples 3"]:
        """Tokens, patches and audio chunks of each example."""
        return np.stack([self.lengths(name) for name in ("tokens", "patches", "frames")], 1)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._open()
