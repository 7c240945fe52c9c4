"""Stages: foreign files are never deleted, outputs are checked when read, one command writes at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alhena.files import FILES, MANIFEST, read_json, seal_folder, write_atomically
from alhena.pipeline import make_card, make_corpus, make_curated
from alhena.recovery.supervisor import supervise
from alhena.stages import Stage, check_inputs, check_run, locked, run_stage
from recipes import starter

ROOT = Path(__file__).parents[1]


def writes(stage: Stage, text: str):
    """The work of a stage: a file, a checkpoint, and its models."""

    def work() -> dict:
        write_atomically(stage.folder / "sub" / "data.bin", text)
        write_atomically(stage.folder / "checkpoints" / "4" / "state", text)
        for folder in stage.models:
            write_atomically(folder / "weights.safetensors", text)
            write_atomically(folder / "model.json", "{}")
            seal_folder(folder, ["weights.safetensors", "model.json"])
        return {"written": text}

    return work


def finished(run: Path, fingerprint: str = "a") -> Stage:
    """A finished stage ``train`` of a run, with a model."""
    stage = Stage("train", run / "train", fingerprint, models=(run / "models" / "base",))
    run_stage(stage, writes(stage, fingerprint * 4000))
    return stage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    stamp = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_the_users_documents_in_raw_are_never_deleted(tmp_path):
    raw = tmp_path / "raw"
    write_atomically(raw / "photos" / "1.jpg", b"mine")
    write_atomically(raw / "manifest.jsonl", "{}\n")
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=r"raw holds files that no stage .*manifest.jsonl, photos.*corpus=None"):
        make_corpus(starter.smoke(), tmp_path)
    assert listing(tmp_path) == before


def test_a_foreign_file_in_the_report_is_never_deleted(tmp_path):
    write_atomically(tmp_path / "report" / "notes.txt", "mine")
    with pytest.raises(ValueError, match=r"report holds files .*notes\.txt.*move them elsewhere"):
        make_card(tmp_path, {}, tmp_path / "report", "a")
    assert listing(tmp_path) == {"report/notes.txt": b"mine"}


def test_a_foreign_model_is_never_overwritten(tmp_path):
    write_atomically(tmp_path / "models" / "base" / "weights.safetensors", "mine")
    with pytest.raises(ValueError, match="base holds files that no stage"):
        finished(tmp_path)
    assert listing(tmp_path) == {"models/base/weights.safetensors": b"mine"}


def test_another_recipe_renames_the_earlier_output(tmp_path, capsys):
    finished(tmp_path, "a")
    write_atomically(tmp_path / "train" / "notes.txt", "mine")
    before = listing(tmp_path)
    finished(tmp_path, "b")
    finished(tmp_path, "c")
    after = listing(tmp_path)
    for name, content in before.items():
        assert after[name.replace("train/", "train.old-1/").replace("base/", "base.old-1/")] == content
    assert after["train/sub/data.bin"] == b"c" * 4000
    assert after["models/base.old-2/weights.safetensors"] == b"b" * 4000
    assert "train.old-1" in capsys.readouterr().out.replace("\n", "")
    assert check_run(tmp_path).changes == []


def test_a_finished_stage_is_skipped_and_an_unfinished_one_resumed(tmp_path):
    stage = finished(tmp_path)

    def fails() -> dict:
        raise AssertionError("done again")

    assert run_stage(stage, fails)["written"] == "a" * 4000
    (stage.folder / MANIFEST).unlink()
    seen = []
    run_stage(stage, lambda: seen.append((stage.folder / "checkpoints" / "4" / "state").exists()) or {})
    assert seen == [True]


def test_a_partial_model_of_a_killed_stage_does_not_block_another_recipe(tmp_path):
    stage = finished(tmp_path)
    (stage.folder / MANIFEST).unlink()
    (stage.models[0] / FILES).unlink()
    finished(tmp_path, "b")
    assert (tmp_path / "models" / "base.old-1" / "weights.safetensors").exists()


@pytest.mark.parametrize("name", ["train/sub/data.bin", "models/base/weights.safetensors"])
def test_a_flipped_bit_is_named_by_the_stage_that_reads(tmp_path, name):
    stage = finished(tmp_path)
    folder = stage.models[0] if name.startswith("models") else stage.folder
    check_inputs(folder)
    flip(tmp_path / name)
    done = []
    later = Stage("later", tmp_path / "later", "x", reads=(folder,))
    with pytest.raises(ValueError, match=rf"{name}: its content has changed.*delete .*train/stage\.json") as error:
        run_stage(later, lambda: done.append(1) or {})
    assert not done
    assert "\n" not in str(error.value)
    assert [line.partition(":")[0] for line in check_run(tmp_path).changes] == [str(tmp_path / name)]
    # The remedy works.
    (stage.folder / MANIFEST).unlink()
    finished(tmp_path)
    assert check_run(tmp_path).changes == []
    run_stage(later, lambda: {})


@pytest.mark.parametrize("name", ["train/sub/data.bin", "models/base/weights.safetensors", "models/base/files.json"])
def test_a_deleted_output_of_a_finished_stage_is_an_error(tmp_path, name):
    stage = finished(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}: deleted since it was written"):
        run_stage(stage, lambda: {})
    assert check_run(tmp_path).changes


def test_another_model_of_the_same_name_is_an_error(tmp_path):
    stage = finished(tmp_path)
    write_atomically(stage.models[0] / "weights.safetensors", "another")
    seal_folder(stage.models[0], ["weights.safetensors", "model.json"])
    with pytest.raises(ValueError, match="holds another model"):
        check_inputs(stage.models[0])


def test_checkpoints_may_be_deleted_and_check_still_names_them(tmp_path):
    stage = finished(tmp_path)
    (stage.folder / "checkpoints" / "4" / "state").unlink()
    run_stage(stage, lambda: pytest.fail("done again"))
    assert check_run(tmp_path).changes == [f"{stage.folder}/checkpoints/4/state: deleted since it was written"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ('{"fingerprint": "a", "models": {}}', "no field 'files'"),
        ('{"fingerprint": "a", "models": {}, "files": {"/dev/zero": {"size": 0, "sha256": ""}}}', "leaves the folder"),
        ('{"fingerprint": "a", "models": {}, "files": {"x": 3}}', "'x'.*not an object"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, text, words):
    stage = finished(tmp_path)
    (stage.folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=rf"train/stage\.json.*{words}"):
        run_stage(stage, lambda: {})
    assert len(check_run(tmp_path).changes) == 1


def test_the_users_documents_are_fingerprinted_by_content(tmp_path):
    line = '{"text": "One two three four five six seven eight nine ten, and the %s is here to stay for ever."}\n'
    run = replace(starter.smoke(), corpus=None)
    write_atomically(tmp_path / "raw" / "manifest.jsonl", line % "cat")
    make_corpus(run, tmp_path)
    make_curated(run, tmp_path)
    first = read_json(tmp_path / "curated" / MANIFEST)["fingerprint"]
    path = tmp_path / "raw" / "manifest.jsonl"
    stamp = path.stat()
    path.write_text(line % "dog")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    make_curated(run, tmp_path)
    assert read_json(tmp_path / "curated" / MANIFEST)["fingerprint"] != first
    assert (tmp_path / "curated.old-1" / MANIFEST).exists()


HOLD = """
import sys
from pathlib import Path
from alhena.stages import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_command_writes_in_a_run_folder(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ValueError, match=rf"another command writes there \(process {holder.pid}: "),
            locked(tmp_path),
        ):
            pass
        # Further processes of the training that holds the lock.
        with locked(tmp_path, acquire=False):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    # The lock file of a dead process is ignored.
    assert (tmp_path / ".lock").read_text()
    with locked(tmp_path):
        pass


SHARED = """
import sys
import jax
from pathlib import Path
from alhena.recovery.supervisor import initialize_distributed
initialize_distributed()
from alhena.stages import Stage, locked, run_stage
from alhena.files import write_atomically
run, index = Path(sys.argv[1]), jax.process_index()
with locked(run, acquire=index == 0):
    for _ in range(2):
        stage = Stage("train", run / "train", "a")
        run_stage(stage, lambda: write_atomically(run / "train" / f"{index}.log", "x" * 10) or {})
"""


def test_processes_of_one_training_share_a_stage_and_its_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")
    ended = supervise([sys.executable, "-c", SHARED, str(tmp_path)], processes=2, most=0, tell=pytest.fail)
    assert ended.code == 0
    assert sorted(read_json(tmp_path / "train" / MANIFEST)["files"]) == ["0.log", "1.log"]
