"""Programs of a model compute; they reach no network, process, file to write, or package of ours, and end within their limits."""

from __future__ import annotations

import pytest

from alhena.evaluate.benchmarks import sandbox
from alhena.evaluate.benchmarks.sandbox import Limits, run_program

FORBIDDEN = {
    "network": "import socket\nsocket.socket()",
    "network by libc": "import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0",
    "fork": "import os\nos.fork()",
    "shell": "import os\nassert os.system('true') == 0",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "write": "open('x', 'w')",
    "append": "import os\nos.open('x', os.O_WRONLY | os.O_APPEND)",
    "delete": "import os\nos.remove('/nonexistent')",
    "rename": "import os\nos.rename('/nonexistent', '/other')",
    "signal": "import os\nos.kill(os.getppid(), 9)",
    "ours": "import alhena",
    "packages": "import numpy",
    "environment": "import os\nassert os.environ.get('HOME')",
    "memory": "x = [0] * 10**9",
    "exit": "raise SystemExit(0)",
    "exit at once": "import os\nos._exit(0)",
    "wrong": "assert 1 == 2",
    "no program": "def",
    "endless output": "while True: print('x' * 1000)",
}


@pytest.mark.parametrize("program", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_a_program_cannot_do(program):
    ran = run_program(program)
    assert not ran.passed
    assert ran.reason


def test_what_a_program_can_do():
    program = """
import bisect, collections, copy, datetime, functools, hashlib, heapq, itertools, math, random, re, string, typing
print(hashlib.md5(b"a").hexdigest(), open("/etc/hostname").read())
assert sorted([3, 1, 2]) == [1, 2, 3] and __name__ == "__main__"
"""
    assert run_program(program).passed


def test_limits_of_time():
    """Of processor time, and of waiting without any."""
    assert not run_program("while True: pass", Limits(seconds=1)).passed
    assert run_program("import time\ntime.sleep(60)", Limits(wait=1)).reason == "time limit"


def test_elsewhere_than_on_linux_it_refuses(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(ValueError, match="run only where seccomp isolates them"):
        run_program("pass")
