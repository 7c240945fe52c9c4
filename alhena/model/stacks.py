"""The weights of one layer out of a stack, inside a scan over the layers.

A scan slices what it is given, all of it in every step. Two kinds of weights it is not given:

    bfloat16   XLA's CPU backend would convert the complete stack to float32 before the loop: the loop slices them itself
    experts    a slice would copy all experts of the layer, of which a token needs a few: without gradients, the experts of all
               layers stay in one stack
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model.linear import slice_stack
from alhena.shapes import Array, Int

BY_SCAN, IN_LOOP, WHOLE = range(3)


@dataclass(frozen=True)
class Stack:
    """A stack of ``decoder.Layers`` in a scan: its leaves, and how each is sliced."""

    structure: Any
    leaves: list[Array]
    how: list[int]

    @classmethod
    def of(cls, layers: Any, unrolled: bool, differentiable: bool, repeats: int) -> Stack:
        """In an unrolled scan every slice is static. The gradient of one layer's experts must not be as large as that of all.

        A stack of more layers than the ``repeats`` of the scan is not copied: the loop slices it.
        """

        def how_sliced(a: Array) -> int:
            return IN_LOOP if (a.dtype == jnp.bfloat16 and not unrolled) or a.shape[0] != repeats else BY_SCAN

        how = jax.tree.map(how_sliced, layers)
        if layers.experts is not None and not differentiable:
            whole = {name: jax.tree.map(lambda _: WHOLE, getattr(how.experts, name)) for name in ("gate", "up", "down")}
            how = replace(how, experts=replace(how.experts, **whole))
        leaves, structure = jax.tree.flatten(layers)
        return cls(structure, leaves, jax.tree.leaves(how))

    def _leaves(self, how: int) -> list[Array]:
        return [leaf for leaf, of_leaf in zip(self.leaves, self.how, strict=True) if of_leaf == how]

    @property
    def scanned(self) -> list[Array]:
        """What the scan slices."""
        return self._leaves(BY_SCAN)

    def layer(self, scanned: list[Array], index: Int[Array, ""]) -> Any:
        """The weights of one layer, from the slices of the scan and its index; experts perhaps of all layers."""
        in_loop = slice_stack(self._leaves(IN_LOOP), index)
        whole = [leaf.reshape(-1, *leaf.shape[2:]) for leaf in self._leaves(WHOLE)]
        sources = tuple(map(iter, (scanned, in_loop, whole)))
        return jax.tree.unflatten(self.structure, [next(sources[how]) for how in self.how])
