"""Examples at rest: Arrow IPC files, memory-mapped, any row in microseconds and any tool can open them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alhena.tokens.batch import Example

_DTYPES = {"weights": np.float32, "patches": np.uint8, "frames": np.float16}
_WIDTHS = ("patches", "frames")  # fields whose inner shape is kept in the file's metadata
NAMES = tuple(field.name for field in fields(Example))


def write_examples(path: Path, examples: Iterable[Example], inner: dict[str, tuple[int, ...]], rows: int = 256) -> int:
    """Writes Examples (atomically) and returns their number. ``inner`` gives the shapes behind the first axis of patches and frames."""
    metadata = {name: ",".join(map(str, inner[name])) for name in _WIDTHS}
    schema = pa.schema([(name, pa.large_binary()) for name in NAMES], metadata=metadata)
    partial, count = path.with_name(path.name + ".partial"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        buffer: list[dict[str, bytes]] = []
        for example in examples:
            buffer.append(
                {n: np.ascontiguousarray(getattr(example, n), _DTYPES.get(n, np.int32)).tobytes() for n in NAMES}
            )
            count += 1
            if len(buffer) == rows:
                writer.write_batch(pa.RecordBatch.from_pylist(buffer, schema))
                buffer = []
        if buffer:
            writer.write_batch(pa.RecordBatch.from_pylist(buffer, schema))
    partial.replace(path)
    return count


class Examples:
    """Random access to the Examples of one file; arrays are views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise ValueError(f"{self.path}: not a file of encoded examples ({error}); run alhena tokenise") from None
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
            shape = self._inner.get(name, (2,) if name == "patch_positions" else ())
            values[name] = array.reshape(-1, *shape) if shape else array
        return Example(**values)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._open()
