"""All stages on the smoke recipe, and the command line on top of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alhena.files import read_json
from alhena.pipeline import run_pipeline
from recipes import starter
from tests.conftest import random_image

ROOT = Path(__file__).parents[2]


def alhena(*arguments: object, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alhena.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "200"}, **more
    )


def test_every_stage_writes_its_output(smoke):
    for path in (
        "raw/samples.png", "raw/test.parquet", "curated/train/report.json", "image_tokenizer/reconstructions.png", "tokens/coverage.png",
        "tokens/train/scenes.arrow", "pretrain/metrics.jsonl", "tune/metrics.jsonl", "models/base/weights.safetensors",
        "pretrain/losses.png", "tune/losses.png",
        "models/assistant/model.json", "models/nano/text.model", "compress/report.json", "report/report.html", "report/report.png",
    ):  # fmt: skip
        assert (smoke / path).exists(), path
    sizes = read_json(smoke / "compress" / "report.json")["bytes"]
    assert sizes["nano"] < 0.6 * sizes["assistant"]
    assert list((smoke / "pretrain" / "tensorboard").iterdir())


def test_finished_stages_are_skipped(smoke):
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    run_pipeline(starter.smoke(), smoke)
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()} == before


def test_own_documents_are_curated_tuned_on_evaluated_and_answered(smoke, tmp_path):
    raw = tmp_path / "mine"
    raw.mkdir()
    for i in range(6):
        (raw / f"{i}.png").write_bytes(random_image(i).data)
    line = lambda i: json.dumps({"image": f"{i}.png", "question": "What is this?", "answer": "noise"})  # noqa: E731
    (raw / "manifest.jsonl").write_text("\n".join([*map(line, range(6)), "{broken"]) + "\n")
    done = alhena("curate", raw, "--out", tmp_path / "curated")
    assert done.returncode == 0, done.stderr
    assert "not JSON" in done.stdout
    more = ("--recipe", "starter:smoke")
    tuned = alhena(
        "tune", smoke, *more, "--data", tmp_path / "curated", "--name", "mine", "--steps", 25, "--learning-rate", 0.02
    )
    assert tuned.returncode == 0, tuned.stderr
    done = alhena("evaluate", smoke, *more, "--data", tmp_path / "curated", "--name", "mine")
    assert done.returncode == 0, done.stderr
    # Six times the same answer is soon learned.
    assert read_json(smoke / "held_out" / "mine" / "results.json")["exact_match"] == 100
    answer = alhena("chat", smoke, "--name", "mine", "--ask", f"What is this? {raw / '0.png'}")
    assert answer.stdout.strip() == "noise"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--recpie", "x"), "--recipe"),
        (("pretrain", "--recipe", "nothing"), "there is no such recipe"),
        (("curate", "absent", "--out", "x"), "nothing to read"),
        (("chat", "absent"), "it has no models yet"),
        (("evaluate", "absent", "--data", "x"), "it has no models yet"),
        (("bake",), "bake"),
    ],
)
def test_invalid_arguments_get_one_clear_message(arguments, words, tmp_path):
    done = alhena(*arguments)
    assert done.returncode != 0
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_model_with_a_changed_file_is_refused_by_name(smoke, tmp_path):
    shutil.copytree(smoke / "models" / "assistant", tmp_path / "m")
    (tmp_path / "m" / "weights.safetensors").write_bytes(b"0")
    done = alhena("chat", tmp_path / "m", "--ask", "hi")
    assert done.returncode == 1
    assert "weights.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
