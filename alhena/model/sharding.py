"""Sharding: every dimension of every array has a name, and one table says along which mesh axis a name is cut.

    mesh  pod × data × model          params.layers.gate   ("layers", "width", "hidden")
                                                                │        │         │
       pod   whole copies             TABLE                    None    "data"   "model"

Parameters, gradients and optimizer state are cut over ``data`` (FSDP: ZeRO-3, Rajbhandari et al. 2020) and over ``model`` (tensor
parallel, Shoeybi et al. 2019), and copied to every pod. A layer's weights are gathered over ``data`` when the layer runs, never the
stack. Between the layers a row's tokens are cut over ``model`` (sequence parallel, Korthikanti et al. 2022):

    x [batch, length, ·] ─ gather length ─ heads or hidden units of this chip ─ sum and scatter length ─ x [batch, length, ·]

The logical axes of each weight stand in its specification (alhena/model/spec.py).

Without a mesh (``jax.set_mesh``, or :func:`on`) every function here gives back what it was given: one code for a laptop and a pod.
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
Product = Callable[[Array, Any], Array]

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("pod", "data"),
    "length": "model",  # tokens of a row, between the layers
    "width": "data",  # what a layer reads and writes, in weights only: activations keep it whole
    "heads": "model",
    "hidden": "model",
    "vocabulary": "model",
    "layers": None,
    "matrices": "data",  # of a stack, while they are orthogonalized
    "chunks": ("pod", "data", "model"),  # of sound: each for itself
}


@dataclass(frozen=True)
class Mesh:
    """How many chips along each axis."""

    pod: int = 1
    data: int = 1
    model: int = 1

    @property
    def chips(self) -> int:
        return self.pod * self.data * self.model

    def __str__(self) -> str:
        return ", ".join(f"{name}={n}" for name, n in vars(self).items() if n > 1 or name == "data")


def surviving_mesh(mesh: Mesh, chips: int) -> Mesh:
    """The mesh of the pods that are left when only so many chips are. Raises ValueError when they are not whole pods.

    >>> with_pods_left(Mesh(pod=4, data=2, model=2), 12)
    Mesh(pod=3, data=2, model=2)
    """
    each = mesh.data * mesh.model
    if not 0 < chips <= mesh.chips or chips % each:
        raise ValueError(f"{chips} devices are no whole pods of a mesh of {mesh}: leave a multiple of {each}")
    return replace(mesh, pod=chips // each)


def make_mesh(shape: Mesh, devices: Any = None) -> jax.sharding.Mesh:
    """A mesh of real (or simulated) devices; ``devices`` in an order of one's own, by default this process's."""
    found = np.asarray(jax.devices() if devices is None else devices)
    if found.size != shape.chips:
        raise ValueError(f"a mesh of {shape} needs {shape.chips} devices; there are {found.size}")
    return jax.sharding.Mesh(found.reshape(tuple(vars(shape).values())), tuple(vars(shape)), (AxisType.Auto,) * 3)


def use_mesh(shape: Mesh | None) -> AbstractContextManager:
    """``with on(shape): …`` runs what is inside on a mesh of all devices; None: on one device."""
    return nullcontext() if shape is None else jax.set_mesh(make_mesh(shape))


def _mesh() -> Any:
    """The current mesh, or None: also inside a shard_map, where every chip is alone with its shard."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes else mesh


def has_mesh() -> bool:
    """Whether a mesh is set."""
    return _mesh() is not None


def device() -> AbstractDevice | None:
    """What the mesh is made of, be it one that is only compiled for; None without a mesh."""
    return jax.sharding.get_abstract_mesh().abstract_device


def partition_spec(axes: Axes) -> PartitionSpec:
    """The table, looked up."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in axes))


def mesh_axis(name: str) -> str:
    """The mesh axis along which a dimension of that name is cut, for collectives inside :func:`on_shards`."""
    cut = RULES[name]
    if not isinstance(cut, str):
        raise ValueError(f"sharding: {name!r} is cut over {cut}; here it has to be one axis of the mesh")
    return cut


def shard_count(name: str) -> int:
    """Over how many chips a dimension of that name is cut; 1 without a mesh."""
    mesh, cut = _mesh(), RULES[name]
    if mesh is None or cut is None:
        return 1
    return int(np.prod([mesh.shape[axis] for axis in ((cut,) if isinstance(cut, str) else cut)]))


def batch_specs(batch: Any) -> Any:
    """The PartitionSpec of every array of a Batch: rows are cut, what is in a row is not."""
    return jax.tree.map(lambda x: partition_spec(("batch",) + (None,) * (x.ndim - 1)), batch)


def shard(tree: Tree, parts: Any) -> Tree:
    """Arrays put where the mesh wants them, cut as a tree of PartitionSpecs says."""
    if _mesh() is None:
        return tree
    mesh = jax.sharding.get_mesh()
    return jax.tree.map(lambda x, part: jax.device_put(x, NamedSharding(mesh, part)), tree, parts)


def shard_batch(batch: Tree) -> Tree:
    """A batch of which every process brings the rows of its own devices, as one; without a mesh the batch itself."""
    if _mesh() is None:
        return batch
    mesh = jax.sharding.get_mesh()
    whole = lambda x, part: jax.make_array_from_process_local_data(NamedSharding(mesh, part), np.asarray(x))  # noqa: E731
    return jax.tree.map(whole, batch, batch_specs(batch))


def abstract_arrays(tree: Tree, mesh: jax.sharding.Mesh | AbstractMesh, parts: Any) -> Tree:
    """Shapes with shardings, for lowering; ``parts`` is a tree of PartitionSpecs. Raises ValueError where something does not divide."""

    def one(path: tuple[Any, ...], leaf: Any, part: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, part)
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"{where} {leaf.shape} cannot be cut as {part} on the mesh {dict(mesh.shape)}: choose axes that divide it"
            ) from None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(one, tree, parts)


def constrain(x: Array, *axes: str | None) -> Array:
    """``x``, cut along the named axes."""
    return x if _mesh() is None else jax.lax.with_sharding_constraint(x, partition_spec(axes))


def _fetch(w: Array, side: int, dtype: str) -> Array:
    """Inside :func:`on_shards`: a weight's width put together, in ``dtype``; going back, its gradient is summed and cut again."""
    return jax.lax.all_gather(w.astype(dtype), mesh_axis("width"), axis=side, tiled=True)


