"""Pre-training on a Ray cluster, one process a node:      python deploy/on_ray.py RUN RECIPE [--nodes 16] [--gpus 8]

Every node runs ``alhena pretrain`` as an actor; the first one's address is the coordinator's. When a node is lost, all actors are
stopped and started again, on whichever nodes Ray has; training goes on from the copies in memory of a whole pod that is left, or else
from the last checkpoint. RUN lies on a disk that all nodes share. Needs ``ray`` (not among Alhena's dependencies).
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
    """One process of the training, on a node of its own."""

    def address(self) -> str:
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def train(self, coordinator: str, number: int, of: int, run: str, recipe: str) -> int:
        joined = {"ALHENA_COORDINATOR": coordinator, "ALHENA_PROCESSES": str(of), "ALHENA_PROCESS": str(number)}
        command = [sys.executable, "-m", "alhena.cli", "pretrain", run, "--recipe", recipe]
        return subprocess.run(command, env=os.environ | joined).returncode


def once(nodes: int, gpus: int, run: str, recipe: str) -> bool:
    """All processes until they end, or until the first is lost; whether all ended well."""
    group = ray.util.placement_group([{"CPU": 1, "GPU": gpus}] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    place = PlacementGroupSchedulingStrategy(group)
    actors = [Process.options(num_cpus=1, num_gpus=gpus, scheduling_strategy=place).remote() for _ in range(nodes)]
    try:
        coordinator = ray.get(actors[0].address.remote())
        waiting = [actor.train.remote(coordinator, n, nodes, run, recipe) for n, actor in enumerate(actors)]
        while waiting:
            ended, waiting = ray.wait(waiting)
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
    parser.add_argument("--tries", type=int, default=100)
    given = parser.parse_args()
    ray.init(address="auto")
    if not any(once(given.nodes, given.gpus, given.run, given.recipe) for _ in range(given.tries)):
        sys.exit("the training did not end well; see the processes' output")


if __name__ == "__main__":
    main()
