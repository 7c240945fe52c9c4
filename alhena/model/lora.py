"""LoRA: a weight that is frozen, and a trained update of low rank beside it (Hu et al. 2021); over quantized weights QLoRA (Dettmers et al. 2023).

    y = x · base + (x · down) · up · scale          base [I, O] of any dtype or quantized, down [I, r], up [r, O]

``up`` is zero at first, so that nothing changes before the first step. Adapters are the trained part: a tree of its own, which is
trained and stored while the model is neither changed nor copied.

    adapters = spec.init(key, weights(model.weights(c), rank, scale))
    loss(attach(params, adapters))            the model with the updates beside its weights
    merged(attach(params, adapters))          the same model with ordinary weights
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from alhena.model.quantized.layout import Quantized, dequantize
from alhena.model.spec import Constant, Normal, WeightSpec, named
from alhena.shapes import Array, Float, pytree

Tree = TypeVar("Tree")
# The linear layers of a decoder layer: those that the adapters of other libraries know by these names too.
TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


@pytree
@dataclass(frozen=True)
class Lora:
    """A frozen weight with its update."""

    base: Array | Quantized
    down: Float[Array, "*layers I rank"]
    up: Float[Array, "*layers rank O"]
    scale: float = field(metadata={"static": True})


@pytree
@dataclass(frozen=True)
class Update:
    """The trained part of a :class:`Lora`."""

    down: Float[Array, "*layers I rank"]
    up: Float[Array, "*layers rank O"]


@pytree
@dataclass(frozen=True)
class Adapters:
    """Updates, the dotted name of the weight of each (``layers.query``), and the factor of all of them."""

    updates: tuple[Update, ...]
    names: tuple[str, ...] = field(metadata={"static": True})
    scale: float = field(metadata={"static": True})

    @property
    def by_name(self) -> dict[str, Update]:
        return dict(zip(self.names, self.updates, strict=True))

    @property
    def rank(self) -> int:
        return self.updates[0].down.shape[-1]


def weights(specs: Any, rank: int, scale: float, targets: tuple[str, ...] = TARGETS) -> Adapters:
    """Specifications of the adapters of a model, from its own: updates of the decoder's linear layers with these names.

    Raises ValueError when the decoder has none of them, or the rank is larger than one of them.
    """
    updates: dict[str, Any] = {}
    for number, (name, s) in enumerate(named(specs).items()):
        path = name.split(".")
        # Layers of the decoder or of one position of its blocks, not the experts or the per-layer inputs inside them.
        if path[0] != "layers" or path[-1] not in targets or any(not part.isdigit() for part in path[1:-1]):
            continue
        *layers, inner, outer = s.shape
        if rank > min(inner, outer):
            raise ValueError(f"LoRA of rank {rank}: {name} is {inner} × {outer}; choose a smaller rank")
        *layer_axes, in_axis, out_axis = s.axes
        down = WeightSpec((*layers, inner, rank), (*layer_axes, in_axis, None), Normal(number), "adam", decay=False)
        up = WeightSpec((*layers, rank, outer), (*layer_axes, None, out_axis), Constant(0.0), "adam", decay=False)
        updates[name] = Update(down, up)  # type: ignore[arg-type]
    if not updates:
        raise ValueError(f"LoRA: this decoder has no linear layer named {' or '.join(targets)}")
    return Adapters(tuple(updates.values()), tuple(updates), scale)


def weights_like(adapters: Adapters, specs: Any) -> Adapters:
    """Specifications of existing adapters of a model with these specifications."""
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in adapters.names))
    return weights(specs, adapters.rank, adapters.scale, targets)


def is_weight(x: Any) -> bool:
    """Whether a node of a tree of params is one weight, so that trees of weights can be mapped: ``is_leaf=is_weight``."""
    return isinstance(x, Quantized | Lora)


def attach(params: Tree, adapters: Adapters) -> Tree:
    """The params with a :class:`Lora` in place of each adapted weight. Raises ValueError for an update of another weight."""
    updates = adapters.by_name
    missing = set(updates)

    def one(path: Any, w: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in missing:
            return w
        missing.remove(name)
        update = updates[name]
        return Lora(w, update.down, update.up, adapters.scale)

    out = jax.tree_util.tree_map_with_path(one, params, is_leaf=is_weight)
    if missing:
        raise ValueError(f"the adapters are of another model: it has no weight {min(missing)}")
    return out


def merge(w: Lora) -> Float[Array, "*layers I O"]:
    """The ordinary weight with the update added, in the dtype of the base (float32 over a quantized one)."""
    base = dequantize(w.base) if isinstance(w.base, Quantized) else w.base
    update = jnp.einsum("...ir,...ro->...io", w.down, w.up, precision="highest") * w.scale
    return (base.astype(jnp.float32) + update).astype(base.dtype)


def merged(params: Tree) -> Tree:
    """The params with ordinary weights in place of every :class:`Lora`."""
    return jax.tree.map(lambda w: merge(w) if isinstance(w, Lora) else w, params, is_leaf=is_weight)
