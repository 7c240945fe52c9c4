"""Splits of a folder: ``train.parquet`` and its like, or shards as Hugging Face names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from alhena.corpus.curate import curate
from alhena.corpus.readers import split_files
from alhena.documents import read_documents, write_documents
from tests.corpus.test_curate import chat


def write(folder: Path, *names: str) -> None:
    """A document with its own question in each file."""
    for name in names:
        write_documents(folder / name, [chat(f"What is in {name}?", "x")])


def questions(folder: Path) -> list[str]:
    return [document.contents[0].parts[0].text for document in read_documents(folder)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train.parquet"], ["test.parquet"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["test-00000-of-00001.parquet"]),
        (["train-00000-of-00001-0123456789abcdef.parquet"], ["test.parquet"]),
    ],
)
def test_splits_are_curated_one_by_one(tmp_path, train, test):
    write(tmp_path / "raw", *train, *test, "validation-00000-of-00001.parquet")
    write_documents(tmp_path / "raw" / test[0], [chat("in both", "x"), chat("test only", "x")])
    write_documents(tmp_path / "raw" / train[0], [chat("in both", "x"), chat("train only", "x")])
    reports = curate(tmp_path / "raw", tmp_path / "out")
    assert list(reports) == ["test", "validation", "train"]
    assert questions(tmp_path / "out" / "test") == ["in both", "test only"]
    assert questions(tmp_path / "out" / "train") == ["train only", *(f"What is in {name}?" for name in train[1:])]
    assert reports["train"]["dropped"] == {"in an evaluation set": {"s": 1}}


def test_missing_shards_are_reported(tmp_path):
    write(tmp_path / "raw", "train-00000-of-00005.parquet", "train-00003-of-00005.parquet")
    report = curate(tmp_path / "raw", tmp_path / "out")["train"]
    assert (report["read"], report["kept"]) == (3, {"s": 2})
    assert report["dropped"] == {"file missing": {"?": 1}}
    assert "2 of 5 files" in report["examples"]["file missing"][0]


def test_records_beside_the_splits_and_mixed_exports_are_refused(tmp_path):
    write(tmp_path, "train-00000-of-00001.parquet", "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet: lies beside the splits \(train\)"):
        split_files(tmp_path)
    (tmp_path / "other.parquet").rename(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="more than one export"):
        split_files(tmp_path)


def test_a_folder_without_the_split_train_has_no_splits(tmp_path):
    write(tmp_path, "test.parquet", "part-00000.parquet")
    assert split_files(tmp_path) == {}
