"""``alhena import`` and ``alhena export``: over their own output only, never over other files."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

from alhena.cli.weights import Check, Export, Import
from alhena.files import FILES, LOCK, read_json, write_json
from alhena.model import config, model
from alhena.model.families.export_weights import write
from alhena.model.storage.weights import load_model
from alhena.tokens.encoders import load_encoder
from alhena.tokens.text.hf_tokenizer import HfTokenizer
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


def gemma_folder(tmp_path: Path) -> Path:
    """An imported model of Gemma 3's kind, with a tokenizer."""
    data = small_tokenizer()
    vocabulary = HfTokenizer.from_bytes(data).size
    decoder = config.Decoder(32, 2, 2, 32, 64, window=4, global_every=2, local_rope_base=5000.0)
    c = config.Model(vocabulary, -1, -1, decoder, None, None)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda s: random.normal(size=s.shape).astype(np.float32), model.weights(c))
    (source := tmp_path / "hf").mkdir()
    write(source, params, c)
    (source / "tokenizer.json").write_bytes(data)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    Import(source, tmp_path / "ours")()
    return tmp_path / "ours"


def test_a_gguf_file_is_imported_again_as_the_same_model(tmp_path, capsys):
    ours, file, again = gemma_folder(tmp_path), tmp_path / "out" / "model.gguf", tmp_path / "again"
    Export(ours, to="gguf", out=file)()
    assert capsys.readouterr().out.endswith(f"gemma3 → {file}\n") and [p.name for p in file.parent.iterdir()] == [
        "model.gguf"
    ]
    Import(file, again)()
    (params, c), (expected, expected_c) = load_model(again), load_model(ours)
    assert c == expected_c
    # The offsets of norms from one are rounded in the file; the model adds the one again.
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(
            *((np.asarray(w) if w.ndim > 2 else np.float32(1) + np.asarray(w)) for w in (a, b))
        )
    encoders = load_encoder(again), load_encoder(ours)
    for text in ("the lambs  \n\n<h1>the</h1>", "<bos><start_of_turn>é漢👍"):
        assert encoders[0].tokenizer.encode(text) == encoders[1].tokenizer.encode(text)
    assert encoders[0].settings.controls == encoders[1].settings.controls
    with pytest.raises(ValueError, match=r"model\.gguf: it exists; delete it"):
        Export(ours, to="gguf", out=file)()
    with pytest.raises(ValueError, match="--floats belongs to --to gguf"):
        Export(ours, out=tmp_path / "other", floats="f16")()


def test_the_packaged_model_is_exported_with_its_encoders_beside_it(tmp_path, capsys):
    nano, file = Path(__file__).parents[2] / "alhena" / "nano", tmp_path / "nano.gguf"
    Export(nano, to="gguf", out=file)()
    assert f"encoders → {tmp_path / 'nano-encoders'}\ngemma3 → {file}" in capsys.readouterr().out
    settings, (params, c) = read_json(tmp_path / "nano-encoders" / "config.json"), load_model(nano)
    assert (settings["width"], settings["image_token"], settings["audio_token"]) == (256, c.image_token, c.audio_token)
    assert settings["vision"]["layers"] == c.vision.layers and settings["audio"]["mels"] == c.audio.mels
    with safe_open(tmp_path / "nano-encoders" / "model.safetensors", framework="numpy") as stored:
        names = set(stored.keys())
        np.testing.assert_array_equal(stored.get_tensor("vision.norm"), params.vision.norm)
    assert {name.partition(".")[0] for name in names} == {"vision", "audio"}
    Import(file, tmp_path / "again")()
    assert "weights alone" in capsys.readouterr().out
    again, _ = load_model(tmp_path / "again")
    np.testing.assert_array_equal(again.layers.gate.packed, params.layers.gate.packed)
    np.testing.assert_array_equal(again.layers.gate.scales, params.layers.gate.scales)
