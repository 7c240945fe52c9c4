"""What a training step costs, by arithmetic alone: for machines whose compiler is not at hand, and to rank meshes before one is compiled.

    per chip   state + gradients + what remat keeps + one layer at work, or the loss       bytes of HBM
               6·N·D and attention, again for what is computed twice                      FLOPs
               weights gathered and gradients scattered over ``data``, tokens over ``model``, gradients between pods      bytes sent

Nothing is overlapped here: a step takes the sum of its products, its links and its network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from alhena.model import config
from alhena.model.embedding import embedding_rows
from alhena.model.sharding import Mesh
from alhena.planning.hardware import Machine
from alhena.tokens.loader import BatchShape
from alhena.train.loss import MESH_CHUNK
from alhena.train.muon import ITERATIONS


@dataclass(frozen=True)
class Costs:
    """Of one chip and one step."""

    hbm: dict[str, float]  # bytes at the peak, by what they are for
    flops: float
    within_pod: dict[str, float]  # bytes sent within the pod, by collective
    between_pods: dict[str, float]  # bytes sent to other pods
    seconds: dict[str, float] = field(default_factory=dict)  # "products and memory", "links", "network" and "step"

    @property
    def bytes(self) -> float:
        return sum(self.hbm.values())


@dataclass(frozen=True)
class Sizes:
    """Parameters by part, as counted by ``jax.eval_shape``."""

    embedding: int
    layers: int
    vision: int
    audio: int
    state: float  # bytes of parameters and optimizer on one chip of the mesh

    @property
    def all(self) -> int:
        return self.embedding + self.layers + self.vision + self.audio


def score_flops(c: config.Model, shape: BatchShape) -> float:
    """Products of attention that a step needs in the decoder: forward and twice that backward, of the half of the scores that count."""
    d = c.decoder
    near = 0 if d.window is None else d.layers - d.layers // d.global_every
    keys = (d.layers - near) * shape.tokens / 2 + near * min(d.window or 0, shape.tokens / 2)
    return 3 * 4 * shape.batch_size * shape.tokens * keys * d.heads * d.head_dim


def model_flops(c: config.Model, sizes: Sizes, shape: BatchShape) -> float:
    """Products that a step needs, whoever computes them: forward and twice that backward (PaLM, appendix B)."""
    tokens = shape.batch_size * shape.tokens
    seen: list[tuple[float, int]] = [(tokens, sizes.layers + sizes.embedding)]
    seen += [(shape.batch_size * shape.patches, sizes.vision)] if c.vision else []
    seen += [(shape.batch_size * shape.chunks * c.audio.chunk / 4, sizes.audio)] if c.audio else []
    return 6 * sum(n * parameters for n, parameters in seen) + score_flops(c, shape)


def estimate(c: config.Model, sizes: Sizes, shape: BatchShape, mesh: Mesh, where: Machine) -> Costs:
    """Costs of a step with remat and bf16 products on a mesh."""
    d, data, model = c.decoder, mesh.data, mesh.model
    tokens = shape.batch_size * shape.tokens / (mesh.pod * data)  # of one group of ``model`` chips
    table = embedding_rows(c.vocabulary, c.code_factors) / model * d.width
    layer = sizes.layers / d.layers / model
    wide = (3 * d.hidden + 4 * d.heads * d.head_dim) / model
    # A layer going back holds each of its numbers in float32 and in bf16, and its slope too.
    going_back = 2 * 2 * layer + tokens * (8 * wide + 16 * d.width)
    hbm = {
        "parameters and optimizer": sizes.state,
        "gradients": 4 * sizes.all / (data * model),
        "kept by remat": 2 * d.layers * tokens / model * d.width,
        "one layer, or the loss": max(going_back, 6 * table + MESH_CHUNK * 10 * c.vocabulary / model),
    }
    share, part = (data - 1) / data, (model - 1) / model
    stacks = (sizes.layers + sizes.vision + sizes.audio) / model
    # Weights: gathered in bf16 forward and backward, gradients scattered once. Tokens, twice a layer in each of three passes (forward,
    # forward again, backward): gathered and scattered in bf16.
    over_data = {"all-gather": (4 * stacks + 6 * table) * share, "reduce-scatter": (2 * stacks + 8 * table) * share}
    # Muon: each chip of ``data`` takes whole matrices of every stack, some of them padding; five stacks in the decoder.
    mine = math.ceil(d.layers / data)
    over_data |= {"all-to-all": 8 * stacks * mine / d.layers * share}  # there and back
    over_model = dict.fromkeys(("all-gather", "reduce-scatter"), 12 * d.layers * tokens * d.width * part)
    over_model |= {"all-reduce": ITERATIONS * 5 * mine * 8 * d.width**2 * part}
    inside = {kind: over_data.get(kind, 0.0) + over_model.get(kind, 0.0) for kind in over_data | over_model}
    between = {"all-reduce": 2 * 4 * sizes.all / (data * model) * (mesh.pod - 1) / mesh.pod} if mesh.pod > 1 else {}
    needed = model_flops(c, sizes, shape) / mesh.chips
    scores = score_flops(c, shape) / mesh.chips
    # The layers' forward pass runs twice, the loss once; kernels know no scores when they go back (splash attention: twice over).
    flops = (needed - scores) * 4 / 3 - 2 * tokens / model * sizes.embedding + scores * (11 if where.is_tpu else 9) / 6
    sides = (3 * d.hidden + 2 * d.heads * d.head_dim) / model  # the longer sides of the five
    flops += ITERATIONS * mine * (4 * d.width**2 * sides + 5 * 2 * d.width**3)
    links = sum(over_data.values()) / where.link_speed(data) + sum(over_model.values()) / where.link_speed(model)
    seconds = {
        "products and memory": flops / where.chip.flops,
        "links": links,
        "network": sum(between.values()) / where.chip.network,
    }
    return Costs(hbm, flops, inside, between, seconds | {"step": sum(seconds.values())})
