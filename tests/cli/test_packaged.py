"""The model that comes with the package: which model answers, and what a folder of 4-bit weights holds."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from alhena.cli import arguments
from alhena.cli.arguments import PACKAGED, served_folder
from alhena.compress.quantize import quantize_model
from alhena.content import Content, Text
from alhena.model import model
from alhena.model.quantized.layout import Int8
from alhena.model.storage.folders import load_model
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Engine
from alhena.tuning import write_model_folder
from tests.conftest import make_tiny, random_audio, random_image
from tests.serve.conftest import write_tiny

ROOT = Path(__file__).parents[2]
# Of the folder in the package, in bytes.
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("run") / "models" / "assistant", encoder, make_tiny(encoder))


def test_the_packaged_model_answers_where_no_folder_is_named(folder, monkeypatch, capsys):
    monkeypatch.setattr(arguments, "PACKAGED", folder)
    assert served_folder(None, None) == folder
    assert "the small model of this package" in capsys.readouterr().err
    assert served_folder(folder, None) == served_folder(folder.parents[1], None) == folder
    said = capsys.readouterr().err
    assert f"{folder} answers" in said and "of full precision; `alhena compress" in said


def test_a_run_answers_with_its_quantized_model(folder, capsys):
    params, c = load_model(folder)
    quantized = quantize_model(params, model.weights(c))
    write_model_folder(quantized, c, folder, folder.parent / "nano", {"name": "nano"})
    try:
        assert served_folder(folder.parents[1], None) == folder.parent / "nano"
        assert "full precision" not in capsys.readouterr().err
    finally:
        shutil.rmtree(folder.parent / "nano")


def test_a_name_alone_and_a_package_without_a_model_are_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name the run folder too"):
        served_folder(None, "assistant")
    monkeypatch.setattr(arguments, "PACKAGED", tmp_path)
    with pytest.raises(ValueError, match="has no model in it"):
        served_folder(None, None)


def test_encoders_of_16_bits_answer_as_those_of_32_rounded(folder, tmp_path):
    params, c = load_model(folder)
    small = quantize_model(params, model.weights(c), {"vision": "bfloat16", "audio": "bfloat16"})
    assert isinstance(small.embedding, Int8)
    assert {leaf.dtype for leaf in jax.tree.leaves((small.vision, small.audio))} == {jnp.dtype("bfloat16")}
    write_model_folder(small, c, folder, tmp_path / "small", {"name": "small"})
    rounded = replace(small, vision=_float32(small.vision), audio=_float32(small.audio))
    write_model_folder(rounded, c, folder, tmp_path / "rounded", {"name": "rounded"})
    prompt = [Content("user", (random_image(1), random_audio(2), Text("What colour is the circle?")))]
    answers = [
        Engine.load(tmp_path / name).generate([prompt], Sampling(max_tokens=4))[0].content
        for name in ("small", "rounded")
    ]
    assert answers[0] == answers[1]


def _float32(tree):
    return jax.tree.map(lambda w: w.astype(jnp.float32), tree)


def test_the_model_of_the_package_is_part_of_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "nano/*" in settings["package-data"]["alhena"]
    assert not [path for path in PACKAGED.rglob("*") if path.parent != PACKAGED]
    assert sum(path.stat().st_size for path in PACKAGED.rglob("*")) <= MAX_BYTES
