"""Steps are exact, and what breaks exactness is found: flipped bits, damaged checkpoints, trouble of the machine and of the data."""

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
from alhena.train.replay import replay
from alhena.train.trainer import Folders, Hooks, Mixture, open_examples, train
from tests.train.test_training import TRAINING, copy, equal

ROOT = Path(__file__).parents[2]


def batches(data: Path) -> list:
    mixture = Mixture(open_examples(data), TRAINING)
    return [mixture.next() for _ in range(TRAINING.steps)]


@pytest.fixture(scope="module")
def whole(tiny, data, tmp_path_factory):
    """A run without trouble: its parameters and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, folder), "whole"), folder


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint8, jnp.int32])
def test_a_checksum_knows_every_bit(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(1, 100, (5, 7)), dtype)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = 8 * x.dtype.itemsize
    masks = np.zeros((x.size * bits, x.size), word)
    masks[np.arange(x.size * bits), np.arange(x.size * bits) // bits] = [1 << (n % bits) for n in range(x.size * bits)]
    changed = jax.lax.bitcast_convert_type(x, word) ^ masks.reshape(-1, *x.shape)
    sums = jax.vmap(lambda y: checksums([jax.lax.bitcast_convert_type(y, dtype)])[0])(changed)
    assert checksums([x])[0] not in np.asarray(sums)
    assert len(set(sums.tolist())) >= len(sums) - 1  # all different, but for a chance collision among 2³²


def test_checksums_do_not_depend_on_the_layout_over_devices():
    script = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from alhena.recovery.checksum import checksums
x = np.random.default_rng(0).normal(size=(8, 6, 12)).astype(np.float32)
mesh = jax.make_mesh((2, 2), ("a", "b"))
laid = [jax.device_put(x, NamedSharding(mesh, s)) for s in (P(), P("a"), P(None, "b", "a"), P(("a", "b")))]
sums = {int(checksums([y])[0]) for y in (x, *laid)}
assert len(sums) == 1, sums
hlo = checksums.lower([laid[2]]).compile().as_text()
assert "all-gather" not in hlo and "all-reduce" in hlo
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_replay_finds_every_fingerprint_as_recorded(tiny, data, whole):
    params, c = tiny
    _, folder = whole
    prints, _ = read_fingerprints(folder)
    assert sorted(prints) == list(range(1, TRAINING.steps + 1))
    # checkpoints of steps 6 and 8 are kept: 8 is replayed from 6, 7 too, 5 from the beginning and across the change of mixture
    for last, first in ((8, 7), (7, 7), (5, 1)):
        replayed = replay(copy(params), c, TRAINING, data, folder, last)
        assert (replayed.first, replayed.last, replayed.difference, replayed.recorded_machine) == (
            first,
            last,
            None,
            None,
        )
    with pytest.raises(ValueError, match=r"no fingerprint of step 9; there are those of 1 to 8"):
        replay(params, c, TRAINING, data, folder, 9)


def test_a_resumed_run_leaves_the_fingerprints_of_an_uninterrupted_one(tiny, data, whole, tmp_path):
    params, c = tiny
    for cut in (3, 6):
        train(copy(params), c, TRAINING, Folders(data, tmp_path / "cut"), "cut", Hooks(stop_after=cut))
        with open(tmp_path / "cut" / "fingerprints.jsonl", "a") as file:
            file.write('{"step": 7, "ba')  # as kill -9 leaves it
    train(copy(params), c, TRAINING, Folders(data, tmp_path / "cut"), "resumed")
    assert read_fingerprints(tmp_path / "cut") == read_fingerprints(whole[1])


def test_a_bit_flipped_in_a_gradient_is_found(tiny, data, tmp_path, monkeypatch):
    """An exponent's bit (in step 7) shows in the norm; one low in the mantissa (in step 5) only in the parameters."""
    params, c = tiny
    fifth, seventh = (batches(data)[n].tokens for n in (4, 6))
    batch_loss = step.batch_loss

    @jax.custom_vjp
    def through(scale, mask):
        return scale

    def back(mask, slope):
        words = jax.lax.bitcast_convert_type(slope, jnp.uint32)
        return jax.lax.bitcast_convert_type(words.at[0, 0].set(words[0, 0] ^ mask), jnp.float32), None

    through.defvjp(lambda scale, mask: (scale, mask), back)

    def faulty(params, c, batch):
        is_fifth, is_seventh = jnp.all(batch.tokens == fifth), jnp.all(batch.tokens == seventh)
        mask = is_fifth.astype(jnp.uint32) * (1 << 8) + is_seventh.astype(jnp.uint32) * (1 << 25)
        scale = through(params.layers.mlp_norm, mask)
        return batch_loss(replace(params, layers=replace(params.layers, mlp_norm=scale)), c, batch)

    def faulty_step(state, batch, c, transform, parts):
        return step.train_step.__wrapped__(state, batch, c, transform, parts)

    with monkeypatch.context() as patch:
        patch.setattr(step, "batch_loss", faulty)
        patch.setattr(trainer, "train_step", jax.jit(faulty_step, static_argnums=(2, 3, 4), donate_argnums=0))
        train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "faulty")
    for last, first, at, quantity in ((6, 1, 5, "parameters"), (8, 7, 7, "gradient_norm")):
        replayed = replay(copy(params), c, TRAINING, data, tmp_path / "run", last)
        assert (replayed.first, replayed.last, replayed.difference) == (first, at, quantity)
        assert f"step {at}: {quantity} differs" in str(replayed)


