"""``alhena import`` and ``alhena export``: over their own output only, never over other files."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from alhena.cli.weights import Check, Export, Import
from alhena.files import FILES, LOCK, read_json, write_json
from alhena.model import config, model
from alhena.model.families.export_weights import write
from alhena.model.weights import load_model
from alhena.tokens.encoders import load_encoder
from alhena.tokens.hf_tokenizer import HfTokenizer
from tests.tokens.small_hf_tokenizer import small_tokenizer

GEMMA = Path(__file__).parents[1] / "model" / "golden" / "gemma"


@pytest.fixture
def source(tmp_path) -> Path:
    """Open weights with a tokenizer."""
    folder = tmp_path / "gemma"
    shutil.copytree(GEMMA, folder)
    (folder / "golden.npz").unlink()
    (folder / "generation_config.json").write_text('{"top_k": 64}')
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def test_import_and_export_can_be_repeated(source, tmp_path, capsys):
    model, exported = tmp_path / "model", tmp_path / "exported"
    for _ in range(2):
        Import(source, model)()
        Export(model, out=exported)()
    assert names(model) == [FILES, "model.json", "source", "weights.safetensors"]
    assert names(exported) == ["config.json", FILES, "generation_config.json", "model.safetensors"]
    assert "held an earlier output" in capsys.readouterr().out
    assert names(tmp_path / "model.old-1") == names(model)
    assert names(tmp_path / "exported.old-1") == names(exported)
    Check(model)()
    load_model(model)


def test_an_interrupted_import_is_repeated_and_never_loaded(source, tmp_path):
    model = tmp_path / "model"
    Import(source, model)()
    write_json(model / FILES, {"written_by": "import"})
    with pytest.raises(ValueError, match=r"files\.json: it has no field 'files'"):
        Export(model, out=tmp_path / "exported")()
    Import(source, model)()
    assert "weights.safetensors" in read_json(model / FILES)["files"]
    assert not (tmp_path / "model.old-1").exists()


@pytest.mark.parametrize("command", ["import", "export"])
def test_other_files_are_refused_by_name(source, tmp_path, command):
    model, out = tmp_path / "model", tmp_path / "out"
    Import(source, model)()
    run = Import(source, out) if command == "import" else Export(model, out=out)
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
    Import(source, model)()
    with pytest.raises(ValueError, match="not written by `alhena export`"):
        Export(model, out=model)()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="a file, not a folder"):
        Import(source, file)()


def test_the_tokenizer_and_the_prompt_format_are_imported_and_exported(tmp_path):
    data = small_tokenizer()
    vocabulary = HfTokenizer.from_bytes(data).size
    c = config.Model(vocabulary, -1, -1, config.Decoder(8, 2, 2, 4, 8, window=4, global_every=2), None, None)
    random = np.random.default_rng(0)
    specs = model.weights(c)
    params = jax.tree.map(lambda s: random.normal(size=s.shape).astype(np.float32), specs)
    source, ours, exported = tmp_path / "hf", tmp_path / "ours", tmp_path / "exported"
    source.mkdir()
    write(source, params, c)
    (source / "tokenizer.json").write_bytes(data)
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 13], "top_k": 7}')
    Import(source, ours)()
    encoder = load_encoder(ours)
    encoder.check(load_model(ours)[1])
    assert (encoder.settings.format, encoder.settings.top_k, encoder.end_tokens) == ("gemma3", 7, (1, 13))
    Export(ours, out=exported)()
    assert HfTokenizer.load(exported / "tokenizer.json").size == vocabulary
    assert read_json(exported / "generation_config.json") == {"eos_token_id": [1, 13], "top_k": 7}