def _gather(x: Float[Array, "B l D"]) -> Float[Array, "B L D"]:
    return jax.lax.all_gather(x, mesh_axis("length"), axis=1, tiled=True)


def scatter(x: Float[Array, "B L D"]) -> Float[Array, "B l D"]:
    """Summed over chips and cut over tokens, row by row: over any dimension but the first the TPU's compiler does not scatter, but
    sums everything everywhere and cuts afterwards."""
    some = [jax.lax.psum_scatter(row, mesh_axis("length"), scatter_dimension=0, tiled=True) for row in x]
    return jnp.stack(some)


@jax.custom_vjp
def _join(x: Float[Array, "B l D"]) -> Float[Array, "B L D"]:
    """Inside :func:`on_shards`: rows put together; their gradient is summed and cut again."""
    return _gather(x)


_join.defvjp(lambda x: (_gather(x), None), lambda _, slopes: (scatter(slopes),))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum(x: Float[Array, "B L D"], dtype: str) -> Float[Array, "B l D"]:
    """Inside :func:`on_shards`: partial results summed in ``dtype`` as they are cut over a row's tokens; the gradient is gathered in it."""
    return scatter(x.astype(dtype)).astype(x.dtype)


_sum.defvjp(
    lambda x, dtype: (_sum(x, dtype), None),
    lambda dtype, _, slopes: (_gather(slopes.astype(dtype)).astype(slopes.dtype),),
)


def column_parallel(
    product: Product, x: Float[Array, "B L D"], weights: tuple[Any, ...], sides: Axes, dtype: str
) -> list[Array]:
    """``x`` times each of the weights ``[D, side]``. On a mesh every chip takes the whole row times its part of the sides."""
    if _mesh() is None:
        return [product(x, w) for w in weights]

    def local(x: Array, *parts: Array) -> tuple[Array, ...]:
        row = _join(x)
        return tuple(product(row, _fetch(w, 0, dtype)) for w in parts)

    inputs = (("batch", "length", None), *(("width", side) for side in sides))
    return list(on_shards(local, inputs, tuple(("batch", None, side) for side in sides))(x.astype(dtype), *weights))


def row_parallel(product: Product, x: Float[Array, "B L F"], w: Any, dtype: str) -> Float[Array, "B L D"]:
    """``x`` times a weight ``[F, D]``. On a mesh every chip has its part of F; the parts are summed, and cut over the row's tokens."""
    if _mesh() is None:
        return product(x, w)
    local = lambda x, w: _sum(product(x, _fetch(w, 1, dtype)), dtype)  # noqa: E731
    return on_shards(local, (("batch", None, "hidden"), ("hidden", "width")), ("batch", "length", None))(x, w)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def replicated(w: Array, gradient_sharding: PartitionSpec) -> Array:
    """A weight gathered to every device; its gradient is sharded again."""
    return jax.lax.with_sharding_constraint(w, PartitionSpec())


replicated.defvjp(
    lambda w, cut: (replicated(w, cut), None),
    lambda cut, _, gradient: (jax.lax.with_sharding_constraint(gradient, cut),),
)


def on_shards(f: Callable[..., Any], inputs: tuple[Axes, ...], outputs: Any) -> Callable[..., Any]:
    """``f`` on every chip's own shards, cut along the named axes (``outputs``: of one array, or a tuple of several); else ``f`` itself.

    Every mesh axis must cut something that comes out.
    """
    if _mesh() is None:
        return f
    several = bool(outputs) and isinstance(outputs[0], tuple)
    out = tuple(partition_spec(axes) for axes in outputs) if several else partition_spec(outputs)
    # Kernels carry no types of what varies over the mesh, so these are not checked; sharded = single device is tested instead.
    return jax.shard_map(f, in_specs=tuple(partition_spec(axes) for axes in inputs), out_specs=out, check_vma=False)
