"""Examples at rest: Arrow IPC files, memory-mapped, any row in microseconds and any tool can open them."""

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
from alhena.shapes import Int

_DTYPES = {"weights": np.float32, "patches": np.uint8, "frames": np.float16}
_WIDTHS = ("patches", "frames")  # fields whose inner shape is kept in the file's metadata
BATCH_BYTES = 64 << 20  # of Examples in one record batch
NAMES = tuple(field.name for field in fields(Example))


class ExampleWriter:
    """Writes Examples to one file as they come: ``with Writer(path, inner) as writer: writer.add(example)``.

    The file gets its name, flushed to disk, when the block ends without an error; otherwise nothing is left of it.
    ``inner`` gives the shapes behind the first axis of patches and frames. At most ``rows`` Examples or ``most_bytes`` wait
    in memory: they are one record batch of the file.
    """

    def __init__(
        self, path: Path, inner: dict[str, tuple[int, ...]], rows: int = 256, most_bytes: int = BATCH_BYTES
    ) -> None:
        self.path, self._rows, self._most_bytes = path, rows, most_bytes
        self._metadata = {name: ",".join(map(str, inner[name])) for name in _WIDTHS}
        self._buffer: list[dict[str, bytes]] = []
        self.examples, self.tokens, self.waiting = 0, 0, 0

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
        row = {n: np.ascontiguousarray(getattr(example, n), _DTYPES.get(n, np.int32)).tobytes() for n in NAMES}
        self._buffer.append(row)
        self.waiting += sum(map(len, row.values()))
        self.examples, self.tokens = self.examples + 1, self.tokens + len(example.tokens)
        if len(self._buffer) == self._rows or self.waiting >= self._most_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what waits in memory as a record batch."""
        if self._buffer:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._buffer, self._schema))
        self._buffer, self.waiting = [], 0


def write_examples(path: Path, examples: Iterable[Example], inner: dict[str, tuple[int, ...]]) -> int:
    """Writes Examples to one file and returns their number."""
    with ExampleWriter(path, inner) as writer:
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
        self._inner = {n: tuple(map(int, reader.schema.metadata[n.encode()].decode().split(","))) for n in _WIDTHS}
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[place], int(index - self._starts[place])
        values: dict[str, Any] = {}
        for name, column in zip(NAMES, batch.columns, strict=True):
            array = np.frombuffer(column[row].as_buffer(), _DTYPES.get(name, np.int32))
            values[name] = array.reshape(-1, *self._shape(name)) if self._shape(name) else array
        return Example(**values)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Behind a field's first axis."""
        return self._inner.get(name, (2,) if name == "patch_positions" else ())

    def lengths(self, name: str) -> Int[np.ndarray, " examples"]:
        """Of a field's first axis, in every example; no example is read for it."""
        one = np.dtype(_DTYPES.get(name, np.int32)).itemsize * math.prod(self._shape(name))
        sizes = [pc.binary_length(batch.column(name)).to_numpy() // one for batch in self._batches]
        return np.concatenate([np.zeros(0, np.int64), *sizes])

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._open()
