"""Processes: children and workers end with their parent, long work stops after it has saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from alhena import processes

ROOT = Path(__file__).parent.parent


def run_script(folder: Path, script: str) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(path)], env=environment, stdout=subprocess.PIPE, text=True)


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(pids: list[int]) -> bool:
    """Whether all end within 20 seconds."""
    for _ in range(200):
        if not any(map(runs, pids)):
            return True
        time.sleep(0.1)
    return False


def printed_pids(process: subprocess.Popen[str]) -> list[int]:
    """The process ids in the first line of output, all of running processes."""
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert pids and all(map(runs, pids))
    return pids


POOL = """
    import os, time
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from alhena.processes import end_with_parent

    def number(wait):
        time.sleep(wait)
        return os.getpid()

    if __name__ == "__main__":
        with ProcessPoolExecutor(2, mp_context=get_context("{}"), initializer=end_with_parent) as pool:
            print(*set(pool.map(number, [0.3] * 4)), flush=True)
            time.sleep(60)
"""


@pytest.mark.parametrize("context", ["forkserver", "spawn"])
def test_workers_end_when_the_process_that_made_their_pool_is_killed(tmp_path, context):
    process = run_script(tmp_path, POOL.format(context))
    workers = printed_pids(process)
    process.kill()
    assert ended(workers)


SUPERVISOR = """
    import sys
    from alhena.recovery.supervisor import supervise

    CHILD = '''
    import os, pathlib, signal, sys, time
    def save(number, frame):
        pathlib.Path("saved-" + os.environ["ALHENA_PROCESS"]).touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    pathlib.Path("pid-" + os.environ["ALHENA_PROCESS"]).write_text(str(os.getpid()))
    time.sleep(60)
    '''

    printed = []

    def watch(running):
        import pathlib
        pids = [path.read_text() for path in sorted(pathlib.Path().glob("pid-*"))]
        if len(pids) == 2 and all(pids) and not printed:
            printed.append(True)
            print(*pids, flush=True)

    supervise([sys.executable, "-c", CHILD], 2, 5, print, watch)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_supervisor_lets_the_children_save(tmp_path, monkeypatch, number, code):
    monkeypatch.chdir(tmp_path)
    process = run_script(tmp_path, SUPERVISOR)
    children = printed_pids(process)
    process.send_signal(number)
    assert process.wait(60) == code
    assert ended(children)
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_children_end_when_their_supervisor_is_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = run_script(tmp_path, SUPERVISOR)
    children = printed_pids(process)
    process.kill()
    assert ended(children)


def test_a_child_whose_parent_ended_before_it_started_does_not_run(tmp_path):
    """As if the parent had been killed between fork and exec: the given process id is not that of the parent."""
    command = [sys.executable, processes.__file__, "1", sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"]
    assert subprocess.run(command).returncode == 1
    assert not (tmp_path / "ran").exists()


def test_a_command_that_does_not_exist_fails():
    process = processes.start_child(["no-such-command"], os.environ)
    assert process.wait(60) == 1


def test_signals_are_recorded_then_a_second_interrupt_ends_the_process(tmp_path):
    script = """
        import os, signal
        from alhena.processes import StopSignals

        before = signal.getsignal(signal.SIGINT)
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.received, stop.exit().code, signal.getsignal(signal.SIGINT)) == (signal.SIGTERM, 143, before)
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            print(stop.exit().code, flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("still running", flush=True)
    """
    process = run_script(tmp_path, script)
    assert process.communicate(timeout=60)[0].split() == ["130"]
    assert process.returncode == 130
