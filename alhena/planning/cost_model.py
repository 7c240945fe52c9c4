"""Analytical cost model of a training step: for machines without their compiler, and to rank meshes before compiling.

    per chip   state + gradients + layer inputs saved by remat + one layer's activations, or the loss   bytes of HBM
               6·N·D and attention, plus what remat computes twice                                      FLOPs
               weights and gradients over ``data``, tokens over ``model``, gradients between pods       bytes sent

Nothing overlaps in this model: a step takes the sum of its compute, link and network times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.model.transformer.embedding import embedding_rows
from alhena.planning.hardware import Machine
from alhena.tokens.examples.padding import BatchShape
from alhena.train.loss import MESH_CHUNK
from alhena.train.muon import ITERATIONS


@dataclass(frozen=True)
class Costs:
    """Costs of one training step on one chip."""

    hbm: dict[str, float]  # peak bytes by purpose
    flops: float
    within_pod: dict[str, float]  # bytes sent within the pod, by collective
    between_pods: dict[str, float]  # bytes sent to other pods
    seconds: dict[str, float] = field(default_factory=dict)  # "compute and memory", "links", "network" and "step"

    @property
    def bytes(self) -> float:
        return sum(self.hbm.values())


@dataclass(frozen=True)
class Sizes:
    """Parameter counts of the model's parts."""

    embedding: int
    layers: int
    vision: int
    audio: int
    state: float  # bytes of parameters and optimizer state on one chip of the mesh

    @property
    def all(self) -> int:
        return self.embedding + self.layers + self.vision + self.audio


def score_flops(c: config.Model, shape: BatchShape) -> float:
    """FLOPs of the decoder's causal attention in one step, forward and backward, masked scores not counted."""
    d = c.decoder
    local_layers = 0 if d.window is None else d.layers - d.layers // d.global_every
    keys = (d.layers - local_layers) * shape.tokens / 2 + local_layers * min(d.window or 0, shape.tokens / 2)
    return 3 * 4 * shape.batch_size * shape.tokens * keys * d.heads * d.head_dim


def model_flops(c: config.Model, sizes: Sizes, shape: BatchShape) -> float:
    """Model FLOPs of one step over all chips, forward and backward, without recomputation (PaLM, appendix B)."""
    tokens = shape.batch_size * shape.tokens
    inputs: list[tuple[float, int]] = [(tokens, sizes.layers + sizes.embedding)]
    inputs += [(shape.batch_size * shape.patches, sizes.vision)] if c.vision else []
    inputs += [(shape.batch_size * shape.chunks * c.audio.chunk / 4, sizes.audio)] if c.audio else []
    return 6 * sum(n * parameters for n, parameters in inputs) + score_flops(c, shape)


@dataclass(frozen=True)
class _Shards:
    """What one chip of a mesh holds: sizes that :func:`estimate` needs more than once."""

    tokens: float  # of one group of ``model`` chips
    embedding: float  # values of the embedding, before sharding over ``data``
    stacks: float  # values of all stacks of layers, before sharding over ``data``
    matrices: int  # that Muon orthogonalizes, of each stack of the decoder; some are padding


def _memory(c: config.Model, sizes: Sizes, shards: _Shards, mesh: Mesh) -> dict[str, float]:
    """Peak bytes of HBM by purpose."""
    d, data, model, tokens = c.decoder, mesh.data, mesh.model, shards.tokens
    layer = sizes.layers / d.layers / model
    activations = (3 * d.hidden + 4 * d.heads * d.head_dim) / model
    # The backward pass of a layer holds its activations in float32 and in bf16, and their gradients too.
    backward = 2 * 2 * layer + tokens * (8 * activations + 16 * d.width)
    return {
        "parameters and optimizer": sizes.state,
        "gradients": 4 * sizes.all / (data * model),
        "saved by remat": 2 * d.layers * tokens / model * d.width,
        "one layer, or the loss": max(backward, 6 * shards.embedding + MESH_CHUNK * 10 * c.vocabulary / model),
    }


def _communication(d: config.Decoder, shards: _Shards, mesh: Mesh) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes that a chip sends over ``data`` and over ``model``, by collective."""
    over_data_share, over_model_share = (mesh.data - 1) / mesh.data, (mesh.model - 1) / mesh.model
    stacks, embedding, matrices = shards.stacks, shards.embedding, shards.matrices
    # Weights: gathered in bf16 forward and backward, gradients scattered once. Tokens, twice a layer in each of three passes (forward,
    # recomputed forward, backward): gathered and scattered in bf16.
    over_data = {
        "all-gather": (4 * stacks + 6 * embedding) * over_data_share,
        "reduce-scatter": (2 * stacks + 8 * embedding) * over_data_share,
    }
    # Muon: each chip of ``data`` takes complete matrices of every stack; both directions.
    over_data |= {"all-to-all": 8 * stacks * matrices / d.layers * over_data_share}
    over_model = dict.fromkeys(
        ("all-gather", "reduce-scatter"), 12 * d.layers * shards.tokens * d.width * over_model_share
    )
    over_model |= {"all-reduce": ITERATIONS * 5 * matrices * 8 * d.width**2 * over_model_share}
    return over_data, over_model


def estimate(c: config.Model, sizes: Sizes, shape: BatchShape, mesh: Mesh, machine: Machine) -> Costs:
    """Costs of a step with remat and bf16 matmuls on a mesh."""
    d, data, model = c.decoder, mesh.data, mesh.model
    shards = _Shards(
        tokens=shape.batch_size * shape.tokens / (mesh.pod * data),
        embedding=embedding_rows(c.vocabulary, c.code_factors) / model * d.width,
        stacks=(sizes.layers + sizes.vision + sizes.audio) / model,
        matrices=math.ceil(d.layers / data),
    )
    over_data, over_model = _communication(d, shards, mesh)
    within_pod = {kind: over_data.get(kind, 0.0) + over_model.get(kind, 0.0) for kind in over_data | over_model}
    between = {"all-reduce": 2 * 4 * sizes.all / (data * model) * (mesh.pod - 1) / mesh.pod} if mesh.pod > 1 else {}
    needed = model_flops(c, sizes, shape) / mesh.chips
    scores = score_flops(c, shape) / mesh.chips
    # The layers' forward pass runs twice, the loss once; attention kernels recompute scores backward (splash attention: twice).
    flops = (needed - scores) * 4 / 3 - 2 * shards.tokens / model * sizes.embedding
    flops += scores * (11 if machine.is_tpu else 9) / 6
    long_sides = (3 * d.hidden + 2 * d.heads * d.head_dim) / model  # of a layer's five matrices
    flops += ITERATIONS * shards.matrices * (4 * d.width**2 * long_sides + 5 * 2 * d.width**3)
    links = sum(over_data.values()) / machine.link_speed(data) + sum(over_model.values()) / machine.link_speed(model)
    seconds = {
        "compute and memory": flops / machine.chip.flops,
        "links": links,
        "network": sum(between.values()) / machine.chip.network,
    }
    memory = _memory(c, sizes, shards, mesh)
    return Costs(memory, flops, within_pod, between, seconds | {"step": sum(seconds.values())})
