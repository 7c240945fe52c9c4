"""Sharded = single device: FSDP, tensor parallel, pods and all at once, on eight simulated devices; no weight stack is gathered completely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from alhena.model import model, sharding, spec
from alhena.model.attention.full import Visibility, causal_attention
from alhena.train.loss import LossOptions, weighted_loss
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import initial_state

TOLERANCE = 1e-5  # float32, relative to the largest value


@pytest.fixture(scope="module")
def measured() -> dict:
    root = Path(__file__).parents[2]
    command = [sys.executable, str(Path(__file__).with_name("eight_devices.py"))]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["fsdp", "tensor", "pods"])
def test_loss_and_gradients_equal_those_of_one_device(measured, mesh):
    assert measured[mesh]["loss"] < TOLERANCE
    assert measured[mesh]["gradient"] < TOLERANCE


def test_a_complete_step_equals_that_of_one_device_and_keeps_its_shardings(measured):
    assert measured["step"]["params"] < TOLERANCE < 1e-3 < measured["step"]["moved"]
    assert measured["step"]["optimizer"] < TOLERANCE
    assert measured["step"]["shardings_match"]


@pytest.mark.parametrize("form", ["complete", "sampled"])
def test_a_teacher_and_the_loss_on_its_outputs_equal_those_of_one_device(measured, form):
    assert max(measured[form].values()) < TOLERANCE
    assert len(measured[form]) == 3


def test_no_weight_stack_is_gathered_completely(measured):
    assert [measured[mesh]["gathered"] for mesh in ("fsdp", "tensor", "step")] == [[]] * 3
    assert measured["wrong_rules"]["gathered"]  # a stack sharded along its layers would be
    assert measured["wrong_rules"]["gradient"] < TOLERANCE  # comparing numbers does not show what that costs


def test_every_array_of_the_state_has_logical_axes(tiny):
    params, c = tiny
    specs = model.weights(c)
    state = initial_state(params, c, optimizer(Optimizer(), 10, specs))
    for tree in (params, state):
        axes = spec.logical_axes(tree, specs)
        pairs = jax.tree.leaves(jax.tree.map(lambda leaf, axes: (leaf.ndim, len(axes)), tree, axes))
        assert pairs[::2] == pairs[1::2]
    axes, parts = spec.logical_axes(params, specs), spec.shardings(params, specs)
    assert axes.layers.gate == ("layers", "width", "hidden")
    assert axes.embedding == ("vocabulary", "width")
    assert parts.vision.layers.qkv == jax.sharding.PartitionSpec(None, "data", "model")
    sharded = {name for name, part in spec.named(parts).items() if any(part)}
    assert sharded == {name for name, x in spec.named(params).items() if x.ndim > 1} - _replicated(params)


def _replicated(params) -> set[str]:
    """Matrices that every device has on purpose: positions, depthwise kernels, norm scales of a stack."""
    words = ("norm", "rows", "columns", "depthwise")
    return {name for name in spec.named(params) if any(word in name.split(".")[-1] for word in words)}


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="needs 8 devices"):
        sharding.make_mesh(sharding.Mesh(data=8), jax.devices()[:1])


def test_heads_and_colors_that_cannot_be_sharded_are_refused():
    four = jax.sharding.AbstractMesh((1, 1, 4), ("pod", "data", "model"))
    x, weights = jax.numpy.zeros((2, 8, 6, 8)), jax.numpy.zeros((2, 8))
    ids, options = weights.astype(int), LossOptions("float32", code_factors=(2, 6))
    with jax.sharding.use_abstract_mesh(four):
        with pytest.raises(ValueError, match="6 query heads cannot be sharded over 4 chips"):
            jax.eval_shape(causal_attention, x, x, x, Visibility(ids))
        with pytest.raises(ValueError, match="6 colors of image codes cannot be sharded over 4 devices"):
            jax.eval_shape(lambda x: weighted_loss(x, x[0], ids, weights, options), x[:, :, 0])
