"""The command line under external faults: signals, exhausted memory, locks, missing folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from alhena.cli.build import Compress, Corpus, Demo, Pretrain, Tokenize
from alhena.cli.measuring import Evaluate
from alhena.cli.tuning import Tune
from alhena.stages import locked

ROOT = Path(__file__).parents[2]


def start(body: str) -> subprocess.Popen[str]:
    """``alhena check``, with ``body`` in place of the command's own work."""
    script = textwrap.dedent("""
        from alhena.cli import main, weights
        def work(self):
        {body}
        weights.Check.__call__ = work
        main.main()
    """).format(body=textwrap.indent(textwrap.dedent(body), "    "))
    command = [sys.executable, "-c", script, "check", "x"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


SLEEP = """
import time
print('begun', flush=True)
time.sleep(600)
"""
REPLACED = """
import time
print('begun', flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    raise RuntimeError('a library raises an error of its own')
"""
DESTRUCTOR = """
import time
class Swallows:
    def __del__(self):
        print('begun', flush=True)
        time.sleep(600)
Swallows()
time.sleep(600)
"""
DISCARDED = """
import time
print('begun', flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(600)
"""
COMPILE = """
import threading, jax, jax.numpy as jnp
jax.config.update("jax_enable_compilation_cache", False)
def slow(x, seed):
    for i in range(1500):
        x = jnp.sin(x * (i + seed)) @ x
    return x
compile = lambda seed: jax.jit(lambda x: slow(x, seed)).lower(jnp.ones((2, 2))).compile()
threading.Thread(target=compile, args=(2,)).start()
print('begun', flush=True)
compile(1)
"""


@pytest.mark.parametrize(
    "body",
    [SLEEP, REPLACED, DESTRUCTOR, DISCARDED, COMPILE],
    ids=["sleep", "replaced", "destructor", "discarded", "compile"],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_one_line(number, code, body):
    process = start(body)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.5)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == code
    assert error.strip() == "alhena: interrupted; type the same command again to resume"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise MemoryError", "alhena: out of memory"),
        ("import numpy; numpy.empty(10**18)", "alhena: out of memory (Unable to allocate"),
        ("open('/absent/file')", "No such file or directory: '/absent/file'"),
    ],
)
def test_a_foreseeable_error_is_one_line(body, words):
    process = start(body)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_signal_during_the_start_ends_with_one_line():
    process = start("raise SystemExit(7)")
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    # Before the entry point the signal has its default effect.
    assert (process.returncode, error) == (-signal.SIGTERM, "") or process.returncode in (7, 143)
    assert "Traceback" not in error


def test_commands_that_write_exclude_each_other_and_name_the_holder(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with locked(tmp_path):
        for command in (Demo, Corpus, Tokenize, Pretrain, Tune, Compress, Evaluate):
            with pytest.raises(ValueError, match=rf"another command writes there \(process {os.getpid()}: "):
                command(tmp_path, "starter:smoke")()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "raw"]


def test_a_missing_run_folder_is_not_created(tmp_path):
    with pytest.raises(ValueError, match=r"absent: no such run folder; `alhena demo`"):
        Pretrain(tmp_path / "absent", "starter:smoke")()
    assert not list(tmp_path.iterdir())
