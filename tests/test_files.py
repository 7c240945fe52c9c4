"""Files: damaged logs of JSON lines, and folders identified by their content."""

from __future__ import annotations

import json

import pytest

from alhena import files
from alhena.files import check_sealed, content_fingerprint, read_lines, seal_folder, truncate_log, write_atomically
from alhena.recovery.fingerprints import read_fingerprints
from alhena.recovery.goodput import goodput
from alhena.train.monitoring.compare import find_runs

LEDGER = {"at": 1.5, "what": "steps", "step": 3}
METRICS = {
    "kind": "train", "step": 3, "loss_by_modality": {"text": 1.0}, "output_norm_by_modality": {"text": 1.0},
    "gradient_norm": 1.0,
}  # fmt: skip
PRINT = {"step": 3, **dict.fromkeys(("batch", "loss", "gradient_norm", "parameters", "moments"), "0" * 8)}
READERS = {
    "ledger.jsonl": (LEDGER, goodput),
    "metrics.jsonl": (METRICS, lambda folder: find_runs([folder])),
    "fingerprints.jsonl": (PRINT, read_fingerprints),
}
WRONG = [
    "[1]",
    "7",
    "null",
    '"text"',
    "{}",
    '{"step": "three"}',
    '{"step": 3}',
    '{"step": true, "at": 1, "what": "x"}',
    "{",
]


@pytest.mark.parametrize("line", [*WRONG, "\udcff", "[" * 5000])
@pytest.mark.parametrize("name", READERS)
def test_an_invalid_record_is_named_by_its_line(tmp_path, name, line):
    good, read = READERS[name]
    (tmp_path / "training.json").write_text('{"title": "t", "parameters": 1, "steps": 3, "warmup": 0}')
    whole = json.dumps(good)
    (tmp_path / name).write_text(f"{whole}\n{whole}\n", encoding="utf-8")
    read(tmp_path)
    (tmp_path / name).write_bytes(f"{whole}\n{line}\n{whole}\n".encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"{name}, line 2: .*delete the line"):
        read(tmp_path)


@pytest.mark.parametrize("field", ["loss_by_modality", "output_norm_by_modality", "gradient_norm", "skipped"])
@pytest.mark.parametrize("value", ["many", {"text": "much"}, None, []])
def test_a_log_line_with_a_value_of_another_type_is_named(tmp_path, field, value):
    (tmp_path / "training.json").write_text('{"title": "t", "parameters": 1, "steps": 3, "warmup": 0}')
    (tmp_path / "metrics.jsonl").write_text(json.dumps(METRICS | {field: value}) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: "):
        find_runs([tmp_path])


def test_an_incomplete_last_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(path, step=int) == [{"step": 1}, {"step": 2}]
    truncate_log(path, 1)
    assert path.read_text() == '{"step": 1}\n'
    path.write_text('{"step": 1}\n{"steps": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: it has no field 'step'"):
        truncate_log(path, 1)


def test_a_fingerprint_depends_on_names_and_content(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "x", "1234")
    before = content_fingerprint(tmp_path)
    write_atomically(tmp_path / "a" / "b" / "x", "1235")
    other = content_fingerprint(tmp_path)
    (tmp_path / "a" / "b" / "x").rename(tmp_path / "a" / "b" / "y")
    assert len({before, other, content_fingerprint(tmp_path)}) == 3


def test_a_model_folder_lists_its_files_and_is_checked_when_read(tmp_path):
    write_atomically(tmp_path / "weights.safetensors", b"12345678")
    check_sealed(tmp_path)
    seal_folder(tmp_path, ["weights.safetensors"])
    check_sealed(tmp_path)
    write_atomically(tmp_path / "weights.safetensors", b"12345679")
    with pytest.raises(ValueError, match=r"weights\.safetensors: its content has changed"):
        check_sealed(tmp_path)


def test_hashing_many_bytes_shows_progress(tmp_path, monkeypatch, capsys):
    write_atomically(tmp_path / "weights.safetensors", b"1" * 3_000_000)
    seal_folder(tmp_path, ["weights.safetensors"])
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(files, "_LARGE_BYTES", 1_000_000)
    check_sealed(tmp_path)
    assert capsys.readouterr().out.startswith("check files (MB): 3 of 3")
