"""Quantization-aware training (QAT): the model is trained as it will be rounded, from a teacher (Jacob et al. 2018; Gemma 3, 2025).

    trained weights, 32 bits ─ rounded to the grid ─► forward and backward pass ─► gradients to the weights of 32 bits

The gradient passes the rounding as if it were not there (straight-through). Training begins with the calibrated weights, whose scales
stay, so what is trained is exactly what is stored. It is an objective of the trainer (alhena/train/objective.py) around that of a
distillation: checkpoints, resuming and progress are those of every training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.batch import Batch
from alhena.compress import grid
from alhena.files import fingerprint
from alhena.model import config, model
from alhena.model.quantized.rounding import Bits
from alhena.model.spec import named
from alhena.shapes import Array, Float
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.train.loss import LossSums
from alhena.train.objective import LossFunction, Objective


@dataclass(frozen=True)
class Form:
    """How one weight is rounded: bits, and whether it is ``[out, in]``."""

    bits: Bits
    transposed: bool

    def oriented(self, w: Array) -> Array:
        """The weight as the grid has it, ``[*layers, I, O]``; and such a weight as the model has it."""
        return jnp.swapaxes(w, -1, -2) if self.transposed else w


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def straight_through(w: Float[Array, "*w"], scales: Float[Array, "*layers G O"], form: Form) -> Float[Array, "*w"]:
    """The weight rounded to its grid, with the gradient of the weight itself."""
    return form.oriented(grid.rounded(form.oriented(w), scales, form.bits))


straight_through.defvjp(
    lambda w, scales, form: (straight_through(w, scales, form), jnp.zeros_like(scales)),
    lambda form, zeros, cotangent: (cotangent, zeros),
)


def fake_quantized(params: Any, scales: Mapping[str, Array], forms: Mapping[str, Form]) -> Any:
    """The params with every weight that has scales rounded."""
    leaves = [straight_through(w, scales[n], forms[n]) if n in scales else w for n, w in named(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@dataclass(frozen=True)
class RoundedLoss:
    """The loss of a distillation, of the rounded weights. Its constants are the scales and those of the distillation."""

    loss: LossFunction
    forms: tuple[tuple[str, Form], ...]

    def __call__(
        self, params: model.Params, c: config.Model, batch: Batch, outputs: Any, constants: tuple[Any, Any]
    ) -> tuple[Float[Array, ""], LossSums]:
        scales, rest = constants
        return self.loss(fake_quantized(params, scales, dict(self.forms)), c, batch, outputs, rest)


@dataclass(frozen=True)
class QuantizationAware:
    """The objective of a quantization-aware training: that of the ``teacher``, with weights rounded by these scales."""

    teacher: Objective
    scales: Mapping[str, Array]
    forms: Mapping[str, Form]

    @property
    def identity(self) -> str:
        digests = {name: sha256(np.asarray(scales).tobytes()).hexdigest() for name, scales in self.scales.items()}
        return fingerprint("quantization-aware", self.teacher.identity, sorted(self.forms.items()), digests)

    @property
    def loss(self) -> RoundedLoss:
        return RoundedLoss(self.teacher.loss, tuple(self.forms.items()))

    def constants(self) -> tuple[Mapping[str, Array], Any]:
        return dict(self.scales), self.teacher.constants()

    def outputs(self, batch: Batch, sharded: Batch) -> Any:
        return self.teacher.outputs(batch, sharded)

    def losses(self, sources: Mapping[str, Examples], shape: BatchShape) -> dict[str, float]:
        return self.teacher.losses(sources, shape)
