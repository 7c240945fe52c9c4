"""Training with two processes: a killed one is restored from the memory of the other; the result is that of a single process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alhena.files import read_lines
from alhena.model.storage.weights import save_model
from alhena.recovery.fingerprints import read_fingerprints
from alhena.recovery.goodput import goodput
from alhena.recovery.memory_checkpoint import memory_folder
from alhena.recovery.supervisor import COORDINATOR, PROCESSES, initialize_distributed, supervise
from tests.compiled import LEVEL_0

WORKER = Path(__file__).with_name("one_process.py")


def parameters(out: Path) -> list[np.ndarray]:
    with np.load(out / "params.npz") as stored:
        return [stored[name] for name in stored.files]


@pytest.fixture
def command(tiny, data, tmp_path, monkeypatch) -> list[str]:
    """The command of one process, to be completed by its folder and its kills."""
    save_model(tmp_path / "model", *tiny, {})
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("ALHENA_MEMORY", str(tmp_path / "memory"))
    # One device per process, whatever this one has; optimization level 0 compiles sooner.
    monkeypatch.setenv("XLA_FLAGS", LEVEL_0)
    return [sys.executable, str(WORKER), str(tmp_path / "model"), str(data)]


def test_two_processes_killed_twice_end_with_the_parameters_of_one_that_was_not_killed(command, tmp_path):
    out, log = tmp_path / "two", []
    ended = supervise([*command, str(out), "1:3", "0:7:lost"], processes=2, max_restarts=3, log=log.append)
    assert (ended.code, ended.restarts) == (0, 2), log
    assert [line.split(" of")[0] for line in log] == ["process 1", "process 0"]
    starts = [line["step"] for line in read_lines(out / "ledger.jsonl") if line["what"] == "restore"]
    # Checkpoints are at 4 and 8: copies in memory were used.
    assert starts[0] == 0 and starts[1] in (2, 3) and starts[2] in (6, 7)
    assert not memory_folder(out, 0).exists() and goodput(out) is not None
    alone = tmp_path / "one"
    flags = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {LEVEL_0}"}
    subprocess.run([*command, str(alone)], env=flags, check=True, capture_output=True)
    for two, one in zip(parameters(out), parameters(alone), strict=True):
        np.testing.assert_array_equal(two, one)


def test_training_resumes_without_a_lost_pod(command, tmp_path):
    """Elastic: process 0 is lost with its memory; process 1 resumes alone, from its own copy, with the batches of both."""
    out, log = tmp_path / "fewer", []
    ended = supervise([*command, str(out), "0:7:lost"], processes=2, max_restarts=1, log=log.append, elastic=True)
    assert (ended.code, ended.restarts) == (0, 1), log
    assert log[0].startswith("process 0 of 2") and "the other 1" in log[0]
    starts = [line["step"] for line in read_lines(out / "ledger.jsonl") if line["what"] == "restore"]
    assert starts[0] == 0 and starts[1] in (6, 7)  # the checkpoint is of step 4
    fingerprints = read_fingerprints(out)[0]
    subprocess.run([*command, str(tmp_path / "one")], check=True, capture_output=True)  # one pod from the beginning
    alone = read_fingerprints(tmp_path / "one")[0]
    assert [fingerprints[k].batch for k in sorted(fingerprints)] == [alone[k].batch for k in sorted(alone)]
    for fewer, one in zip(parameters(out), parameters(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(fewer, one, atol=1e-4)


STOPPING = """
import os, signal, sys, time
from pathlib import Path
import jax
from alhena.recovery.supervisor import initialize_distributed
from alhena.train.trainer import _Stop
from alhena.processes import StopSignals

initialize_distributed()
number = signal.Signals(int(sys.argv[2]))
with StopSignals((signal.SIGINT,)) as signals:
    stop, step = _Stop(signals), 0
    while not stop.agreed:
        step += 1
        if step == 3 and jax.process_index() == 1:
            os.kill(os.getpid(), number)
        time.sleep(0.2)
        # Processes of a training are never more than a step apart.
        jax.experimental.multihost_utils.sync_global_devices(str(step))
        stop.after(step)
Path(sys.argv[1], str(jax.process_index())).write_text(str(step))
raise signals.exit()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, monkeypatch, number):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("XLA_FLAGS", LEVEL_0)
    command = [sys.executable, "-c", STOPPING, str(tmp_path), str(int(number))]
    # Which process ends first decides the code.
    assert supervise(command, processes=2, max_restarts=0, log=pytest.fail).code in (130, 143)
    steps = [int((tmp_path / str(k)).read_text()) for k in (0, 1)]
    assert steps[0] == steps[1] > 3


def test_a_process_that_fails_by_itself_is_not_restarted():
    ended = supervise([sys.executable, "-c", "raise SystemExit(3)"], processes=2, max_restarts=5, log=pytest.fail)
    assert (ended.code, ended.restarts) == (3, 0)


def test_restarts_are_limited():
    log: list[str] = []
    ended = supervise(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], processes=1, max_restarts=2, log=log.append
    )
    assert ended.code == 1 and len(log) == 3


def test_an_incomplete_environment_is_refused(monkeypatch):
    monkeypatch.setenv(COORDINATOR, "127.0.0.1:1")
    monkeypatch.setenv(PROCESSES, "two")
    with pytest.raises(ValueError, match="ALHENA_PROCESSES and ALHENA_PROCESS must be numbers"):
        initialize_distributed()
