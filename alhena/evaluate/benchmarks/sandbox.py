"""Runs a program that a model wrote in a process that can compute and nothing else.

    parent ── program, token ──► python -I -S sandbox_child.py ── token, if the program ended without an error ──► parent

The child limits its processor time, memory and open files, and then allows itself a short list of system calls (seccomp): no network, no
processes, no file opened for writing, no signal to others. It has no environment, an empty working directory and no installed package.
"""

from __future__ import annotations

import platform
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("sandbox_child.py")
# Of a program, and of what is kept of its output.
MAX_PROGRAM, MAX_OUTPUT = 1 << 20, 4000
MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Limits:
    """Seconds of processor time and of waiting, and bytes of address space."""

    seconds: int = 5
    wait: int = 15
    memory: int = 512 << 20


@dataclass(frozen=True)
class Ran:
    """Whether a program ended without an error, and otherwise why not."""

    passed: bool
    reason: str = ""


def check_available() -> None:
    """Raises ValueError where programs cannot be isolated."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise ValueError(
            f"programs of a model are run only where seccomp isolates them, on Linux on {' and '.join(MACHINES)}; this is "
            f"{sys.platform} on {platform.machine()}: leave out the tasks that run code"
        )


def run_program(program: str, limits: Limits = Limits()) -> Ran:
    """Runs one program; never raises for what the program does."""
    check_available()
    data = program.encode("utf-8", "replace")
    if len(data) > MAX_PROGRAM:
        return Ran(False, f"the program has {len(data):,} bytes; at most {MAX_PROGRAM:,} are run")
    token = secrets.token_hex(16)
    arguments = [sys.executable, "-I", "-S", "-B", str(CHILD), str(limits.seconds), str(limits.memory)]
    with tempfile.TemporaryDirectory(prefix="alhena-sandbox-") as folder, tempfile.TemporaryFile() as output:
        try:
            subprocess.run(
                arguments, input=token.encode() + data, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env={},
                timeout=limits.wait, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Ran(False, "time limit")
        size = output.seek(0, 2)
        output.seek(max(0, size - MAX_OUTPUT))
        printed = output.read().decode("utf-8", "replace")
    passed = printed.endswith(token)
    return Ran(passed, "" if passed else _reason(printed))


def _reason(printed: str) -> str:
    lines = [line for line in printed.splitlines() if line.strip()]
    return (
        lines[-1][:300]
        if lines
        else "the process ended before the end of the program (limit of time or memory, or an exit)"
    )
