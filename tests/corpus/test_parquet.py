"""Parquet: rows before and after damage are read, memory is bounded; row groups and part files are limited in bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alhena.content import Content, Document, Image, Text
from alhena.corpus.curate import Curate, curate
from alhena.corpus.readers import Dropped, read
from alhena.documents import read_documents, size_of, write_documents
from alhena.parquet import Lost, Row, decoded_bytes, read_rows


def page(number: int, size: int = 200) -> Document:
    words = f"Page {number} of a book holds these words, and a picture that is not compressed. " * (size // 80 + 1)
    return Document((Content("document", (Text(words[:size]),)),), f"d{number}", "pages")


def damage(file: Path, group: int, column: str) -> None:
    """Flips every bit of the second half of a column of one row group."""
    metadata = pq.read_metadata(file)
    columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
    chunk = next(c for c in columns if c.path_in_schema.endswith(column))
    start, size = chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size
    data = bytearray(file.read_bytes())
    for i in range(start + size // 2, start + size):
        data[i] ^= 0xFF
    file.write_bytes(data)


def test_row_groups_are_limited_by_bytes_and_by_count(tmp_path):
    documents = [page(i, 4000) for i in range(20)]
    assert write_documents(tmp_path / "a.parquet", documents, bytes_per_group=10_000) == 20
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2] * 10
    write_documents(tmp_path / "b.parquet", documents, rows_per_group=8)
    metadata = pq.read_metadata(tmp_path / "b.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [8, 8, 4]
    assert list(read_documents(tmp_path / "b.parquet")) == list(read_documents(tmp_path / "a.parquet")) == documents


def test_part_files_are_limited_by_bytes(tmp_path):
    documents = [page(i, 4000) for i in range(10)]
    write_documents(tmp_path / "in.parquet", documents)
    curate(tmp_path / "in.parquet", tmp_path / "out", Curate(bytes_per_file=3 * size_of(documents[0])))
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [3, 3, 3, 1]


def test_a_damaged_row_group_is_counted_and_the_rest_is_kept(tmp_path):
    for name in "ab":
        write_documents(tmp_path / f"{name}.parquet", [page(i + 100 * ord(name)) for i in range(90)], rows_per_group=30)
    damage(tmp_path / "a.parquet", 1, "text")
    report = curate(tmp_path, tmp_path / "out")[tmp_path.name]
    assert report["read"] == 180
    assert report["kept"] == {"pages": 150}
    assert report["dropped"] == {"damaged Parquet": {"?": 30}}
    assert report["examples"]["damaged Parquet"][0].startswith("a.parquet:31-60")
    with pytest.raises(ValueError, match=r"a\.parquet, row 31"):
        list(read_documents(tmp_path))


def test_rows_before_the_damage_are_kept(tmp_path):
    """Pages of one column that come before the damaged one are good, even within one batch of rows."""
    texts = [f"{i} " + "word " * 40 for i in range(50)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", use_dictionary=False, data_page_size=1000, write_batch_size=5, compression="none", write_page_checksum=True)  # fmt: skip
    damage(tmp_path / "x.parquet", 0, "text")
    *rows, lost = read_rows(tmp_path / "x.parquet")
    assert isinstance(lost, Lost)
    assert len(rows) + lost.count == 50
    assert 20 <= len(rows) < 50
    assert [row.values["text"] for row in rows if isinstance(row, Row)] == texts[: len(rows)]


def test_a_file_that_does_not_open_is_dropped_alone(tmp_path):
    write_documents(tmp_path / "a.parquet", [page(1)])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "c.parquet").mkdir()
    kept, *dropped = read(tmp_path)
    assert isinstance(kept, Document)
    assert [d.record for d in dropped if isinstance(d, Dropped)] == ["b.parquet", "c.parquet"]
    with pytest.raises(ValueError, match=r"b.parquet: not a readable Parquet file"):
        list(read(tmp_path / "b.parquet"))


def test_rows_with_invalid_utf8_and_rows_too_large_are_dropped_alone(tmp_path, monkeypatch):
    texts = pa.array([b"Good words stand in this row.", b"\xff\xfe", b"Good words stand here too."], pa.binary())
    pq.write_table(pa.table({"text": texts.view(pa.string())}), tmp_path / "x.parquet")
    first, bad, last = read(tmp_path / "x.parquet")
    assert isinstance(first, Document) and isinstance(last, Document)
    assert isinstance(bad, Dropped) and bad.record == "x.parquet:2" and bad.reason == "not UTF-8"
    monkeypatch.setattr("alhena.parquet.MAX_ROW_BYTES", 1000)
    pq.write_table(pa.table({"text": ["a" * 900, "b" * 1100, "c" * 90]}), tmp_path / "y.parquet")
    assert [type(item) for item in read(tmp_path / "y.parquet")] == [Document, Dropped, Document]


def test_a_dictionary_value_counts_once_per_row():
    shared = pa.array([["x" * 100] * 3, None, ["y"]]).cast(pa.list_(pa.string()))
    plain = pa.array([b"x" * 50, b"", None])
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 0, None, 1]), pa.array(["z" * 70, "w"]))
    assert decoded_bytes(shared) >= 301
    assert decoded_bytes(plain) >= 50
    assert 141 <= decoded_bytes(dictionary) <= 141 + 8 * 4


# Peak memory by VmHWM: ru_maxrss of a child begins with the memory of the process that started it.
BOMB = """
import re, sys
from pathlib import Path
from alhena.corpus.curate import curate
try:
    curate(Path(sys.argv[1]), Path(sys.argv[2]))
except ValueError as error:
    print(error)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
"""


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_parquet_bomb_is_read_in_bounded_memory(tmp_path, dictionary):
    """120 rows of 8 MB, a few kB in the file."""
    rows = [
        {"id": str(i), "image": {"bytes": bytes(8 << 20), "path": "a.png"}, "question": "What?", "answer": "x"}
        for i in range(4)
    ]
    table = pa.Table.from_pylist(rows)
    with pq.ParquetWriter(tmp_path / "bomb.parquet", table.schema, compression="zstd", use_dictionary=dictionary) as w:
        w.write_table(pa.concat_tables([table] * 30), row_group_size=1000)
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 20
    command = [sys.executable, "-c", BOMB, str(tmp_path / "bomb.parquet"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "none of its 120 documents was kept" in done.stdout, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) < 900
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dropped"] == {"image does not decode": {"mine": 120}}


def test_a_document_too_large_for_a_row_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr("alhena.corpus.records.MAX_DOCUMENT_BYTES", 5000)
    (tmp_path / "a.png").write_bytes(bytes(3000))
    one = {"parts": [{"image": "a.png"}]}
    two = {"parts": [{"image": "a.png"}, {"image": "a.png"}]}
    (tmp_path / "manifest.jsonl").write_text(f"{json.dumps(one)}\n{json.dumps(two)}\n")
    small, large = read(tmp_path)
    assert isinstance(small, Document) and isinstance(next(small.parts), Image)
    assert isinstance(large, Dropped) and large.reason == "record too large"
