"""Steps are exact, and errors are found: flipped bits, damaged checkpoints, anomalies of the machine and of the data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from alhena.files import add_line, read_lines
from alhena.recovery.anomalies import ROLLBACK_AFTER, WINDOW, check_step, no_recent_steps
from alhena.recovery.checkpoint import Checkpoints
from alhena.recovery.checksum import checksums
from alhena.recovery.fingerprints import read_fingerprints
from alhena.recovery.goodput import goodput
from alhena.train import step, trainer
from alhena.train.mixture import Mixture, open_examples
from alhena.train.monitoring.replay import replay
from alhena.train.trainer import Folders, Hooks, train
from tests.train.test_training import TRAINING, copy, equal

ROOT = Path(__file__).parents[2]


def batches(data: Path) -> list:
    mixture = Mixture(open_examples(data), TRAINING)
    return [mixture.next() for _ in range(TRAINING.steps)]


@pytest.fixture(scope="module")
def reference(tiny, data, tmp_path_factory):
    """A run without anomalies: its parameters and its folder."""
    folder = tmp_path_factory.mktemp("reference")
    return train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, folder), "reference"), folder


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint8, jnp.int32])
def test_a_checksum_depends_on_every_bit(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(1, 100, (5, 7)), dtype)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = 8 * x.dtype.itemsize
    masks = np.zeros((x.size * bits, x.size), word)
    masks[np.arange(x.size * bits), np.arange(x.size * bits) // bits] = [1 << (n % bits) for n in range(x.size * bits)]
    changed = jax.lax.bitcast_convert_type(x, word) ^ masks.reshape(-1, *x.shape)
    sums = jax.vmap(lambda y: checksums([jax.lax.bitcast_convert_type(y, dtype)])[0])(changed)
    assert checksums([x])[0] not in np.asarray(sums)
    assert len(set(sums.tolist())) >= len(sums) - 1  # all different, but for a chance collision among 2³²


def test_checksums_do_not_depend_on_the_sharding():
    script = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from alhena.recovery.checksum import checksums
x = np.random.default_rng(0).normal(size=(8, 6, 12)).astype(np.float32)
mesh = jax.make_mesh((2, 2), ("a", "b"))
sharded = [jax.device_put(x, NamedSharding(mesh, s)) for s in (P(), P("a"), P(None, "b", "a"), P(("a", "b")))]
sums = {int(checksums([y])[0]) for y in (x, *sharded)}
assert len(sums) == 1, sums
hlo = checksums.lower([sharded[2]]).compile().as_text()
assert "all-gather" not in hlo and "all-reduce" in hlo
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_replay_reproduces_every_fingerprint(tiny, data, reference):
    params, c = tiny
    _, folder = reference
    fingerprints, _ = read_fingerprints(folder)
    assert sorted(fingerprints) == list(range(1, TRAINING.steps + 1))
    # There are checkpoints of steps 6 and 8: 8 and 7 are replayed from 6, 5 from the beginning and across the change of mixture.
    for last, first in ((8, 7), (7, 7), (5, 1)):
        replayed = replay(copy(params), c, TRAINING, data, folder, last)
        assert (replayed.first, replayed.last, replayed.difference, replayed.recorded_machine) == (
            first,
            last,
            None,
            None,
        )
    with pytest.raises(ValueError, match=r"no fingerprint of step 9; fingerprints exist for 1 to 8"):
        replay(params, c, TRAINING, data, folder, 9)


def test_a_resumed_run_leaves_the_fingerprints_of_an_uninterrupted_one(tiny, data, reference, tmp_path):
    params, c = tiny
    for stop in (3, 6):
        train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "stopped", Hooks(stop_after=stop))
        with open(tmp_path / "run" / "fingerprints.jsonl", "a") as file:
            file.write('{"step": 7, "ba')  # as kill -9 leaves it
    train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "resumed")
    assert read_fingerprints(tmp_path / "run") == read_fingerprints(reference[1])


def test_a_bit_flipped_in_a_gradient_is_found(tiny, data, tmp_path, monkeypatch):
    """A bit of the exponent (in step 7) changes the norm; a low bit of the mantissa (in step 5) only the parameters."""
    params, c = tiny
    fifth, seventh = (batches(data)[n].tokens for n in (4, 6))
    batch_loss = step.batch_loss

    @jax.custom_vjp
    def flip_in_gradient(scale, mask):
        return scale

    def backward(mask, cotangent):
        words = jax.lax.bitcast_convert_type(cotangent, jnp.uint32)
        return jax.lax.bitcast_convert_type(words.at[0, 0].set(words[0, 0] ^ mask), jnp.float32), None

    flip_in_gradient.defvjp(lambda scale, mask: (scale, mask), backward)

    def faulty(params, c, batch):
        is_fifth, is_seventh = jnp.all(batch.tokens == fifth), jnp.all(batch.tokens == seventh)
        mask = is_fifth.astype(jnp.uint32) * (1 << 8) + is_seventh.astype(jnp.uint32) * (1 << 25)
        scale = flip_in_gradient(params.layers.mlp_norm, mask)
        return batch_loss(replace(params, layers=replace(params.layers, mlp_norm=scale)), c, batch)

    def faulty_step(state, batch, c, transform, parts, frozen):
        return step.train_step.__wrapped__(state, batch, c, transform, parts, frozen)

    with monkeypatch.context() as patch:
        patch.setattr(step, "batch_loss", faulty)
        patch.setattr(trainer, "train_step", jax.jit(faulty_step, static_argnums=(2, 3, 4), donate_argnums=0))
        train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "faulty")
    for last, first, step_at_fault, quantity in ((6, 1, 5, "parameters"), (8, 7, 7, "gradient_norm")):
        replayed = replay(copy(params), c, TRAINING, data, tmp_path / "run", last)
        assert (replayed.first, replayed.last, replayed.difference) == (first, step_at_fault, quantity)
        assert f"step {step_at_fault}: {quantity} differs" in str(replayed)


def test_a_replay_with_other_data_is_detected(tiny, data, reference):
    replayed = replay(copy(tiny[0]), tiny[1], replace(TRAINING, seed=1), data, reference[1], 4)
    assert (replayed.last, replayed.difference) == (1, "batch")


def nan_steps(times: dict[int, int]):
    """A training step whose batch has NaN weights; ``times``: how often, by step."""
    train_step = trainer.train_step

    def nan_step(state, batch, c, transform, parts, frozen):
        number = int(state.step) + 1
        if times.get(number, 0) > 0:
            times[number] -= 1
            batch = replace(batch, weights=batch.weights * np.float32(np.nan))
        return train_step(state, batch, c, transform, parts, frozen)

    return nan_step


def test_one_anomaly_is_skipped_and_counted(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", nan_steps({3: 1}))
    train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("skipped", 0) for line in lines if line["kind"] == "train"] == [0, 1, 1, 1]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_anomalies_of_the_machine_do_not_occur_after_a_rollback(tiny, data, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", nan_steps(dict.fromkeys((4, 5, 6), 1)))
    params = train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")
    equal(params, reference[0])
    assert read_fingerprints(tmp_path / "run") == read_fingerprints(reference[1])
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == TRAINING.steps
    assert "rollback" in {line["what"] for line in read_lines(tmp_path / "run" / "ledger.jsonl")}


def test_anomalies_that_persist_stop_the_training_and_save_the_batch(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", nan_steps(dict.fromkeys((4, 5, 6), 9)))
    with pytest.raises(ValueError, match=r"in step 4, and 2 more .* after a rollback.*step-4\.safetensors"):
        train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")
    saved = load_file(tmp_path / "run" / "anomalies" / "step-4.safetensors")
    for name, value in vars(batches(data)[3]).items():
        np.testing.assert_array_equal(saved[name], value)


def test_anomalies_before_the_first_checkpoint_stop_the_training(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", nan_steps(dict.fromkeys(range(1, 2 + ROLLBACK_AFTER), 1)))
    with pytest.raises(ValueError, match=r"in step 1, and 2 more .* no checkpoint to roll back to"):
        train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")


def test_a_spike_is_judged_as_defined():
    rng = np.random.default_rng(0)
    losses, norms = 2 + 0.1 * rng.normal(size=WINDOW), 0.5 + 0.05 * rng.normal(size=WINDOW)
    recent, check = no_recent_steps(), jax.jit(check_step)
    for n, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        assert bool(check(recent, loss, norm)[0])
        assert bool(check(recent, 100.0, norm)[0])  # nothing is a spike yet
        assert not bool(check(recent, loss, jnp.nan)[0])
        assert int(recent.good) == n
        recent = check(recent, loss, norm)[1]
    limits = []
    for values, deviations, relative in ((losses, 16, 0.5), (norms, 32, 4)):
        median = np.median(values)
        limits.append(median + max(deviations * np.median(np.abs(values - median)), relative * median))
    for loss, norm, good in ((0.999, 0.999, True), (1.001, 0.5, False), (0.5, 1.001, False)):
        is_good, after = check(recent, loss * limits[0], norm * limits[1])
        assert bool(is_good) == good
        assert (int(after.good), int(after.skipped)) == (WINDOW + good, 1 - good)


def test_a_hard_example_is_no_spike_where_the_loss_is_near_zero():
    recent, check = no_recent_steps(), jax.jit(check_step)
    for _ in range(WINDOW):
        recent = check(recent, 0.002, 0.01)[1]
    assert bool(check(recent, 0.4, 0.9)[0])  # two hundred times the median
    assert not bool(check(recent, 0.6, 0.01)[0])
    assert not bool(check(recent, 0.002, 1.1)[0])


@pytest.mark.parametrize("how", ["flip", "half", "gone"])
def test_damage_to_any_file_of_a_checkpoint_is_detected(tmp_path, how):
    state = lambda k: {"a": jnp.arange(3000.0) + k, "b": jnp.full((3,), k)}  # noqa: E731
    checkpoints = Checkpoints(tmp_path / "original", "one")
    for k in (2, 4):
        checkpoints.save(k, state(k), {"position": k})
    checkpoints.close()
    used = []
    for file in sorted(path for path in (tmp_path / "original" / "4").rglob("*") if path.is_file()):
        shutil.copytree(tmp_path / "original", tmp_path / "copy")
        damaged, content = tmp_path / "copy" / file.relative_to(tmp_path / "original"), bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes({"flip": content, "half": content[: len(content) // 2], "gone": b""}[how])
        if how == "gone":
            damaged.unlink()
        checkpoints = Checkpoints(tmp_path / "copy", "one")
        step, restored, data_state = checkpoints.restore(state(0))
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, restored, state(step))
        assert data_state == {"position": step}
        assert (tmp_path / "copy" / "4.damaged").exists() == (step == 2)
        used.append(step)
        shutil.rmtree(tmp_path / "copy")
    assert set(used) == {2, 4}  # Orbax does not need every byte of every file


def test_training_resumes_from_the_checkpoint_before_a_damaged_one(tiny, data, reference, tmp_path):
    params, c = tiny
    train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "run", Hooks(stop_after=4))
    biggest = max((tmp_path / "run" / "checkpoints" / "4" / "state").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 16
    biggest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoints/4: damaged checkpoint, renamed to 4\.damaged"):
        equal(train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "resumed"), reference[0])


def test_goodput_adds_up(tmp_path, reference):
    for at, what, at_step in (
        (0, "stopped", 0), (2, "restore", 0), (12, "compile", 1), (52, "steps", 21), (53, "save", 21), (73, "steps", 31),
        (100, "stopped", 21), (101, "restore", 21), (106, "compile", 22), (146, "steps", 42),
    ):  # fmt: skip
        add_line(tmp_path / "ledger.jsonl", {"at": at, "what": what, "step": at_step})
    total = goodput(tmp_path)
    other = {"stopped": 27, "restore": 3, "compile": 15, "save": 1, "repeated": 20}
    assert (total.useful, total.elapsed, total.other) == (80, 146, other)
    assert str(total).startswith("goodput 54.8 % of 146 s (stopped 18.5 %, repeated 13.7 %, compile 10.3 %")
    measured = goodput(reference[1])
    assert measured.useful + sum(measured.other.values()) == pytest.approx(measured.elapsed)
    assert 0 < measured.share < 1
