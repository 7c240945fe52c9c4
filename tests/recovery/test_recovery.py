"""A training resumes only from its own state; signals save; errors name damaged lines of logs."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from alhena.files import read_lines, write_json
from alhena.model import config, model
from alhena.model.sharding import Mesh
from alhena.recovery.fingerprints import read_fingerprints
from alhena.recovery.goodput import goodput
from alhena.recovery.memory_checkpoint import MemoryCheckpoints, memory_folder
from alhena.tokens.examples.store import Examples
from alhena.train import trainer
from alhena.train.components import image_tokenizer as image_training
from alhena.train.components.best_rq import AudioChunks
from alhena.train.monitoring import compare
from alhena.train.monitoring.metrics import read_metrics
from alhena.train.trainer import Folders, Hooks, fingerprint_of, train
from tests.train.test_training import TRAINING, copy, equal

COPIED = replace(TRAINING, mesh=Mesh(), memory_checkpoint_every=1, save_every=100)


class Killed(BaseException):
    """Ends a training between two steps like SIGKILL: nothing is saved."""


def killed_after(step: int) -> Hooks:
    def on_step(current: int) -> None:
        if current == step:
            raise Killed

    return Hooks(on_step=on_step)


def starts(out: Path) -> list[int]:
    return [line["step"] for line in read_lines(out / "ledger.jsonl") if line["what"] == "restore"]


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ALHENA_MEMORY", str(tmp_path / "memory"))
    return tmp_path / "memory"


@pytest.fixture
def small(tiny) -> config.Model:
    return replace(tiny[1], vision=None, audio=None, decoder=replace(tiny[1].decoder, layers=1))


def initial_params(c: config.Model) -> model.Params:
    return model.init(jax.random.key(0), c)


def test_copies_of_another_seed_or_learning_rate_are_never_restored(small, data, tmp_path, memory, capfd):
    out = Folders(data, tmp_path / "out")
    with pytest.raises(Killed):
        train(initial_params(small), small, COPIED, out, "first", killed_after(3))
    assert len(list(memory_folder(out.out, 0).glob("*.copy"))) == 2
    other = replace(COPIED, seed=1, optimizer=replace(COPIED.optimizer, learning_rate=1e-4))
    params = train(initial_params(small), small, other, out, "second")
    assert starts(out.out) == [0, 0]
    assert "copies of another training removed (2)" in capfd.readouterr().err
    equal(params, train(initial_params(small), small, other, Folders(data, tmp_path / "fresh"), "fresh"))
    assert not list(memory.glob("*/*/*.copy"))


def test_copies_are_restored_until_the_run_folder_is_deleted(small, data, tmp_path, memory):
    out = Folders(data, tmp_path / "out")
    for step in (3, 5):
        with pytest.raises(Killed):
            train(initial_params(small), small, COPIED, out, "run", killed_after(step))
    assert starts(out.out) == [0, 3]
    shutil.rmtree(out.out)
    with pytest.raises(Killed):
        train(initial_params(small), small, COPIED, out, "new", killed_after(1))
    assert starts(out.out) == [0]
    shutil.rmtree(out.out)
    log: list[str] = []
    MemoryCheckpoints(tmp_path / "another", 0, "x", log.append)
    assert len(log) == 1 and "deleted run folder" in log[0] and not memory_folder(out.out, 0).exists()


def test_copies_that_are_damaged_or_of_another_mesh_do_not_displace_new_ones(tmp_path, memory):
    with jax.set_mesh(jax.make_mesh((1, 1), ("pod", "data"))):
        put = lambda x: jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), jax.P()))  # noqa: E731
        copies = MemoryCheckpoints(tmp_path, 0, "x", pytest.fail)
        for step in (7, 8):
            copies.save(step, {"a": put(np.zeros(step))}, None)
        assert copies.restore({"a": put(np.zeros(3))}) is None
        for step in (4, 5):
            copies.save(step, {"a": put(np.full(3, step))}, {"step": step})
        step, state, data_state = copies.restore({"a": put(np.zeros(3))})
        assert (step, state["a"][0], data_state) == (5, 5, {"step": 5})


def test_checkpoints_of_another_training_are_refused(small, data, tmp_path):
    out = Folders(data, tmp_path / "out")
    train(initial_params(small), small, TRAINING, out, "first", Hooks(stop_after=2))
    shutil.copytree(data, tmp_path / "other")
    shutil.copy(data / "a.arrow", tmp_path / "other" / "b.arrow")
    others = {
        "seed": (replace(TRAINING, seed=1), out),
        "learning rate": (replace(TRAINING, optimizer=replace(TRAINING.optimizer, learning_rate=1e-4)), out),
        "data": (TRAINING, replace(out, data=tmp_path / "other")),
    }
    for t, folders in others.values():
        with pytest.raises(ValueError, match=r"out: its checkpoints \(the newest of step 2\) are of another training"):
            train(initial_params(small), small, t, folders, "second")
    # A checkpoint that was copied into a new folder is refused too.
    shutil.copytree(out.out / "checkpoints", tmp_path / "new" / "checkpoints")
    with pytest.raises(ValueError, match=r"checkpoints/2: this checkpoint is of another training"):
        train(initial_params(small), small, others["seed"][0], Folders(data, tmp_path / "new"), "third")


def test_the_fingerprint_covers_the_stage_and_the_data_but_not_the_mesh(small, data, tmp_path):
    out = Folders(data, tmp_path)
    original = fingerprint_of(small, TRAINING, out)
    assert (
        fingerprint_of(small, replace(TRAINING, mesh=Mesh(pod=2), memory_checkpoint_every=5, save_every=3), out)
        == original
    )
    shutil.copytree(data, tmp_path / "data")
    assert fingerprint_of(small, TRAINING, replace(out, data=tmp_path / "data")) == original
    content = bytearray((tmp_path / "data" / "a.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "data" / "a.arrow").write_bytes(content)
    assert fingerprint_of(small, TRAINING, replace(out, data=tmp_path / "data")) != original
    write_json(tmp_path / "begun.json", {"fingerprint": "0123"})
    assert fingerprint_of(small, TRAINING, out) != original


def test_a_signal_saves_and_stops_and_the_resumed_run_is_the_same_bit_for_bit(small, data, tmp_path):
    """Ctrl-C while the first step compiles, SIGTERM between two steps."""
    c = replace(small, decoder=replace(small.decoder, hidden=40))
    params, before = initial_params(c), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    out = Folders(data, tmp_path / "stopped")
    train_on_next_batch, sent = trainer.train_on_next_batch, []

    def interrupted(*args):
        if not sent:
            sent.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)))
            sent[0].start()
        result = train_on_next_batch(*args)
        sent[0].join()
        return result

    def terminated(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(trainer, "train_on_next_batch", interrupted)
        train(copy(params), c, TRAINING, out, "stopped")
    assert ended.value.code == 130
    with pytest.raises(SystemExit) as ended:
        train(copy(params), c, TRAINING, out, "stopped", Hooks(on_step=terminated))
    assert ended.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    resumed = train(copy(params), c, TRAINING, out, "stopped")
    # The signal of step 3 takes effect after step 4, which is saved.
    assert starts(out.out) == [0, 1, 4]
    uninterrupted = Folders(data, tmp_path / "uninterrupted")
    equal(resumed, train(copy(params), c, TRAINING, uninterrupted, "uninterrupted"))
    assert read_fingerprints(out.out)[0] == read_fingerprints(uninterrupted.out)[0]


def test_another_image_tokenizer_is_not_resumed(tmp_path):
    images = [np.random.default_rng(k).integers(0, 256, (32, 32, 3), np.uint8) for k in range(3)]
    c = config.ImageTokenizer((8, 8), (3, 3, 3), 8)
    t = image_training.TrainImageTokenizer(steps=1, batch_size=2, save_every=1)
    image_training.train(images, c, t, tmp_path)
    for other, subset in ((replace(t, seed=1), images), (t, images[:2])):
        with pytest.raises(ValueError, match=r"checkpoints/1: this checkpoint is of another training"):
            image_training.train(subset, c, other, tmp_path)


def test_audio_chunks_are_located_by_lengths_and_no_example_is_read(data):
    class Counted(Examples):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    sources = {file.stem: Counted(file) for file in sorted(data.glob("*.arrow"))}
    audio = AudioChunks(sources)
    assert Counted.reads == 0
    chunks = [(e, k) for _, examples in sorted(sources.items()) for e in examples for k in range(len(e.frame_lengths))]
    assert audio.count == len(chunks) > 2
    for number, (example, chunk) in enumerate(chunks):
        located, index = audio.chunk(number)
        assert index == chunk
        np.testing.assert_array_equal(located.frames, example.frames)


GOOD = {
    "ledger.jsonl": '{"at": 1.0, "what": "stopped", "step": 0}',
    "metrics.jsonl": '{"step": 1, "kind": "train", "loss": 1.0, "loss_by_modality": {"text": 1.0}}',
    "fingerprints.jsonl": '{"step": 1, "batch": "00000000", "loss": "00000000", "gradient_norm": "00000000", '
    '"parameters": "00000000", "moments": "00000000"}',
}
READ = {
    "ledger.jsonl": goodput,
    "metrics.jsonl": lambda out: read_metrics(out / "metrics.jsonl"),
    "fingerprints.jsonl": read_fingerprints,
}


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, bad) for name in GOOD for bad in ("[1]", "7", "null", "{}", '{"step": "1"}', "{", '{"step": 2}')),
        ("ledger.jsonl", '{"at": 1.0, "what": "resting", "step": 0}'),
        ("ledger.jsonl", '{"at": null, "what": "steps", "step": 0}'),
        ("metrics.jsonl", '{"step": 1, "kind": "train", "loss": "x", "loss_by_modality": {"text": 1.0}}'),
        ("metrics.jsonl", '{"step": 1, "kind": "train", "loss_by_modality": {"text": "x"}}'),
        ("fingerprints.jsonl", '{"step": 1, "batch": "00000000"}'),
        ("fingerprints.jsonl", '{"step": 1, "machine": 3}'),
        ("fingerprints.jsonl", GOOD["fingerprints.jsonl"].replace("00000000", "xyz", 1)),
    ],
)
def test_errors_name_an_invalid_line_of_a_log(tmp_path, name, bad):
    path = tmp_path / name
    path.write_text(f"{GOOD[name]}\n")
    READ[name](tmp_path)
    path.write_text(f"{GOOD[name]}\n{bad}\n{GOOD[name]}\n")
    with pytest.raises(ValueError, match=rf"{name}, line 2: .*; delete the line"):
        READ[name](tmp_path)


def test_errors_name_a_missing_fact_of_a_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(GOOD["metrics.jsonl"] + "\n")
    write_json(tmp_path / "training.json", {"title": "x"})
    with pytest.raises(ValueError, match=r"training\.json: it has no field 'parameters'"):
        compare.find_runs([tmp_path])