def test_other_data_are_found(tiny, data, whole):
    replayed = replay(copy(tiny[0]), tiny[1], replace(TRAINING, seed=1), data, whole[1], 4)
    assert (replayed.last, replayed.difference) == (1, "batch")


def poisoned(times: dict[int, int]):
    """A training step that gets batches of NaN weights: ``times`` says in which steps, how often."""
    real = trainer.train_step

    def poison(state, batch, c, transform, parts):
        now = int(state.step) + 1
        if times.get(now, 0) > 0:
            times[now] -= 1
            batch = replace(batch, weights=batch.weights * np.float32(np.nan))
        return real(state, batch, c, transform, parts)

    return poison


def test_one_troubled_step_is_skipped_and_counted(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", poisoned({3: 1}))
    train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("skipped", 0) for line in lines if line["kind"] == "train"] == [0, 1, 1, 1]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_trouble_of_the_machine_is_gone_after_going_back(tiny, data, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", poisoned(dict.fromkeys((4, 5, 6), 1)))
    params = train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")
    equal(params, whole[0])
    assert read_fingerprints(tmp_path / "run") == read_fingerprints(whole[1])
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == TRAINING.steps
    assert "rollback" in {line["what"] for line in read_lines(tmp_path / "run" / "ledger.jsonl")}


def test_trouble_that_stays_stops_the_training_and_saves_the_batch(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", poisoned(dict.fromkeys((4, 5, 6), 9)))
    with pytest.raises(ValueError, match=r"in step 4, and 2 more .* after going back .*step-4\.safetensors"):
        train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")
    saved = load_file(tmp_path / "run" / "trouble" / "step-4.safetensors")
    for name, value in vars(batches(data)[3]).items():
        np.testing.assert_array_equal(saved[name], value)


def test_trouble_before_the_first_checkpoint_stops_at_once(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", poisoned(dict.fromkeys(range(1, 2 + ROLLBACK_AFTER), 1)))
    with pytest.raises(ValueError, match=r"in step 1, and 2 more .* no checkpoint to go back to"):
        train(copy(tiny[0]), tiny[1], TRAINING, Folders(data, tmp_path / "run"), "run")


def test_a_spike_is_what_the_definition_says():
    rng = np.random.default_rng(0)
    losses, norms = 2 + 0.1 * rng.normal(size=WINDOW), 0.5 + 0.05 * rng.normal(size=WINDOW)
    recent, once = no_recent_steps(), jax.jit(check_step)
    for n, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        assert bool(once(recent, loss, norm)[0])
        assert bool(once(recent, 100.0, norm)[0])  # nothing is a spike yet
        assert not bool(once(recent, loss, jnp.nan)[0])
        assert int(recent.good) == n
        recent = once(recent, loss, norm)[1]
    limits = []
    for values, deviations, least in ((losses, 16, 0.5), (norms, 32, 4)):
        middle = np.median(values)
        limits.append(middle + max(deviations * np.median(np.abs(values - middle)), least * middle))
    for loss, norm, good in ((0.999, 0.999, True), (1.001, 0.5, False), (0.5, 1.001, False)):
        verdict, after = once(recent, loss * limits[0], norm * limits[1])
        assert bool(verdict) == good
        assert (int(after.good), int(after.skipped)) == (WINDOW + good, 1 - good)


def test_a_hard_example_is_no_spike_where_all_is_learned():
    recent, once = no_recent_steps(), jax.jit(check_step)
    for _ in range(WINDOW):
        recent = once(recent, 0.002, 0.01)[1]
    assert bool(once(recent, 0.4, 0.9)[0])  # two hundred times the usual
    assert not bool(once(recent, 0.6, 0.01)[0])
    assert not bool(once(recent, 0.002, 1.1)[0])


@pytest.mark.parametrize("how", ["flip", "half", "gone"])
def test_a_damaged_checkpoint_is_noticed_whichever_file_it_is(tmp_path, how):
    state = lambda k: {"a": jnp.arange(3000.0) + k, "b": jnp.full((3,), k)}  # noqa: E731
    checkpoints = Checkpoints(tmp_path / "kept", "one")
    for k in (2, 4):
        checkpoints.save(k, state(k), {"place": k})
    checkpoints.close()
    used = []
    for file in sorted(path for path in (tmp_path / "kept" / "4").rglob("*") if path.is_file()):
        shutil.copytree(tmp_path / "kept", tmp_path / "copy")
        damaged, content = tmp_path / "copy" / file.relative_to(tmp_path / "kept"), bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes({"flip": content, "half": content[: len(content) // 2], "gone": b""}[how])
        if how == "gone":
            damaged.unlink()
        checkpoints = Checkpoints(tmp_path / "copy", "one")
        step, found, place = checkpoints.restore(state(0))
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, found, state(step))
        assert place == {"place": step}
        assert (tmp_path / "copy" / "4.damaged").exists() == (step == 2)
        used.append(step)
        shutil.rmtree(tmp_path / "copy")
    assert set(used) == {2, 4}  # some files matter, of some Orbax does not need every byte


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(tiny, data, whole, tmp_path):
    params, c = tiny
    train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "run", Hooks(stop_after=4))
    biggest = max((tmp_path / "run" / "checkpoints" / "4" / "state").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 16
    biggest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoints/4: damaged checkpoint, kept as 4\.damaged"):
        equal(train(copy(params), c, TRAINING, Folders(data, tmp_path / "run"), "resumed"), whole[0])


def test_goodput_adds_up(tmp_path, whole):
    for at, what, at_step in (
        (0, "stopped", 0), (2, "restore", 0), (12, "compile", 1), (52, "steps", 21), (53, "save", 21), (73, "steps", 31),
        (100, "stopped", 21), (101, "restore", 21), (106, "compile", 22), (146, "steps", 42),
    ):  # fmt: skip
        add_line(tmp_path / "ledger.jsonl", {"at": at, "what": what, "step": at_step})
    found = goodput(tmp_path)
    other = {"stopped": 27, "restore": 3, "compile": 15, "save": 1, "repeated": 20}
    assert (found.useful, found.elapsed, found.other) == (80, 146, other)
    assert str(found).startswith("goodput 54.8 % of 146 s (stopped 18.5 %, repeated 13.7 %, compile 10.3 %")
    real = goodput(whole[1])
    assert real.useful + sum(real.other.values()) == pytest.approx(real.elapsed)
    assert 0 < real.share < 1
