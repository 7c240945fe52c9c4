"""Sharding: dimensions of arrays have names (logical axes), and ``RULES`` maps each name to the mesh axes that shard it.

    mesh  pod × data × model          params.layers.gate   ("layers", "width", "hidden")
                                                                │        │         │
       pod   replicas                 RULES                    None    "data"   "model"

Parameters, gradients and optimizer state are sharded over ``data`` (FSDP: ZeRO-3, Rajbhandari et al. 2020) and over ``model`` (tensor
parallel, Shoeybi et al. 2019), and replicated on every pod. The weights of a layer are gathered over ``data`` when the layer runs,
never the complete stack. Between the layers sequences are sharded over ``model`` (sequence parallel, Korthikanti et al. 2022):

    x [batch, length, ·] ─ all-gather length ─ heads or hidden units of this chip ─ reduce-scatter length ─ x [batch, length, ·]

The logical axes of each weight are in its specification (alhena/model/spec.py).

Without a mesh (``jax.set_mesh``, or :func:`use_mesh`) every function here is the identity: one code for one device and for a pod.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from alhena.shapes import Array, Float

Tree = TypeVar("Tree")
Axes = tuple[str | None, ...]
Matmul = Callable[[Array, Any], Array]

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("pod", "data"),
    # of activations between the layers
    "length": "model",
    # of weights only: the width of activations is not sharded
    "width": "data",
    "heads": "model",
    "hidden": "model",
    "vocabulary": "model",
    "layers": None,
    # stacked matrices, while Muon orthogonalizes them
    "matrices": "data",
    # audio chunks: the encoder processes each one alone
    "chunks": ("pod", "data", "model"),
}


@dataclass(frozen=True)
class Mesh:
    """Number of chips along each mesh axis."""

    pod: int = 1
    data: int = 1
    model: int = 1

    @property
    def chips(self) -> int:
        return self.pod * self.data * self.model

    def __str__(self) -> str:
        return ", ".join(f"{name}={n}" for name, n in vars(self).items() if n > 1 or name == "data")


def surviving_mesh(mesh: Mesh, chips: int) -> Mesh:
    """The mesh when only ``chips`` chips are left: fewer pods. Raises ValueError when they are not complete pods.

    >>> surviving_mesh(Mesh(pod=4, data=2, model=2), 12)
    Mesh(pod=3, data=2, model=2)
    """
    each = mesh.data * mesh.model
    if not 0 < chips <= mesh.chips or chips % each:
        raise ValueError(f"{chips} devices are not complete pods of a mesh of {mesh}: use a multiple of {each}")
    return replace(mesh, pod=chips // each)


def make_mesh(shape: Mesh, devices: Any = None) -> jax.sharding.Mesh:
    """A mesh of devices, by default all devices in JAX's order. Raises ValueError when their number does not match."""
    array = np.asarray(jax.devices() if devices is None else devices)
    if array.size != shape.chips:
        raise ValueError(f"a mesh of {shape} needs {shape.chips} devices; there are {array.size}")
    return jax.sharding.Mesh(array.reshape(tuple(vars(shape).values())), tuple(vars(shape)), (AxisType.Auto,) * 3)


def use_mesh(shape: Mesh | None) -> AbstractContextManager:
    """Context manager that sets a mesh of all devices; None: no mesh."""
    return nullcontext() if shape is None else jax.set_mesh(make_mesh(shape))


def _mesh() -> Any:
    """The current mesh; None if there is none, and inside a ``shard_map``, where arrays are local shards."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes else mesh


def has_mesh() -> bool:
    """Whether a mesh is set."""
    return _mesh() is not None


def device() -> AbstractDevice | None:
    """The kind of device of the mesh, which may be abstract (for ahead-of-time compilation); None without a mesh."""
    return jax.sharding.get_abstract_mesh().abstract_device


def partition_spec(axes: Axes) -> PartitionSpec:
    """The PartitionSpec of logical axes, by ``RULES``."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in axes))


def mesh_axis(name: str) -> str:
    """The mesh axis that shards a logical axis, for collectives inside :func:`on_shards`. Raises ValueError unless it is one."""
    axis = RULES[name]
    if not isinstance(axis, str):
        raise ValueError(f"sharding: {name!r} is sharded over {axis}; here it has to be one axis of the mesh")
    return axis


def shard_count(name: str) -> int:
    """Number of shards along a logical axis; 1 without a mesh."""
    mesh, axes = _mesh(), RULES[name]
    if mesh is None or axes is None:
        return 1
    return int(np.prod([mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes)]))


def batch_specs(batch: Any) -> Any:
    """The PartitionSpec of every array of a Batch: only the batch dimension is sharded."""
    return jax.tree.map(lambda x: partition_spec(("batch",) + (None,) * (x.ndim - 1)), batch)


def shard(tree: Tree, parts: Any) -> Tree:
    """Arrays placed on the mesh, sharded by a tree of PartitionSpecs; without a mesh the tree itself."""
    if _mesh() is None:
        return tree
    mesh = jax.sharding.get_mesh()

    def one(x: Array, part: PartitionSpec) -> Array:
        # Of an array on one device of this process, device_put to several processes makes one whose shards cannot be read.
        is_global = isinstance(x, jax.Array) and not x.is_fully_addressable
        return jax.device_put(x if is_global else np.asarray(x), NamedSharding(mesh, part))

    return jax.tree.map(one, tree, parts)


