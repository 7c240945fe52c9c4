"""The weights of one layer out of a stack, inside a scan over the layers.

A scan slices what it is given, all of it in every step. Four kinds of weights it is not given:

    bfloat16   XLA's CPU backend would convert the complete stack to float32 before the loop: the loop slices them itself
    quantized  the kernel takes the complete stack and the index of the layer
    matrices   without gradients, of float weights: the same, where there is a kernel for them
    experts    a slice would copy all experts of the layer, of which a token needs a few: without gradients, the experts of all
               layers stay in one stack
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model.attention import native
from alhena.model.linear import InStack, Plain, slice_stack
from alhena.model.quantized.layout import Quantized, flat, is_quantized
from alhena.shapes import Array, Int

BY_SCAN, IN_LOOP, WHOLE, BY_INDEX = range(4)


def _as_one_stack(w: Plain) -> Plain:
    """The experts of all layers in one stack."""
    return flat(w) if isinstance(w, Quantized) else w.reshape(-1, *w.shape[2:])


@dataclass(frozen=True)
class Stack:
    """A stack of ``decoder.Layers`` in a scan: its leaves, and how each is sliced."""

    structure: Any
    leaves: list[Plain]
    how: list[int]

    @classmethod
    def of(cls, layers: Any, unrolled: bool, differentiable: bool, repeats: int) -> Stack:
        """In an unrolled scan every slice is static. The gradient of one layer's experts must not be as large as that of all.

        A stack of more layers than the ``repeats`` of the scan is not copied: the loop slices it.
        """

        def how_sliced(a: Plain) -> int:
            if isinstance(a, Quantized):
                return IN_LOOP
            if a.ndim == 3 and not differentiable and native.multiplies(a):
                return BY_INDEX
            return IN_LOOP if (a.dtype == jnp.bfloat16 and not unrolled) or a.shape[0] != repeats else BY_SCAN

        how = jax.tree.map(how_sliced, layers, is_leaf=is_quantized)
        if layers.experts is not None and not differentiable:
            whole = {name: jax.tree.map(lambda _: WHOLE, getattr(how.experts, name)) for name in ("gate", "up", "down")}
            how = replace(how, experts=replace(how.experts, **whole))
        leaves, structure = jax.tree.flatten(layers, is_leaf=is_quantized)
        return cls(structure, leaves, jax.tree.leaves(how))

    def _leaves(self, how: int) -> list[Any]:
        return [leaf for leaf, of_leaf in zip(self.leaves, self.how, strict=True) if of_leaf == how]

    @property
    def scanned(self) -> list[Any]:
        """What the scan slices."""
        return self._leaves(BY_SCAN)

    def layer(self, scanned: list[Array], index: Int[Array, ""]) -> Any:
        """The weights of one layer, from the slices of the scan and its index; experts perhaps of all layers."""
        in_loop = slice_stack(self._leaves(IN_LOOP), index)
        whole = [_as_one_stack(leaf) for leaf in self._leaves(WHOLE)]
        by_index = [InStack(jnp.asarray(leaf), jnp.asarray(index)) for leaf in self._leaves(BY_INDEX)]
        sources: tuple[Iterator[Any], ...] = (iter(scanned), iter(in_loop), iter(whole), iter(by_index))
        return jax.tree.unflatten(self.structure, [next(sources[how]) for how in self.how])
