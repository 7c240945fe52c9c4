"""One process of a training; ``test_processes.py`` runs several at a time.

python one_process.py MODEL DATA OUT [KILL …]      KILL: process:step, or process:step:lost, which also deletes its copies in memory
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from alhena.model.sharding import Mesh, surviving_mesh
from alhena.model.storage.weights import load_model
from alhena.recovery.memory_checkpoint import memory_folder
from alhena.recovery.supervisor import initialize_distributed
from alhena.tokens.examples.padding import BatchShape
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer
from alhena.train.trainer import Folders, Hooks, train

PHASES = (Phase(6, {"a": 1.0, "b": 1.0}), Phase(4, {"b": 1.0}))


def main() -> None:
    initialize_distributed()
    model, data, out = map(Path, sys.argv[1:4])
    t = Training(
        PHASES,
        BatchShape(4, 128, 96, 4),
        Optimizer(warmup=2),
        save_every=4,
        log_every=2,
        mesh=surviving_mesh(Mesh(pod=2), jax.device_count()),
        data_shards=2,
        memory_checkpoint_every=1,
    )

    def kill_if_due(step: int) -> None:
        for kill in sys.argv[4:]:
            process, kill_step, *lost = kill.split(":")
            marker = out / f"killed-{kill_step}"
            if jax.process_index() == int(process) and step == int(kill_step) and not marker.exists():
                marker.touch()
                if lost:
                    shutil.rmtree(memory_folder(out, int(process)))
                os.kill(os.getpid(), signal.SIGKILL)

    params = train(*load_model(model), t, Folders(data, out), "processes", Hooks(on_step=kill_if_due))
    if jax.process_index() == 0:
        np.savez(out / "params.npz", *map(np.asarray, jax.tree.leaves(params)))


if __name__ == "__main__":
    main()
