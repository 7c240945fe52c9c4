"""Tuning on the user's documents: fingerprint of data, base model and settings; reserved names; refusals before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from alhena.cli.arguments import model_folder
from alhena.cli.measuring import Evaluate
from alhena.cli.tuning import Tune
from alhena.cli.weights import Check
from alhena.compress.quantize import quantize_model
from alhena.content import Content, Document, Text
from alhena.documents import write_documents
from alhena.files import read_json, seal_folder, write_atomically
from alhena.model import config, image_tokenizer, model
from alhena.model.storage.weights import save_model
from alhena.own_data import tuning_stage
from alhena.stages import Stage, run_stage
from recipes import starter

RECIPE = "starter:smoke"


def write_model(folder: Path, encoder, params, c) -> None:
    encoder.save(folder)
    images = config.ImageTokenizer(structure=(4, 4), color=(2, 2), width=16)
    image_tokenizer.save(folder, image_tokenizer.init(jax.random.key(0), images), images)
    save_model(folder, params, c, {"name": folder.name, "parameters": 1})
    seal_folder(folder, [path.name for path in folder.iterdir()])


@pytest.fixture
def run(tmp_path, encoder, tiny) -> Path:
    """A run folder with two small random models; beside it two folders of curated documents, ``red`` and ``blue``."""
    params, c = tiny
    folder = tmp_path / "run"
    write_model(folder / "models" / "assistant", encoder, params, c)
    write_model(folder / "models" / "nano", encoder, quantize_model(params, model.weights(c)), c)
    for answer in ("red", "blue"):
        contents = Content("user", (Text("What colour?"),)), Content("model", (Text(answer),))
        documents = [Document(contents, f"{answer}{i}", "mine") for i in range(40)]
        long = Content("user", (Text("x 12 y 34;" * 2000),)), Content("model", (Text(answer),))
        write_documents(tmp_path / answer / "part-00000.parquet", [*documents, Document(long, "long", "mine")])
    return folder


def tune(run: Path, data: str, **more) -> Path:
    Tune(run, RECIPE, data=run.parent / data, **({"name": "mine", "steps": 2, "learning_rate": 0.01} | more))()
    return run / "models" / more.get("name", "mine") / "weights.safetensors"


def test_a_model_of_other_data_is_kept_and_not_reused(run, capsys):
    smoke, mine = starter.smoke().tune, run / "models" / "mine"
    t = replace(smoke, steps=2, weights=None, optimizer=replace(smoke.optimizer, learning_rate=0.01))
    earlier = tuning_stage(run / "models" / "assistant", run.parent / "blue", "mine", t)

    def work() -> dict:
        write_atomically(mine / "weights.safetensors", "tuned on blue")
        seal_folder(mine, ["weights.safetensors"])
        return {}

    run_stage(earlier, work)
    capsys.readouterr()
    path = tune(run, "red")
    output = capsys.readouterr().out
    assert "used: 40 examples" in output
    assert "left out: 1 × mine: " in output
    assert f"alhena chat {run / 'models' / 'mine'}" in output
    assert (run / "tuned" / "mine" / "metrics.jsonl").exists()
    # What had been trained on the other data is kept.
    assert (run / "models" / "mine.old-1" / "weights.safetensors").read_text() == "tuned on blue"
    assert (run / "tuned" / "mine.old-1" / "stage.json").exists()
    stamp = path.stat().st_mtime_ns
    assert tune(run, "red").stat().st_mtime_ns == stamp
    output = capsys.readouterr().out
    assert "finished before" in output
    assert "used: 40 examples" in output
    Check(run)()
    assert "all as they were written" in capsys.readouterr().out


def test_the_fingerprint_depends_on_data_base_and_settings(run):
    t, red, blue = starter.smoke().tune, run.parent / "red", run.parent / "blue"
    assistant, nano = run / "models" / "assistant", run / "models" / "nano"
    of = lambda base, data, t: tuning_stage(base, data, "mine", t).fingerprint  # noqa: E731
    others = [
        of(assistant, blue, t), of(nano, red, t), of(assistant, red, replace(t, steps=7)), of(assistant, red, replace(t, seed=7)),
        of(assistant, red, replace(t, optimizer=replace(t.optimizer, learning_rate=0.7))),
    ]  # fmt: skip
    assert len({of(assistant, red, t), *others}) == 6
    assert of(assistant, red, t) == of(assistant, red, t)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "nano"}, "--name 'nano': give the new model a name of its own"),
        ({"name": "base"}, "--name 'base'"),
        ({"name": "assistant", "base": "nano"}, "--name 'assistant'"),
        ({"name": "../x"}, "of letters, digits and dashes"),
        ({"base": "nano"}, "nano: a model with 4-bit weights cannot be tuned"),
        ({"base": "absent"}, "no model 'absent'; it has assistant, nano"),
        ({"data": "absent"}, "absent: no such folder of curated documents"),
    ],
)
def test_invalid_tuning_is_refused_before_any_work(run, more, words):
    before = sorted(path for path in run.rglob("*") if path.name != ".lock")
    with pytest.raises(ValueError, match=words):
        tune(run, **({"data": "red"} | more))
    assert sorted(path for path in run.rglob("*") if path.name != ".lock") == before


def test_a_base_model_with_a_flipped_bit_is_refused(run):
    path = run / "models" / "assistant" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"assistant/weights\.safetensors: its content has changed"):
        tune(run, "red")
    assert not (run / "tuned").exists()
    with pytest.raises(ValueError, match=r"assistant/weights\.safetensors: its content has changed"):
        model_folder(run, "assistant")
    with pytest.raises(SystemExit, match="1 differences"):
        Check(run)()


def test_the_report_card_of_one_model(run, tmp_path):
    texts = [
        Document((Content("document", (Text("red circle " * 5),)),), str(i), "text", facts={"task": "text"})
        for i in range(3)
    ]
    curated = Stage("curate", run / "curated", "x")

    def work() -> dict:
        write_documents(run / "curated" / "test" / "part-00000.parquet", texts)
        return {}

    run_stage(curated, work)
    Evaluate(run, RECIPE, name="nano")()
    rows = read_json(run / "reports" / "nano" / "results.json")["rows"]
    assert [list(row["scores"]) for row in rows] == [["nano"]]
    assert (run / "reports" / "nano" / "report.html").exists()
    assert not (run / "report").exists()
