"""Parquet files row by row, in bounded memory and past damage: rows that cannot be read are counted, the rest is returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Decoded bytes of one row, and of a batch of rows.
MAX_ROW_BYTES = 256 << 20
MAX_BATCH_BYTES = 64 << 20
# Values of one column in one row group: lists of nulls cost nothing in the file and much in memory.
MAX_VALUES = 64 << 20
BATCH_ROWS = 64
# What pyarrow raises for a damaged file: names in it may not be UTF-8, or name a missing column.
DAMAGED = (pa.ArrowException, OSError, MemoryError, ValueError, KeyError, OverflowError)


@dataclass(frozen=True)
class Row:
    """One row; ``number`` counts from 1 over the whole file."""

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Lost:
    """Rows that could not be read: the number of the first, how many, and why."""

    number: int
    count: int
    reason: str
    detail: str


def _columns(metadata: pq.FileMetaData) -> Iterator[tuple[int, pq.ColumnChunkMetaData]]:
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            yield group, metadata.row_group(group).column(column)


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens a file for reading in a stream. Raises ValueError that names the file."""
    if not file.is_file():
        raise ValueError(f"{file}: no regular file; write it again or leave it out")
    try:
        metadata = pq.read_metadata(file)
        # Dictionary columns stay encoded: a value of 8 MB that 200 rows share is held once.
        shared = {c.path_in_schema for _, c in _columns(metadata) if any("DICTIONARY" in e for e in c.encodings)}
        texts = {c.path_in_schema for _, c in _columns(metadata) if c.physical_type == "BYTE_ARRAY"}
        return pq.ParquetFile(
            file,
            metadata=metadata,
            read_dictionary=sorted(shared & texts),
            buffer_size=1 << 20,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except DAMAGED as error:
        raise ValueError(f"{file}: not a readable Parquet file ({error}); write it again or leave it out") from None


def decoded_bytes(array: pa.Array) -> int:
    """Bytes of an array with its dictionaries expanded."""
    if pa.types.is_dictionary(array.type):
        return array.type.index_type.bit_width // 8 * len(array) + _shared_bytes(array)
    if pa.types.is_struct(array.type):
        return sum(decoded_bytes(child) for child in array.flatten())
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return 8 * len(array) + decoded_bytes(array.flatten())
    return array.nbytes


def _shared_bytes(array: pa.DictionaryArray) -> int:
    """Bytes of the values of a dictionary array, each counted as often as it is referenced."""
    values = array.dictionary
    if len(values) == 0:
        return 0
    lengths = pc.binary_length(values) if _is_binary(values.type) else pa.scalar(values.nbytes // len(values))
    if isinstance(lengths, pa.Scalar):
        return len(array) * lengths.as_py()
    selected = lengths.cast(pa.int64()).take(array.indices)
    return pc.sum(selected).as_py() or 0


def _is_binary(kind: pa.DataType) -> bool:
    tests = pa.types.is_binary, pa.types.is_string, pa.types.is_large_binary, pa.types.is_large_string
    return any(test(kind) for test in tests)


def _row(batch: pa.RecordBatch, index: int, number: int, large: bool) -> Row | Lost:
    one = batch.slice(index, 1)
    try:
        size = sum(decoded_bytes(column) for column in one.columns) if large else 0
        if size > MAX_ROW_BYTES:
            return Lost(number, 1, "record too large", f"{size:,} bytes; at most {MAX_ROW_BYTES:,} are read")
        return Row(number, one.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Lost(number, 1, "not UTF-8", str(error))
    except DAMAGED as error:
        return Lost(number, 1, "not readable", f"{type(error).__name__}: {error}")


def _batch_sizes(group: pq.RowGroupMetaData) -> tuple[int, ...]:
    """Rows of a batch, in the first attempt and the second: many only where the decoded row group is small."""
    columns = [group.column(i) for i in range(group.num_columns)]
    small = sum(column.total_uncompressed_size for column in columns) <= MAX_BATCH_BYTES
    # Delta encoding of byte arrays stores shared prefixes once: the size in the file is no bound.
    delta = any("DELTA_BYTE_ARRAY" in column.encodings for column in columns)
    return (BATCH_ROWS, 1) if small and not delta else (1,)


def _group(file: pq.ParquetFile, index: int, first: int, columns: Sequence[str] | None = None) -> Iterator[Row | Lost]:
    """Rows of one row group. A batch that fails is read again row by row, so only rows after the damage are lost."""
    group = file.metadata.row_group(index)
    values = max((group.column(i).num_values for i in range(group.num_columns)), default=0)
    yielded, problem = 0, f"{values:,} values in one row group; at most {MAX_VALUES:,} are read"
    for size in _batch_sizes(group) if values <= MAX_VALUES else ():
        offset, problem = 0, "the row group ends early"
        try:
            for batch in file.iter_batches(size, row_groups=[index], columns=columns, use_threads=False):
                large = sum(decoded_bytes(column) for column in batch.columns) > MAX_ROW_BYTES
                for i in range(max(yielded - offset, 0), len(batch)):
                    yield _row(batch, i, first + yielded, large)
                    yielded += 1
                offset += len(batch)
            break
        except DAMAGED as error:
            problem = str(error) or type(error).__name__
    if yielded < group.num_rows:
        yield Lost(first + yielded, group.num_rows - yielded, "damaged Parquet", problem)


def read_rows(file: Path, columns: Sequence[str] | None = None) -> Iterator[Row | Lost]:
    """Streams the rows of a Parquet file; rows lost to damage come as :class:`Lost`. Raises ValueError when it does not open.

    ``columns`` are those of a row; None: all.
    """
    with open_parquet(file) as opened:
        first = 1
        for index in range(opened.metadata.num_row_groups):
            yield from _group(opened, index, first, columns)
            first += max(opened.metadata.row_group(index).num_rows, 0)


def binary_columns(file: Path) -> tuple[list[str], list[str]]:
    """The columns of a file without and with bytes in them, such as encoded images."""
    with open_parquet(file) as opened:
        fields = list(opened.schema_arrow)
    return [f.name for f in fields if not _holds_bytes(f.type)], [f.name for f in fields if _holds_bytes(f.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or any(map(_holds_bytes, inner))


def read_column(file: Path, column: str, rows: frozenset[int]) -> Iterator[tuple[int, Any]]:
    """The values of one column at these rows, counted from 1, or :class:`Lost`; only their row groups are read, up to the last of them."""
    with open_parquet(file) as opened:
        first = 1
        for index in range(opened.metadata.num_row_groups):
            end = first + max(opened.metadata.row_group(index).num_rows, 0)
            left = {row for row in rows if first <= row < end}
            for row in _group(opened, index, first, [column]) if left else ():
                numbers = left & set(range(row.number, row.number + (row.count if isinstance(row, Lost) else 1)))
                for number in sorted(numbers):
                    yield number, row if isinstance(row, Lost) else row.values[column]
                left -= numbers
                if not left:
                    break
            first = end
