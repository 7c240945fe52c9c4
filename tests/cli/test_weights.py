"""``alhena import`` and ``alhena export``: over their own output only, never over other files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alhena.cli.weights import Check, Export, Import
from alhena.files import FILES, LOCK, read_json, write_json
from alhena.model.weights import load_model

GEMMA = Path(__file__).parents[1] / "model" / "golden" / "gemma"


@pytest.fixture
def source(tmp_path) -> Path:
    """Open weights with a tokenizer."""
    folder = tmp_path / "gemma"
    shutil.copytree(GEMMA, folder)
    (folder / "golden.npz").unlink()
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def test_import_and_export_can_be_repeated(source, tmp_path, capsys):
    model, exported = tmp_path / "model", tmp_path / "exported"
    for _ in range(2):
        Import(source, "gemma", model)()
        Export(model, out=exported)()
    assert names(model) == [FILES, "model.json", "text.model", "weights.safetensors"]
    assert names(exported) == ["config.json", FILES, "model.safetensors", "tokenizer.model"]
    assert "held an earlier output" in capsys.readouterr().out
    assert names(tmp_path / "model.old-1") == names(model)
    assert names(tmp_path / "exported.old-1") == names(exported)
    Check(model)()
    load_model(model)


def test_an_interrupted_import_is_repeated_and_never_loaded(source, tmp_path):
    model = tmp_path / "model"
    Import(source, "gemma", model)()
    write_json(model / FILES, {"written_by": "import"})
    with pytest.raises(ValueError, match=r"files\.json: it has no field 'files'"):
        Export(model, out=tmp_path / "exported")()
    Import(source, "gemma", model)()
    assert "weights.safetensors" in read_json(model / FILES)["files"]
    assert not (tmp_path / "model.old-1").exists()


@pytest.mark.parametrize("command", ["import", "export"])
def test_other_files_are_refused_by_name(source, tmp_path, command):
    model, out = tmp_path / "model", tmp_path / "out"
    Import(source, "gemma", model)()
    run = Import(source, "gemma", out) if command == "import" else Export(model, out=out)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"thesis\.txt: not written by `alhena {command}`; move the files"):
        run()
    assert names(out) == ["thesis.txt"]
    (out / "thesis.txt").unlink()
    run()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt: not written by"):
        run()
    (out / "notes.txt").unlink()
    weights = next(out.glob("*.safetensors"))
    weights.write_bytes(b"retrained")
    with pytest.raises(ValueError, match=r"safetensors: 9 bytes, "):
        run()
    assert weights.read_bytes() == b"retrained"


def test_the_output_of_another_command_is_refused(source, tmp_path):
    model = tmp_path / "model"
    Import(source, "gemma", model)()
    with pytest.raises(ValueError, match="not written by `alhena export`"):
        Export(model, out=model)()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="a file, not a folder"):
        Import(source, "gemma", file)()
