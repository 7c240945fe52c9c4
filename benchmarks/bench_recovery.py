"""Goodput of two processes of which one is killed again and again, and whether the disturbed training is the undisturbed one.

python benchmarks/bench_recovery.py RUN [--minutes 36] [--first 400] [--every 900] [--check 120]      → results/recovery.json

The smoke recipe's model and batches on RUN's encoded examples, without an end, on two processes of one device each, joined by
jax.distributed over loopback. After ``first`` seconds and then every so many a process, by turns, gets SIGKILL. All time from the
first start on counts; useful is only the time in steps that were not done again (alhena/recovery/goodput.py). After it, for ``check``
seconds, the same training undisturbed: step by step the fingerprints (batch, loss, gradient norm, parameters, moments) have to be
the same bits.
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

from alhena.files import read_lines, write_json
from alhena.recovery.fingerprints import machine_description, read_fingerprints
from alhena.recovery.goodput import goodput
from alhena.recovery.supervisor import supervise

RESULT = Path(__file__).with_name("results") / "recovery.json"
COPY_EVERY = 50  # steps: what a copy costs and what a loss does again are about as much (Young 1974)


class _TimeIsUp(Exception):
    """Ends the supervised training, which has no end of its own here."""


def work(run_folder: Path, out: Path) -> None:
    """One of the processes."""
    import jax

    from alhena.model import model
    from alhena.model.sharding import Mesh, use_mesh
    from alhena.recovery.supervisor import initialize_distributed
    from alhena.tokens.encode import Encoder
    from alhena.train.mixture import Phase
    from alhena.train.trainer import Folders, train
    from recipes import starter

    initialize_distributed()
    # Of accelerators all processes load what process 0 compiled. On CPU each has cache keys of its own, but JAX lets only process 0
    # write: here, so that a restart costs what it costs there, the others may too.
    assert jax.process_count() == 2  # by now the backend knows who is who
    jax._src.distributed.global_state.process_id = 0
    run = starter.smoke()
    endless = replace(run.pretrain, phases=(Phase(1_000_000, starter.TASKS),), save_every=2000, log_every=20)
    t = replace(endless, mesh=Mesh(pod=2), data_shards=2, memory_checkpoint_every=COPY_EVERY)
    c = run.model(Encoder.load(run_folder / "tokens").vocabulary)
    with use_mesh(t.mesh):
        params = model.init(jax.random.key(t.seed), c)
    train(params, c, t, Folders(run_folder / "tokens" / "train", out), "recovery")


def drive(run_folder: Path, out: Path, seconds: float, kills: Sequence[float]) -> list[str]:
    """Two processes for so long, killed by turns at these times; what the supervisor told."""
    began, due, told = time.monotonic(), list(enumerate(kills)), []

    def watch(running: Sequence[Popen]) -> None:
        now = time.monotonic() - began
        if due and now > due[0][1]:
            turn, _ = due.pop(0)
            os.kill(running[turn % len(running)].pid, signal.SIGKILL)
        if now > seconds:
            raise _TimeIsUp

    command = [sys.executable, __file__, str(run_folder), "--work", str(out)]
    try:
        supervise(command, 2, len(kills) + 1, told.append, watch)
    except _TimeIsUp:
        return told
    raise RuntimeError(f"the training ended by itself: {told}")


def restarts(out: Path) -> list[dict[str, float]]:
    """Of each start after the first: steps that were lost, and seconds from the last sign of life to the first new step's end."""
    lines, found = read_lines(out / "ledger.jsonl"), []
    for n, line in enumerate(lines):
        if line["what"] == "stopped" and n:
            after = next((later for later in lines[n:] if later["what"] == "compile"), None)
            if after:
                parts = {b["what"]: round(b["at"] - a["at"], 2) for a, b in itertools.pairwise(lines[n - 1 : n + 3])}
                found.append(parts | {"steps_done_again": lines[n - 1]["step"] - line["step"]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--minutes", type=float, default=36)
    parser.add_argument("--first", type=float, default=400)
    parser.add_argument("--every", type=float, default=900)
    parser.add_argument("--check", type=float, default=120)
    given = parser.parse_args()
    if given.work:
        work(given.run, given.work)
        return
    seconds = 60 * given.minutes
    kills = list(itertools.takewhile(lambda t: t < seconds, itertools.count(given.first, given.every)))
    with TemporaryDirectory() as scratch:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            "ALHENA_MEMORY": f"/dev/shm/alhena-bench-{os.getpid()}",
        }
        try:
            disturbed, undisturbed = Path(scratch) / "disturbed", Path(scratch) / "undisturbed"
            told = drive(given.run, disturbed, seconds, kills)
            found, again = goodput(disturbed), restarts(disturbed)
            shutil.rmtree(os.environ["ALHENA_MEMORY"])
            drive(given.run, undisturbed, given.check, [])
        finally:
            shutil.rmtree(os.environ["ALHENA_MEMORY"], ignore_errors=True)
        ours, theirs = read_fingerprints(disturbed)[0], read_fingerprints(undisturbed)[0]
        both = sorted(set(ours) & set(theirs))
        result = {
            "command": "python benchmarks/bench_recovery.py " + " ".join(sys.argv[1:]),
            "machine": machine_description() | {"load_average": os.getloadavg(), "nice": os.nice(0)},
            "kills_at_seconds": kills,
            "supervisor": told,
            "goodput": round(found.share, 4),
            "elapsed_seconds": round(found.elapsed, 1),
            "seconds": {"useful": round(found.useful, 1)} | {k: round(v, 1) for k, v in found.other.items()},
            "restarts": again,
            "steps": max(ours),
            "copy_every_steps": COPY_EVERY,
            "steps_compared": len(both),
            "steps_that_differ": [step for step in both if ours[step].first_difference(theirs[step])],
        }
    write_json(RESULT, result)
    print(found)
    print(f"{len(both)} steps compared with an undisturbed run; that differ: {result['steps_that_differ'] or 'none'}")


if __name__ == "__main__":
    main()
