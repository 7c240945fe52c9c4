"""Weight specifications: shape, logical axes, initializer, optimizer group, weight decay and quantization of each weight.

    decoder.weights(c).gate = WeightSpec([layers, D, F], ("layers", "width", "hidden"), Normal(4), "muon", decay=True, contracted=-2)

A module declares each of its weights once, in its function ``weights(c)``. It returns the module's dataclass with a WeightSpec in
place of each array, and None where this configuration has no such weight. Everything else derives from that tree:

    init        random arrays              groups, decay_mask   optimizer and weight decay of each
    shapes      ShapeDtypeStructs          shardings, constrain PartitionSpecs of params, gradients and optimizer states
    named       names in files             contracted           dimension along which ``compress.quantize`` quantizes

A new weight is a field of the dataclass and a line in ``weights``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from alhena.model import sharding
from alhena.shapes import Array, Float

Tree = TypeVar("Tree")
# Called with the module's key and the weight's shape.
Initializer = Callable[[Array, tuple[int, ...]], Array]


def normal(key: Array, *shape: int, gain: float = 1.0) -> Float[Array, " ..."]:
    """Normal values for a matrix ``[…, in, out]`` with variance gain² / in."""
    return gain * jax.random.normal(key, shape, jnp.float32) / np.sqrt(shape[-2])


@dataclass(frozen=True)
class Normal:
    """Initializer by :func:`normal`, whose key is number ``key`` of the module. Weights of a module have different numbers."""

    key: int
    gain: float = 1.0

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        return normal(jax.random.fold_in(key, self.key), *shape, gain=self.gain)


@dataclass(frozen=True)
class Constant:
    """Initializer with one value."""

    value: float = 0.0

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jnp.full(shape, self.value, jnp.float32)


@dataclass(frozen=True)
class WeightSpec:
    """Specification of one weight. Raises ValueError for axes that do not fit the shape.

    >>> WeightSpec((4, 8), ("width", "hiden"), Normal(0), "muon", decay=True)
    Traceback (most recent call last):
    ValueError: a weight of shape (4, 8): no logical axis is named 'hiden'; there are batch, length, width, heads, hidden, \
vocabulary, layers, matrices, chunks
    """

    shape: tuple[int, ...]
    # A name of sharding.RULES for each dimension; None: replicated along it.
    axes: tuple[str | None, ...]
    initializer: Initializer
    # The optimizer: "muon" or "adam".
    group: str
    # Whether weight decay applies.
    decay: bool
    # The dimension that a matmul contracts and along which the weight is quantized; None: not quantized.
    contracted: int | None = None
    # Key numbers of the enclosing modules, outermost first.
    scope: tuple[int, ...] = ()

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
        """Number of parameters."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.float32)


# These functions return Any, since the fields of a module's dataclass are annotated as arrays.


def matrix(
    key: int, shape: tuple[int, int], axes: tuple[str | None, str | None], gain: float = 1.0, quantize: bool = False
) -> Any:
    """A matrix ``[in, out]`` that a linear layer multiplies by: Muon trains it, with weight decay."""
    return WeightSpec(shape, axes, Normal(key, gain), "muon", decay=True, contracted=-2 if quantize else None)


def vector(width: int, value: float = 0.0) -> Any:
    """A norm's scale (stored as an offset from one) or a bias: small, hence replicated."""
    return WeightSpec((width,), (None,), Constant(float(value)), "adam", decay=False)


def stacked(n: int, specs: Tree) -> Tree:
    """Specifications of the weights of ``n`` layers, stacked along a new first dimension."""
    return jax.tree.map(lambda s: replace(s, shape=(n, *s.shape), axes=("layers", *s.axes)), specs)


def within(key: int, specs: Tree) -> Tree:
    """Specifications of the weights of a submodule, whose key is number ``key`` of the enclosing module."""
    return jax.tree.map(lambda s: replace(s, scope=(key, *s.scope)), specs)


