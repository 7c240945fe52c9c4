"""What quantization-aware training sees is what is stored; gradients pass the rounding; a training moves the model to its teacher."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.compress import grid
from alhena.compress.calibrate import on_grid
from alhena.compress.qat import Form, fake_quantized, straight_through
from alhena.compress.quantize import OnGrid, quantize_model
from alhena.compress.steps import Quantization, Source, quantized
from alhena.model import model
from alhena.model.linear import dense
from alhena.model.quantized.types import type_table
from alhena.model.spec import named
from alhena.tokens.examples.loader import BatchShape
from alhena.train.optimizer import Optimizer
from alhena.train.trainer import Folders
from tests.compress.small import dequantized, small_model


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("form", [Form(4, False), Form(8, True), Form(4, True)])
def test_a_weight_in_training_is_exactly_the_stored_one_and_its_gradient_passes(form):
    w = random(2, 64, 20)
    scales = on_grid(w, form.bits).scales
    stored = grid.encoded(w, scales, form.bits, form.transposed)
    seen = np.swapaxes(w, -1, -2) if form.transposed else w
    rounded = straight_through(seen, scales, form)
    np.testing.assert_array_equal(rounded, dense(stored))
    cotangent = random(*seen.shape, seed=1)
    gradient = jax.grad(lambda x: (straight_through(x, scales, form) * cotangent).sum())(jnp.asarray(seen))
    np.testing.assert_allclose(gradient, cotangent, rtol=1e-6)


def test_the_rounded_model_is_the_stored_model():
    params, c, _ = small_model()
    specs, types = model.weights(c), {"vision": "float", "audio": "float"}
    forms, scales, latent = {}, {}, {}
    for name, entry in type_table(specs, types).items():
        if entry.bits:
            forms[name] = Form(entry.bits, named(specs)[name].contracted == -1)
            w = forms[name].oriented(named(params)[name])
            scales[name] = on_grid(w, entry.bits).scales
            latent[name] = OnGrid(w, scales[name])
    stored = dequantized(quantize_model(params, specs, types, latent))
    assert len(forms) == 8
    jax.tree.map(np.testing.assert_array_equal, fake_quantized(params, scales, forms), stored)


def test_every_step_is_on_the_grid_and_the_training_resumes_to_the_same_weights(tiny, data, tmp_path):
    params, c = tiny
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "weights").write_bytes(b"of the full-precision model")
    # Large steps, so that some values reach another point of the grid.
    optimizer = Optimizer(learning_rate=0.1, warmup=1)
    how = Quantization("qat", steps=3, batches=1, optimizer=optimizer)
    t = how.training({"a": 1.0, "b": 1.0}, BatchShape(2, 128, 96, 4))
    source = Source(params, c, tmp_path / "teacher")
    steps = dict(quantized(source, how, t, Folders(data, tmp_path / "run")))
    assert [*steps] == ["rounded", "calibrated", "qat"]
    calibrated, trained = steps["calibrated"], steps["qat"]
    for name in ("query", "down"):
        before, after = getattr(calibrated.layers, name), getattr(trained.layers, name)
        np.testing.assert_array_equal(before.scales, after.scales)
    values = [jax.tree.leaves(p.layers) for p in (calibrated, trained)]
    assert any(a.dtype == jnp.uint8 and not np.array_equal(a, b) for a, b in zip(*values, strict=True))
    assert trained.embedding.bits == 8 and not np.array_equal(trained.norm, params.norm)
    # The trained model is that of the last checkpoint: without it in memory, the same command gives the same.
    again = dict(quantized(source, how, t, Folders(data, tmp_path / "run")))["qat"]
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    # With other scales, of another type or calibrated on other batches, it would be another training.
    for other in (replace(how, types={"layers.down": "int8"}), replace(how, batches=2)):
        with pytest.raises(ValueError, match="another"):
            dict(quantized(source, other, t, Folders(data, tmp_path / "run"), every=False))
    # Without a measurement of every step the last one is computed alone.
    alone = [*quantized(source, replace(how, method="round"), every=False)]
    assert [name for name, _ in alone] == ["rounded"]
