"""Goodput of two processes of which one is killed at intervals, and a bitwise comparison with an undisturbed training.

python benchmarks/bench_recovery.py [RUN] [--minutes 36] [--first 400] [--every 900] [--check 120]      → results/recovery.json

The smoke recipe's model trains on RUN's encoded examples, for longer than the measurement, as two processes of one device each, joined by
jax.distributed over loopback. After ``first`` seconds, and then at intervals of ``every`` seconds, the processes in turn get SIGKILL. All
time since the first start counts; useful is the time in steps that were not repeated (alhena/recovery/goodput.py). Afterwards the same
training runs undisturbed for ``check`` seconds: the fingerprints of each step (batch, loss, gradient norm, parameters, moments) must be
bitwise equal.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any

from alhena.files import read_lines, write_json
from alhena.recovery.fingerprints import machine_description, read_fingerprints
from alhena.recovery.goodput import goodput
from alhena.recovery.supervisor import supervise

RESULT = Path(__file__).with_name("results") / "recovery.json"
# In steps: copies then cost about as much as repeated steps (Young 1974).
MEMORY_CHECKPOINT_EVERY = 50


class _TimeIsUp(Exception):
    """Ends the supervised training after the time of the measurement."""


def work(run_folder: Path, out: Path) -> None:
    """One process of the training."""
    import jax

    from alhena.model import model
    from alhena.model.sharding import Mesh, use_mesh
    from alhena.recovery.supervisor import initialize_distributed
    from alhena.tokens.encode import Encoder
    from alhena.train.mixture import Phase
    from alhena.train.trainer import Folders, train
    from recipes import starter

    initialize_distributed()
    # On accelerators all processes share the keys of the compilation cache. On CPU each has its own, but JAX lets only process 0 write.
    # Here all write, so that a restart costs as much as on accelerators. The backend must know the process id first.
    assert jax.process_count() == 2
    jax._src.distributed.global_state.process_id = 0
    run = starter.smoke()
    long = replace(run.pretrain, phases=(Phase(1_000_000, starter.TASKS),), save_every=2000, log_every=20)
    t = replace(long, mesh=Mesh(pod=2), data_shards=2, memory_checkpoint_every=MEMORY_CHECKPOINT_EVERY)
    c = run.model(Encoder.load(run_folder / "tokens").vocabulary)
    with use_mesh(t.mesh):
        params = model.init(jax.random.key(t.seed), c)
    train(params, c, t, Folders(run_folder / "tokens" / "train", out), "recovery")


def drive(run_folder: Path, out: Path, seconds: float, kills: Sequence[float]) -> list[str]:
    """Runs two processes for ``seconds`` and kills them in turn at the times ``kills``; returns the supervisor's messages."""
    began, due, messages = time.monotonic(), list(enumerate(kills)), []

    def watch(running: Sequence[Popen]) -> None:
        now = time.monotonic() - began
        if due and now > due[0][1]:
            turn, _ = due.pop(0)
            os.kill(running[turn % len(running)].pid, signal.SIGKILL)
        if now > seconds:
            raise _TimeIsUp

    command = [sys.executable, __file__, str(run_folder), "--work", str(out)]
    try:
        supervise(command, 2, len(kills) + 1, messages.append, watch)
    except _TimeIsUp:
        return messages
    raise RuntimeError(f"the training ended by itself: {messages}")


def restarts(out: Path) -> list[dict[str, float]]:
    """For each restart: repeated steps, and seconds by cause from the last entry of the ledger to the end of the first new step."""
    lines, records = read_lines(out / "ledger.jsonl"), []
    for n, line in enumerate(lines):
        if line["what"] == "stopped" and n:
            after = next((later for later in lines[n:] if later["what"] == "compile"), None)
            if after:
                parts = {b["what"]: round(b["at"] - a["at"], 2) for a, b in itertools.pairwise(lines[n - 1 : n + 3])}
                records.append(parts | {"repeated_steps": lines[n - 1]["step"] - line["step"]})
    return records


def compare(disturbed: Path, undisturbed: Path) -> dict[str, Any]:
    """Steps that both trainings did, and those whose fingerprints differ."""
    ours, theirs = read_fingerprints(disturbed)[0], read_fingerprints(undisturbed)[0]
    both = sorted(set(ours) & set(theirs))
    differing = [step for step in both if ours[step].first_difference(theirs[step])]
    return {"steps": max(ours), "steps_compared": len(both), "steps_that_differ": differing}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The disturbed and the undisturbed training, in a temporary folder."""
    seconds = 60 * given.minutes
    kills = list(itertools.takewhile(lambda t: t < seconds, itertools.count(given.first, given.every)))
    with TemporaryDirectory() as scratch:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            "ALHENA_MEMORY": f"/dev/shm/alhena-bench-{os.getpid()}",
        }
        disturbed, undisturbed = Path(scratch) / "disturbed", Path(scratch) / "undisturbed"
        try:
            messages = drive(given.run, disturbed, seconds, kills)
            measured = goodput(disturbed)
            shutil.rmtree(os.environ["ALHENA_MEMORY"])
            drive(given.run, undisturbed, given.check, [])
        finally:
            shutil.rmtree(os.environ["ALHENA_MEMORY"], ignore_errors=True)
        print(measured)
        return {
            "command": "python benchmarks/bench_recovery.py " + " ".join(sys.argv[1:]),
            "machine": machine_description() | {"load_average": os.getloadavg(), "nice": os.nice(0)},
            "kills_at_seconds": kills,
            "supervisor": messages,
            "goodput": round(measured.share, 4),
            "elapsed_seconds": round(measured.elapsed, 1),
            "seconds": {"useful": round(measured.useful, 1)} | {k: round(v, 1) for k, v in measured.other.items()},
            "restarts": restarts(disturbed),
            "memory_checkpoint_every": MEMORY_CHECKPOINT_EVERY,
            **compare(disturbed, undisturbed),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", default=Path("runs/starter"), help="a run folder with encoded examples"
    )
    parser.add_argument("--work", type=Path, help="internal: be one process of the training that writes here")
    parser.add_argument("--minutes", type=float, default=36, help="length of the disturbed training")
    parser.add_argument("--first", type=float, default=400, help="seconds until the first kill")
    parser.add_argument("--every", type=float, default=900, help="seconds between kills")
    parser.add_argument("--check", type=float, default=120, help="seconds of the undisturbed training")
    given = parser.parse_args()
    if given.work:
        work(given.run, given.work)
        return
    result = measure(given)
    write_json(RESULT, result)
    differing = result["steps_that_differ"] or "none"
    print(f"{result['steps_compared']} steps compared with an undisturbed run; that differ: {differing}")


if __name__ == "__main__":
    main()
