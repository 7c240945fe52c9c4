"""The command line where something outside it goes wrong: signals, memory, locks, folders that are not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(body: str, *arguments: str) -> subprocess.Popen[str]:
    """``alhena check``, with other work in the place of the command's own."""
    script = textwrap.dedent("""
        import sys
        from alhena import at_scale, cli
        def work(self):
            {body}
        at_scale.Check.__call__ = work
        cli.main()
    """).format(body=body)
    command = [sys.executable, "-c", script, *(arguments or ("check", "x"))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_one_line(number, code):
    process = start("print('begun', flush=True); import time; time.sleep(600)")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert said.strip() == "alhena: interrupted; type the same command again to go on where it was"


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
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_commands_that_write_exclude_each_other_and_say_who_is_there(tmp_path):
    from alhena.cli.main import Compress, Corpus, Demo, Evaluate, Pretrain, Tokenize, Tune
    from alhena.stages import locked

    raw = tmp_path / "raw"
    raw.mkdir()
    with locked(tmp_path):
        for command in (Demo, Corpus, Tokenize, Pretrain, Tune, Compress, Evaluate):
            with pytest.raises(ValueError, match=rf"another command writes there \(process {os.getpid()}: "):
                command(tmp_path, "starter:smoke")()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "raw"]


def test_a_run_folder_that_is_not_there_is_not_made(tmp_path):
    from alhena.cli.main import Pretrain

    with pytest.raises(ValueError, match=r"absent: no such run folder; `alhena demo`"):
        Pretrain(tmp_path / "absent", "starter:smoke")()
    assert not list(tmp_path.iterdir())