def shard_batch(batch: Tree) -> Tree:
    """The global batch, from the sequences of its own devices that every process has; without a mesh the batch itself."""
    if _mesh() is None:
        return batch
    mesh = jax.sharding.get_mesh()

    def global_array(x: Array, part: PartitionSpec) -> Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, part), np.asarray(x))

    return jax.tree.map(global_array, batch, batch_specs(batch))


def abstract_arrays(tree: Tree, mesh: jax.sharding.Mesh | AbstractMesh, parts: Any) -> Tree:
    """Shapes with shardings, for lowering; ``parts`` is a tree of PartitionSpecs.

    Raises ValueError naming the array when its shape does not divide over the mesh.
    """

    def one(path: tuple[Any, ...], leaf: Any, part: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, part)
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name} {leaf.shape} cannot be sharded as {part} on the mesh {dict(mesh.shape)}: choose axes that divide it"
            ) from None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(one, tree, parts)


def constrain(x: Array, *axes: str | None) -> Array:
    """``x`` with a sharding constraint by its logical axes."""
    return x if _mesh() is None else jax.lax.with_sharding_constraint(x, partition_spec(axes))


def _gather_width(w: Float[Array, "I O"], axis: int, dtype: str) -> Float[Array, "I2 O2"]:
    """Inside :func:`on_shards`: all-gather of a weight's width, in ``dtype``; its gradient is reduce-scattered."""
    return jax.lax.all_gather(w.astype(dtype), mesh_axis("width"), axis=axis, tiled=True)


def _all_gather(x: Float[Array, "B l D"]) -> Float[Array, "B L D"]:
    return jax.lax.all_gather(x, mesh_axis("length"), axis=1, tiled=True)


def reduce_scatter(x: Float[Array, "B L D"]) -> Float[Array, "B l D"]:
    """Inside :func:`on_shards`: sum over chips, sharded by length.

    Sequence by sequence: over any dimension but the first the TPU's compiler emits an all-reduce and a slice.
    """
    scattered = [jax.lax.psum_scatter(sequence, mesh_axis("length"), scatter_dimension=0, tiled=True) for sequence in x]
    return jnp.stack(scattered)


@jax.custom_vjp
def _gather_length(x: Float[Array, "B l D"]) -> Float[Array, "B L D"]:
    """Inside :func:`on_shards`: all-gather of the sequences; the gradient is reduce-scattered."""
    return _all_gather(x)


_gather_length.defvjp(lambda x: (_all_gather(x), None), lambda _, cotangent: (reduce_scatter(cotangent),))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reduce_scatter_length(x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B l D"]:
    """Inside :func:`on_shards`: reduce-scatter of partial results in ``dtype``; the gradient is all-gathered in ``dtype`` too."""
    return reduce_scatter(x.astype(dtype)).astype(x.dtype)


_reduce_scatter_length.defvjp(
    lambda x, dtype: (_reduce_scatter_length(x, dtype), None),
    lambda dtype, _, cotangent: (_all_gather(cotangent.astype(dtype)).astype(cotangent.dtype),),
)


def column_parallel(
    matmul: Matmul, x: Float[Array, "B L D"], weights: tuple[Any, ...], axes: Axes, dtype: str
) -> list[Array]:
    """``x`` times each weight ``[D, O]``; ``axes`` are the logical axes of O. On a mesh a chip has all tokens and its shards of O."""
    if _mesh() is None:
        return [matmul(x, w) for w in weights]

    def local(x: Array, *shards: Array) -> tuple[Array, ...]:
        gathered = _gather_length(x)
        return tuple(matmul(gathered, _gather_width(w, 0, dtype)) for w in shards)

    inputs = (("batch", "length", None), *(("width", axis) for axis in axes))
    return list(on_shards(local, inputs, tuple(("batch", None, axis) for axis in axes))(x.astype(dtype), *weights))


def row_parallel(matmul: Matmul, x: Float[Array, "B L F"], w: Any, dtype: str) -> Float[Array, "B L D"]:
    """``x`` times a weight ``[F, D]``. On a mesh a chip has its shard of F; the partial results are reduce-scattered over length."""
    if _mesh() is None:
        return matmul(x, w)

    def local(x: Array, w: Array) -> Array:
        return _reduce_scatter_length(matmul(x, _gather_width(w, 1, dtype)), dtype)

    return on_shards(local, (("batch", None, "hidden"), ("hidden", "width")), ("batch", "length", None))(x, w)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def replicated(w: Array, gradient_sharding: PartitionSpec) -> Array:
    """A weight replicated to every device; its gradient is sharded."""
    return jax.lax.with_sharding_constraint(w, PartitionSpec())


replicated.defvjp(
    lambda w, gradient_sharding: (replicated(w, gradient_sharding), None),
    lambda gradient_sharding, _, gradient: (jax.lax.with_sharding_constraint(gradient, gradient_sharding),),
)


def on_shards(f: Callable[..., Any], inputs: tuple[Axes, ...], outputs: Any) -> Callable[..., Any]:
    """``shard_map`` of ``f``; without a mesh ``f`` itself.

    ``inputs`` are the logical axes of each argument, ``outputs`` those of the result, or a tuple of those of several results.
    Every mesh axis must shard an output.
    """
    if _mesh() is None:
        return f
    several = bool(outputs) and isinstance(outputs[0], tuple)
    out = tuple(partition_spec(axes) for axes in outputs) if several else partition_spec(outputs)
    # Kernels have no varying-axes types (VMA), so these are not checked; tests compare sharded with single-device results.
    return jax.shard_map(f, in_specs=tuple(partition_spec(axes) for axes in inputs), out_specs=out, check_vma=False)
