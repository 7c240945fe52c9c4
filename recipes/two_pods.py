"""The starter on a mesh of two pods; on one machine: alhena launch 2 -- pretrain RUN --recipe two_pods

A batch is packed from two data shards, so the batches differ from the starter's. They are the same on one pod, on two, and when a pod
is lost during training.
"""

from __future__ import annotations

from dataclasses import replace

from alhena.model.sharding import Mesh
from alhena.recipe import Recipe
from recipes import starter


def run() -> Recipe:
    return _on_pods(starter.run())


def smoke() -> Recipe:
    return _on_pods(starter.smoke())


def _on_pods(run: Recipe) -> Recipe:
    return replace(run, pretrain=replace(run.pretrain, mesh=Mesh(pod=2), data_shards=2, memory_checkpoint_every=5))