def init(key: Array, specs: Tree) -> Tree:
    """Random weights for a tree of specifications."""

    def init_weight(s: WeightSpec) -> Array:
        module_key = key
        for number in s.scope:
            module_key = jax.random.fold_in(module_key, number)
        return s.initializer(module_key, s.shape)

    return jax.tree.map(init_weight, specs)


def shapes(specs: Tree) -> Tree:
    """A tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), specs)


def groups(specs: Tree) -> Tree:
    """The optimizer of each weight: "muon" or "adam"."""
    return jax.tree.map(lambda s: s.group, specs)


def decay_mask(specs: Tree) -> Tree:
    """Whether weight decay applies to each weight."""
    return jax.tree.map(lambda s: s.decay, specs)


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of dataclasses by dotted name, in order. Files store weights under these names.

    >>> named({"gate": 1, "biases": {"up": 2}})
    {'biases.up': 2, 'gate': 1}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _quantized_axes(s: WeightSpec, ndim: int) -> tuple[str | None, ...]:
    """Logical axes of the packed values or of the scales of a quantized weight: stack, tiles of outputs, groups of inputs."""
    inner, outer = s.axes[:-3:-1] if s.contracted == -1 else s.axes[-2:]
    axes = (*s.axes[:-2], outer, inner)
    return (*axes, *(None,) * (ndim - len(axes)))


def logical_axes(tree: Any, specs: Any) -> Any:
    """Logical axes of every array of params, or of trees that contain such trees: gradients, optimizer and training states.

    Other arrays (step count, recent losses) are small and replicated. Raises ValueError for an array inside params that has no
    specification, and for a tree without params.
    """
    params_type, declared = type(specs), named(specs)
    is_params = lambda x: isinstance(x, params_type)  # noqa: E731
    if not any(map(is_params, jax.tree.leaves(tree, is_leaf=is_params))):
        raise ValueError(f"sharding: there is no {params_type.__name__} in a tree of type {type(tree).__name__}")

    def is_quantized_part(name: str) -> bool:
        weight, _, part = name.rpartition(".")
        return part in ("packed", "scales") and name not in declared and weight in declared

    def of_weight(path: tuple[Any, ...], leaf: Any) -> tuple[str | None, ...]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if is_quantized_part(name):
            return _quantized_axes(declared[name.rpartition(".")[0]], leaf.ndim)
        if name not in declared:
            raise ValueError(
                f"sharding: {name} {leaf.shape} has no specification: declare it in weights(c) of its module"
            )
        if tuple(leaf.shape) != declared[name].shape:
            raise ValueError(f"sharding: {name} is {leaf.shape}, its specification is {declared[name].shape}")
        return declared[name].axes

    def of_part(part: Any) -> Any:
        return jax.tree_util.tree_map_with_path(of_weight, part) if is_params(part) else (None,) * np.ndim(part)

    return jax.tree.map(of_part, tree, is_leaf=is_params)


def shardings(tree: Any, specs: Any) -> Any:
    """The PartitionSpec of every array of params, or of trees that contain such trees."""

    def partition_spec(_: Any, axes: tuple[str | None, ...]) -> PartitionSpec:
        return sharding.partition_spec(axes)

    return jax.tree.map(partition_spec, tree, logical_axes(tree, specs))


def constrain(tree: Tree, specs: Any) -> Tree:
    """Params, or trees that contain such trees, with sharding constraints; without a mesh the tree itself."""
    if not sharding.has_mesh():
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings(tree, specs))


def gathered(layer: Tree, specs: Tree, dtype: str) -> Tree:
    """The weights of one layer replicated and in ``dtype``, for the encoders, which shard patches and chunks instead.

    ``specs`` are those of the stacked layers. Quantized weights, which have no gradient, are unchanged.
    """
    if not sharding.has_mesh():
        return layer

    def gather(s: WeightSpec, w: Any) -> Any:
        if not isinstance(w, Array) or w.ndim < 2:
            return w
        return sharding.replicated(w.astype(dtype), sharding.partition_spec(s.axes[1:]))

    return jax.tree.map(gather, specs, layer)
