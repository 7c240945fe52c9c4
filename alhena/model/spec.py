"""One specification per weight: shape, logical axes, initializer, optimizer group, weight decay, whether it is quantized.

    decoder.weights(c).gate = WeightSpec(shape  [layers, D, F], axes ("layers", "width", "hidden"), Normal(key 4), "muon", decayed, 4-bit)

A module declares each of its weights once, in its function ``weights(c)``: the module's own dataclass with a WeightSpec where an
array will be, and None where this configuration has no such weight. All else derives from that tree:

    init        random arrays              groups, decay_mask   what the optimizer does with each
    shapes      shapes alone               shardings, constrain PartitionSpecs of params, gradients and optimizer states
    names       names in files             contracted           which weights ``compress.quantize`` makes 4-bit

A new weight is a field of the dataclass and a line in ``weights``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from alhena.model import sharding
from alhena.shapes import Array, Float

Tree = TypeVar("Tree")
Initializer = Callable[[Array, tuple[int, ...]], Array]  # of the module's key and the weight's shape


def normal(key: Array, *shape: int, gain: float = 1.0) -> Float[Array, " ..."]:
    """Normal values for a matrix ``[…, in, out]`` with variance gain² / in."""
    return gain * jax.random.normal(key, shape, jnp.float32) / np.sqrt(shape[-2])


@dataclass(frozen=True)
class Normal:
    """:func:`normal` values, drawn with the module's key of that number. No two weights of a module share a number."""

    key: int
    gain: float = 1.0

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        return normal(jax.random.fold_in(key, self.key), *shape, gain=self.gain)


@dataclass(frozen=True)
class Constant:
    value: float = 0.0

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jnp.full(shape, self.value, jnp.float32)


@dataclass(frozen=True)
class WeightSpec:
    """What there is to know about a weight before it exists. Raises ValueError for axes that are not those of its shape.

    >>> WeightSpec((4, 8), ("width", "hiden"), Normal(0), "muon", decay=True)
    Traceback (most recent call last):
    ValueError: a weight of shape (4, 8): no logical axis is named 'hiden'; there are batch, length, width, heads, hidden, \
vocabulary, layers, matrices, chunks
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # a name of sharding.TABLE for each dimension; None: replicated along it
    initializer: Initializer
    group: Literal["muon", "adam"]
    decay: bool  # weight decay
    contracted: int | None = None  # dimension that a matmul sums over: quantized along it. None: stays as it is
    scope: tuple[int, ...] = ()  # numbers of the keys of the modules around it, outermost first

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ValueError(f"a weight of shape {self.shape} has {len(self.axes)} logical axes {self.axes}")
        for name in self.axes:
            if name is not None and name not in sharding.RULES:
                known = ", ".join(sharding.RULES)
                raise ValueError(
                    f"a weight of shape {self.shape}: no logical axis is named {name!r}; there are {known}"
                )
        if self.group == "muon" and len(self.shape) < 2:
            raise ValueError(f"a weight of shape {self.shape} is no matrix: Muon cannot train it")
        if self.group not in ("muon", "adam"):
            raise ValueError(f"a weight of shape {self.shape}: optimizer group {self.group!r}; there are muon and adam")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.float32)


# The fields of a module's dataclass are annotated with what they hold in use, arrays; hence these functions promise Any.


def matrix(
    key: int, shape: tuple[int, int], axes: tuple[str | None, str | None], gain: float = 1.0, quantize: bool = False
) -> Any:
    """A matrix ``[in, out]`` that a linear layer multiplies by: Muon trains it, with weight decay."""
    return WeightSpec(shape, axes, Normal(key, gain), "muon", decay=True, contracted=-2 if quantize else None)


def vector(width: int, value: float = 0.0) -> Any:
    """A norm's scale (stored as an offset from one) or a bias: small, so every device has all of it."""
    return WeightSpec((width,), (None,), Constant(float(value)), "adam", decay=False)


def stacked(n: int, specs: Tree) -> Tree:
    """The weights of ``n`` layers, stacked along a first dimension."""
    return jax.tree.map(lambda s: replace(s, shape=(n, *s.shape), axes=("layers", *s.axes)), specs)


def within(key: int, specs: Tree) -> Tree:
    """The weights of a module inside another one, which gives it its key of that number."""
    return jax.tree.map(lambda s: replace(s, scope=(key, *s.scope)), specs)


def init(key: Array, specs: Tree) -> Tree:
    """Random weights, those that a tree of specifications describes."""

    def one(s: WeightSpec) -> Array:
        module_key = key
        for number in s.scope:
            module_key = jax.random.fold_in(module_key, number)
        return s.initializer(module_key, s.shape)

    return jax.tree.map(one, specs)


def shapes(specs: Tree) -> Tree:
    """The weights as shapes alone."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), specs)


def groups(specs: Tree) -> Tree:
    """Which optimizer trains each weight: "muon" or "adam"."""
    return jax.tree.map(lambda s: s.group, specs)


def decay_mask(specs: Tree) -> Tree:
    """Which weights decay."""
    return jax.tree.map(lambda s: s.decay, specs)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of dataclasses by dotted name, in order: the names under which weights are stored.

    >>> named({"gate": 1, "biases": {"up": 2}})
    {'biases.up': 2, 'gate': 1}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def logical_axes(tree: Any, specs: Any) -> Any:
    """Logical axes of every array of params, or of what holds trees like them (gradients, optimizer states, training states).

    What mirrors no weight (the count of steps, the last losses) is small and replicated. Raises ValueError for an array inside
    params that no specification describes, and for a tree without params.
    """
    params_type, declared = type(specs), named(specs)
    is_params = lambda x: isinstance(x, params_type)  # noqa: E731
    if not any(map(is_params, jax.tree.leaves(tree, is_leaf=is_params))):
        raise ValueError(f"sharding: there is no {params_type.__name__} in a tree of type {type(tree).__name__}")

    def of_weight(path: tuple[Any, ...], leaf: Any) -> tuple[str | None, ...]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in declared:
            raise ValueError(
                f"sharding: {name} {leaf.shape} has no specification: declare it in weights(c) of its module"
            )
        if tuple(leaf.shape) != declared[name].shape:
            raise ValueError(f"sharding: {name} is {leaf.shape}, its specification says {declared[name].shape}")
        return declared[name].axes

    def of_part(part: Any) -> Any:
        return jax.tree_util.tree_map_with_path(of_weight, part) if is_params(part) else (None,) * np.ndim(part)

    return jax.tree.map(of_part, tree, is_leaf=is_params)


def shardings(tree: Any, specs: Any) -> Any:
    """The PartitionSpec of every array of params, or of what holds trees like them."""

    def one(_: Any, axes: tuple[str | None, ...]) -> PartitionSpec:
        return sharding.partition_spec(axes)

    return jax.tree.map(one, tree, logical_axes(tree, specs))


def constrain(tree: Tree, specs: Any) -> Tree:
    """Params, or what holds trees like them, sharded as the specifications say; without a mesh the tree itself."""
    if not sharding.has_mesh():
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings(tree, specs))


def gathered(layer: Tree, specs: Tree, dtype: str) -> Tree:
    """One layer's weights replicated and in ``dtype``, for the encoders, which shard patches and chunks instead.

    ``specs`` are those of the whole stack of layers.
    """
    if not sharding.has_mesh():
        return layer

    def one(w: Array, s: WeightSpec) -> Array:
        return w if w.ndim < 2 else sharding.replicated(w.astype(dtype), sharding.partition_spec(s.axes[1:]))

    return jax.tree.map(one, layer, specs)
