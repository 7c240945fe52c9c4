"""The steps of a quantization: rounded, calibrated, trained. Each contains the ones before it, and its loss is measured.

float ─ round to nearest ─► rounded
      ─ moments of inputs on a few batches ─► calibrated (alhena/compress/calibrate.py)
      ─ training with rounded weights, from the full-precision model ─► qat (alhena/compress/qat.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from alhena.batch import Batch
from alhena.compress.calibrate import is_observed, moments, on_grid
from alhena.compress.distill import Distill, Distillation, Teacher
from alhena.compress.qat import Form, QuantizationAware
from alhena.compress.quantize import OnGrid, quantize_model
from alhena.model import config, model
from alhena.model.quantized.types import type_table
from alhena.model.spec import named
from alhena.schema import bounded
from alhena.tokens.examples.loader import BatchShape
from alhena.train.chunk_loss import Mix
from alhena.train.mixture import Mixture, Phase, Training, open_examples
from alhena.train.optimizer import Optimizer
from alhena.train.step import Taught
from alhena.train.trainer import Folders, train

Method = Literal["round", "calibrated", "qat"]


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized: the method, types that are not those of the table, batches to calibrate on, and steps of training."""

    method: Method = "calibrated"
    types: Mapping[str, str] = field(default_factory=dict)
    batches: int = 8
    # Of the method qat.
    steps: int = 100
    optimizer: Optimizer = Optimizer(learning_rate=1.5e-3, warmup=10, schedule="cosine")

    def __post_init__(self) -> None:
        bounded(self, batches=(1, 10**4), steps=(1, 10**7))

    def training(self, weights: Mapping[str, float], shape: BatchShape) -> Training:
        """Its training on a mixture of sources, from which the batches to calibrate on are read too."""
        return Training((Phase(self.steps, weights),), shape, self.optimizer, seed=2, save_every=50)


@dataclass(frozen=True)
class Source:
    """The full-precision model and its folder."""

    params: model.Params
    c: config.Model
    folder: Path


def _batches(t: Training, examples: Path, number: int) -> Iterator[Batch]:
    """Batches of the training, with another seed than that of the training itself."""
    phases = (replace(t.phases[0], steps=number),)
    mixture = Mixture(open_examples(examples), replace(t, phases=phases, seed=t.seed + 1))
    return (mixture.next() for _ in range(number))


def forms_of(c: config.Model, how: Quantization) -> dict[str, Form]:
    """How each quantized weight is rounded, by name."""
    specs = named(model.weights(c))
    table = type_table(model.weights(c), how.types)
    return {name: Form(entry.bits, specs[name].contracted == -1) for name, entry in table.items() if entry.bits}


def calibrated(source: Source, how: Quantization, t: Training, examples: Path) -> dict[str, OnGrid]:
    """Every quantized weight on the grid, such that its outputs on some batches change little."""
    table, weights = type_table(model.weights(source.c), how.types), named(source.params)
    names = [name for name, entry in table.items() if is_observed(entry)]
    seen = moments(source.params, source.c, _batches(t, examples, how.batches), names)
    forms = forms_of(source.c, how)
    return {name: on_grid(form.oriented(weights[name]), form.bits, seen.get(name)) for name, form in forms.items()}


def trained(
    source: Source, how: Quantization, t: Training, folders: Folders, start: Mapping[str, OnGrid]
) -> model.Params:
    """The quantized model after a quantization-aware training from the calibrated weights, whose scales stay."""
    c, forms = replace(source.c, frozen_rows=0), forms_of(source.c, how)
    teacher = Distillation(Teacher(source.params, source.c), Distill(source.folder, Mix(hard=0.0, soft=1.0)), source.c)
    scales = {name: start[name].scales for name in forms}
    objective = QuantizationAware(teacher, scales, forms)
    # In 32 bits, in which small updates do not vanish; and copies, since the trainer gives the buffers of its params away.
    latent = [
        jnp.array(forms[name].oriented(start[name].values) if name in forms else w, jnp.float32)
        for name, w in named(source.params).items()
    ]
    params = jax.tree.unflatten(jax.tree.structure(source.params), latent)
    params = train(Taught(params, objective), c, t, folders, "quantization-aware training")
    weights = named(params)
    on_grid = {name: OnGrid(form.oriented(weights[name]), scales[name]) for name, form in forms.items()}
    dtypes = jax.tree.map(lambda w: w.dtype, source.params)
    params = jax.tree.map(lambda w, dtype: w.astype(dtype), params, dtypes)
    return quantize_model(params, model.weights(source.c), how.types, on_grid)


def quantized(
    source: Source, how: Quantization, t: Training | None = None, folders: Folders | None = None, every: bool = True
) -> Iterator[tuple[str, model.Params]]:
    """The quantized model after each step up to the method's, by the name of the step; without ``every`` the last one alone.

    ``t`` is the training of the method qat (:meth:`Quantization.training`), and says which examples of the folders are read.
    """
    specs = model.weights(source.c)
    if every or how.method == "round":
        yield "rounded", quantize_model(source.params, specs, how.types)
    if how.method == "round":
        return
    assert t is not None and folders is not None
    on_grid = calibrated(source, how, t, folders.data)
    if every or how.method == "calibrated":
        yield "calibrated", quantize_model(source.params, specs, how.types, on_grid)
    if how.method == "qat":
        yield "qat", trained(source, how, t, folders, on_grid)
