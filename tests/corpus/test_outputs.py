"""Outputs of curate: its own files are replaced together, files of other programs never."""

from __future__ import annotations

import errno
import json
import shutil
import time

import pytest

from alhena.cli.build import Curate as Command
from alhena.corpus.curate import Curate, curate
from alhena.corpus.filters import inspect
from alhena.corpus.outputs import Outputs
from alhena.documents import read_documents, write_documents
from alhena.stages import locked
from tests.corpus.test_curate import chat


@pytest.fixture
def source(tmp_path):
    write_documents(tmp_path / "one.parquet", [chat("one", "1")])
    write_documents(tmp_path / "two.parquet", [chat("two", "2"), chat("three", "3")])
    return tmp_path


def questions(folder):
    return [document.contents[0].parts[0].text for document in read_documents(folder)]


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00007.parquet", "mine.parquet"])
def test_files_of_other_programs_are_refused_by_name(source, name):
    out = source / "out"
    write_documents(out / name, [chat("precious", "yes")])
    with pytest.raises(ValueError, match=rf"{name}: not written by alhena curate"):
        curate(source / "one.parquet", out)
    assert questions(out) == ["precious"]
    curate(source / "one.parquet", source / "fresh")
    shutil.copy(out / name, source / "fresh" / name)
    with pytest.raises(ValueError, match=rf"{name}: not written by alhena curate"):
        curate(source / "one.parquet", source / "fresh")
    assert "precious" in questions(source / "fresh")


def test_a_split_folder_is_refused_before_anything_is_written(source):
    raw, out = source / "raw", source / "out"
    for split in ("train", "test"):
        write_documents(raw / f"{split}.parquet", [chat(split, "x")])
    write_documents(out / "train" / "part-00000.parquet", [chat("precious", "yes")])
    with pytest.raises(ValueError, match="not written by alhena curate"):
        curate(raw, out)
    assert sorted(path.name for path in out.rglob("*.parquet")) == ["part-00000.parquet"]


def test_own_files_are_replaced_and_other_files_remain(source):
    out = source / "out"
    curate(source / "two.parquet", out)
    (out / "notes.txt").write_text("mine")
    curate(source / "one.parquet", out)
    assert questions(out) == ["one"]
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "part-00000.parquet", "report.json"]


def test_a_report_of_another_program_is_refused(source):
    out = source / "out"
    out.mkdir()
    for content in ('{"my": "report"}', "no JSON"):
        (out / "report.json").write_text(content)
        with pytest.raises(ValueError, match=r"report\.json"):
            curate(source / "one.parquet", out)
        assert (out / "report.json").read_text() == content
    with pytest.raises(ValueError, match="a file"):
        curate(source / "one.parquet", source / "two.parquet")


@pytest.mark.parametrize("moved", [0, 1])
def test_a_replacement_that_was_killed_is_reported_and_completed(source, moved):
    out, new = source / "out", source / "new"
    curate(source / "one.parquet", out)
    curate(source / "two.parquet", new)
    partial = out / ".curate.partial"
    partial.mkdir()
    shutil.move(new / "report.json", partial / "report.json")
    shutil.move(new / "part-00000.parquet", (out if moved else partial) / "part-00000.parquet")
    with pytest.raises(ValueError, match="run it again"):
        list(read_documents(out))
    Outputs(out).clear()
    assert questions(out) == ["two", "three"]
    curate(source / "one.parquet", out)
    assert questions(out) == ["one"]
    assert not partial.exists()


def test_partial_files_of_a_killed_run_are_removed_and_other_files_are_not(source):
    partial = source / "out" / ".curate.partial"
    partial.mkdir(parents=True)
    (partial / "part-00000.parquet.partial").write_bytes(b"half")
    curate(source / "one.parquet", source / "out")
    assert not partial.exists()
    partial.mkdir()
    (partial / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"diary\.txt"):
        curate(source / "one.parquet", source / "out")
    assert (partial / "diary.txt").exists()


def test_duplicates_in_held_out_sets_are_kept_and_counted(source):
    raw = source / "raw"
    repeated = [chat("one", "1"), chat("one", "1"), chat("two", "2")]
    for split in ("train", "test", "validation"):
        documents = [chat(f"{split} {i}", "x") for i in (0, 0, 1)]
        write_documents(raw / f"{split}.parquet", documents)
    reports = curate(raw, source / "out")
    assert {split: (report["repeated"], sum(report["kept"].values())) for split, report in reports.items()} == {
        "test": (1, 3),
        "validation": (1, 3),
        "train": (0, 2),
    }
    write_documents(source / "held.parquet", repeated)
    (report,) = curate(source / "held.parquet", source / "held", Curate(held_out=True)).values()
    assert report["repeated"] == 1
    assert json.loads((source / "held" / "report.json").read_text())["kept"] == {"s": 3}


def test_train_is_decontaminated_of_test_and_of_the_evaluation_sets(source):
    raw = source / "raw"
    write_documents(raw / "test.parquet", [chat("test", "x")])
    write_documents(raw / "train.parquet", [chat("test", "x"), chat("one", "1"), chat("kept", "x")])
    curate(source / "one.parquet", source / "evaluation")
    curate(raw, source / "out", evaluation=[source / "evaluation"])
    assert questions(source / "out" / "train") == ["kept"]


def test_two_runs_into_one_folder_exclude_each_other(source):
    out = source / "out"
    with locked(out), pytest.raises(ValueError, match=r"out: another command writes there"):
        Command(source / "one.parquet", out)()
    assert not list(out.glob("*.parquet"))
    Command(source / "one.parquet", out)()
    Command(source / "two.parquet", out)()
    assert questions(out) == ["two", "three"]


def test_an_error_stops_the_decoding_threads(source, monkeypatch):
    """Records that wait to be decoded are dropped when writing fails."""
    inspected = []

    def slow(document):
        inspected.append(document)
        time.sleep(0.02)
        return inspect(document)

    def full(self, documents, max_documents, max_bytes):
        next(documents)
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("alhena.corpus.curate.inspect", slow)
    monkeypatch.setattr(Outputs, "write", full)
    write_documents(source / "many.parquet", [chat(str(i), "x") for i in range(300)])
    with pytest.raises(OSError, match="is full"):
        curate(source / "many.parquet", source / "out")
    assert len(inspected) < 100
