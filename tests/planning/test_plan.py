"""Planning: every model of the family lowers on the mesh of its recipe; the recorded plans fit; the cost model agrees with them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from alhena.files import read_json
from alhena.model import config, model
from alhena.model.sharding import Mesh
from alhena.planning import plan
from alhena.planning.cost_model import estimate, model_flops
from alhena.planning.hardware import GIB, parse_machine
from alhena.recipe import Recipe
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.vocabulary import Vocabulary

PARAMETERS = {"nano_1": 1.8e9, "nano_2": 3.25e9, "pro": None, "ultra": None}
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def load(name: str) -> tuple[Recipe, config.Model]:
    run = importlib.import_module(f"recipes.{name}").run()
    return run, run.model(Vocabulary(run.text_vocabulary_size, run.image_tokenizer.num_codes))


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_those_of_the_gemini_report_or_of_hoffmanns_law(name):
    run, c = load(name)
    recipe = importlib.import_module(f"recipes.{name}")
    parameters = model.count(jax.eval_shape(lambda: model.init(jax.random.key(0), c)))
    assert parameters == pytest.approx(PARAMETERS[name] or recipe.PARAMETERS, rel=0.01)
    shape = run.pretrain.shape
    assert run.pretrain.steps * shape.batch_size * shape.tokens == pytest.approx(recipe.TOKENS, rel=1e-4)
    assert (c.decoder.kv_heads, shape.tokens, c.compute_dtype) == (1, 32_768, "bfloat16")


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_model_lowers_on_the_mesh_of_its_recipe(name):
    """The training step for TPU, with optimizer and attention kernel, on abstract devices."""
    run, c = load(name)
    shape = run.pretrain.mesh
    device = AbstractDevice(device_kind="TPU v4", num_cores=2, platform="tpu")
    mesh = AbstractMesh(tuple(vars(shape).values()), tuple(vars(shape)), (AxisType.Auto,) * 3, abstract_device=device)
    text = plan.lower(c, run.pretrain, mesh).as_text()
    assert "splash" in text and f"num_partitions = {shape.chips}" in text


@pytest.mark.parametrize("name", ["nano_2", "pro", "ultra"])
def test_the_cost_model_agrees_with_the_compiler(name):
    """Recorded compilations (alhena plan … --json). They fit with the memory that XLA reserves."""
    recorded, (run, c) = read_json(RESULTS / f"plan_{name}.json"), load(name)
    on, _, pods = recorded["machine"].partition(" × ")
    machine, mesh = parse_machine(on, int(pods or 1)), Mesh(**recorded["mesh"])
    shape = replace(run.pretrain.shape, batch_size=recorded["tokens_per_step"] // run.pretrain.shape.tokens)
    sizes = plan.sizes(c, run.pretrain, mesh)
    costs, used = estimate(c, sizes, shape, mesh, machine), sum(recorded["hbm"].values())
    assert recorded["compiled"] and recorded["over"] == 0 and used < machine.chip.hbm - GIB / 2
    assert recorded["parameters"] == pytest.approx(sizes.all, rel=1e-3)
    assert recorded["model_flops"] == pytest.approx(model_flops(c, sizes, shape), rel=1e-3)
    assert costs.flops == pytest.approx(recorded["flops"], rel=0.05)
    assert costs.bytes == pytest.approx(used, rel=0.25)
    assert sum(costs.within_pod.values()) == pytest.approx(sum(recorded["within_pod"].values()), rel=0.15)
    assert costs.seconds["step"] == pytest.approx(recorded["seconds"]["step"], rel=0.25)


def test_model_flops_are_six_per_parameter_and_token_plus_attention():
    c = config.Model(100, 1, 2, config.Decoder(width=8, layers=2, heads=2, head_dim=4, hidden=16), None, None)
    sizes = plan.Sizes(embedding=800, layers=1200, vision=0, audio=0, state=0.0)
    shape = BatchShape(batch_size=2, tokens=64, patches=0, chunks=0)
    scores = 3 * 2 * (2 * 128 * 32 * 8) * 2  # two matmuls of width 8 for half of 64 keys; two layers
    assert model_flops(c, sizes, shape) == 6 * 128 * 2000 + scores


def test_meshes_are_enumerated_and_parsed():
    run, c = load("nano_2")
    candidates = plan.meshes(c, run.pretrain.shape, parse_machine("v5e:4x4"))
    assert Mesh(1, 4, 4) in candidates and all(m.chips == 16 and 20 % m.model == 0 for m in candidates)
    with pytest.raises(ValueError, match="no mesh divides a batch size of 8"):
        plan.meshes(c, run.pretrain.shape, parse_machine("h100:64"))
    with pytest.raises(ValueError, match="a slice v5e:4x4 has 16"):
        plan.read_mesh("data=4,model=2", parse_machine("v5e:4x4"))


def test_gpus_are_planned_by_the_cost_model_and_a_plan_that_does_not_fit_is_marked():
    run, c = load("nano_2")
    t = run.pretrain.with_batch_size(64)
    fits = plan.make_plan("nano-2", c, t, parse_machine("h100:64"), None)
    assert not fits.compiled and fits.over == 0 and 0.2 < fits.mfu < 0.8
    assert fits.tokens == pytest.approx(run.pretrain.steps * 8 * 32_768, rel=1e-3)
    given = plan.make_plan("nano-2", c, t, parse_machine("h100:64"), Mesh(data=16, model=4))
    assert given.mesh == Mesh(data=16, model=4) and given.others[0] == fits.mesh and fits.mesh not in fits.others
    small = plan.make_plan("nano-2", c, t, parse_machine("a100:1"), Mesh(1, 1, 1))
    assert small.over > 100 * GIB
    cells = [str(cell) for column in plan.as_table(small).columns for cell in column.cells]
    assert any("does not fit" in cell and "GiB too much" in cell for cell in cells)
    assert "a cost model, not a compiler" in str(plan.as_table(small).title)


def test_link_speed_of_dimensions_with_and_without_wraparound():
    """A group uses both links of each dimension that wraps around and one of any other."""
    links = lambda on, group: parse_machine(on).link_speed(group) / 50e9  # noqa: E731
    assert [links("v5e:4x4", n) for n in (2, 4, 16)] == [1, 1, 2]
    assert [links("v5e:16x16", n) for n in (8, 16, 256)] == [1, 2, 4]
    assert [links("v4:8x16x16", n) for n in (16, 128, 2048)] == [2, 4, 6]


def test_unknown_machines_are_refused():
    for on in ("v9:4x4", "v5e", "v5e:4x4x4", "h100:8x8"):
        with pytest.raises(ValueError, match="--on"):
            parse_machine(on)
