"""The starter on two pods, for which two processes of one machine may stand: alhena launch 2 -- pretrain RUN --recipe two_pods

The rows of a batch are those of two readers, so it is not the starter's own training; it is the same on one pod, on two, and
when one is lost on the way.
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
