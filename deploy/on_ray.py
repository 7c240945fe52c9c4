"""Pre-training on a Ray cluster, one process per node:      python deploy/on_ray.py RUN RECIPE [--nodes 16] [--gpus 8]

Every node runs ``alhena pretrain`` as an actor; the address of the first is the coordinator's. When a node is lost, all actors are stopped
and started again, on any nodes that Ray has. Training resumes from the in-memory checkpoints of a complete pod, or else from the last
checkpoint on disk. RUN is on a disk that all nodes share. Needs ``ray`` (not among Alhena's dependencies).
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@ray.remote(max_restarts=0)
class Process:
    """One process of the training, alone on its node."""

    def address(self) -> str:
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def train(self, coordinator: str, process: int, processes: int, run: str, recipe: str) -> int:
        variables = {
            "ALHENA_COORDINATOR": coordinator,
            "ALHENA_PROCESSES": str(processes),
            "ALHENA_PROCESS": str(process),
        }
        command = [sys.executable, "-m", "alhena.cli", "pretrain", run, "--recipe", recipe]
        return subprocess.run(command, env=os.environ | variables).returncode


def run_once(nodes: int, gpus: int, run: str, recipe: str) -> bool:
    """Runs all processes until they end or one is lost; returns whether all succeeded."""
    group = ray.util.placement_group([{"CPU": 1, "GPU": gpus}] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group)
    actors = [Process.options(num_cpus=1, num_gpus=gpus, scheduling_strategy=strategy).remote() for _ in range(nodes)]
    try:
        coordinator = ray.get(actors[0].address.remote())
        running = [actor.train.remote(coordinator, n, nodes, run, recipe) for n, actor in enumerate(actors)]
        while running:
            ended, running = ray.wait(running)
            if ray.get(ended[0]):
                return False
    except ray.exceptions.RayActorError as lost:
        print(f"a node was lost: {lost}", file=sys.stderr)
        return False
    finally:
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("recipe")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--max-starts", type=int, default=100)
    given = parser.parse_args()
    ray.init(address="auto")
    if not any(run_once(given.nodes, given.gpus, given.run, given.recipe) for _ in range(given.max_starts)):
        sys.exit("the training failed; see the output of the processes")


if __name__ == "__main__":
    main()
