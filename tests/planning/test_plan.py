"""Planning: every member of the family lowers on the mesh of its machine; the recorded plans fit, and the cost model agrees with them."""

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
from alhena.tokens.loader import BatchShape
from alhena.tokens.vocabulary import Vocabulary

FAMILY = {"nano_1": 1.8e9, "nano_2": 3.25e9, "pro": None, "ultra": None}
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def member(name: str) -> tuple[Recipe, config.Model]:
    run = importlib.import_module(f"recipes.{name}").run()
    return run, run.model(Vocabulary(run.text_vocabulary_size, run.image_tokenizer.num_codes))


@pytest.mark.parametrize("name", FAMILY)
def test_sizes_are_those_of_the_report_or_of_hoffmanns_law(name):
    run, c = member(name)
    recipe = importlib.import_module(f"recipes.{name}")
    parameters = model.count(jax.eval_shape(lambda: model.init(jax.random.key(0), c)))
    assert parameters == pytest.approx(FAMILY[name] or recipe.PARAMETERS, rel=0.01)
    shape = run.pretrain.shape
    assert run.pretrain.steps * shape.batch_size * shape.tokens == pytest.approx(recipe.TOKENS, rel=1e-4)
    assert (c.decoder.kv_heads, shape.tokens, c.compute_dtype) == (1, 32_768, "bfloat16")


@pytest.mark.parametrize("name", FAMILY)
def test_every_member_lowers_on_the_mesh_of_its_recipe(name):
    """The true step for TPU, optimizer and attention kernel included; devices are described, not there."""
    run, c = member(name)
    shape = run.pretrain.mesh
    device = AbstractDevice(device_kind="TPU v4", num_cores=2, platform="tpu")
    mesh = AbstractMesh(tuple(vars(shape).values()), tuple(vars(shape)), (AxisType.Auto,) * 3, abstract_device=device)
    text = plan.lower(c, run.pretrain, mesh).as_text()
    assert "splash" in text and f"num_partitions = {shape.chips}" in text


@pytest.mark.parametrize("name", ["nano_2", "pro", "ultra"])
def test_the_cost_model_agrees_with_the_compiler(name):
    """Recorded compilations (alhena plan … --json) against arithmetic. They fit, with what XLA keeps for itself too."""
    found, (run, c) = read_json(RESULTS / f"plan_{name}.json"), member(name)
    on, _, pods = found["machine"].partition(" × ")
    where, mesh = parse_machine(on, int(pods or 1)), Mesh(**found["mesh"])
    shape = replace(run.pretrain.shape, batch_size=found["tokens_per_step"] // run.pretrain.shape.tokens)
    sizes = plan.sizes(c, run.pretrain, mesh)
    guess, used = estimate(c, sizes, shape, mesh, where), sum(found["hbm"].values())
    assert found["compiled"] and found["over"] == 0 and used < where.chip.hbm - GIB / 2
    assert found["parameters"] == pytest.approx(sizes.all, rel=1e-3)
    assert found["model_flops"] == pytest.approx(model_flops(c, sizes, shape), rel=1e-3)
    assert guess.flops == pytest.approx(found["flops"], rel=0.05)
    assert guess.bytes == pytest.approx(used, rel=0.25)
    assert sum(guess.within_pod.values()) == pytest.approx(sum(found["inside"].values()), rel=0.15)
    assert guess.seconds["step"] == pytest.approx(found["seconds"]["step"], rel=0.25)


def test_model_flops_are_six_per_parameter_and_token_and_the_scores():
    c = config.Model(100, 1, 2, config.Decoder(width=8, layers=2, heads=2, head_dim=4, hidden=16), None, None)
    sizes = plan.Sizes(embedding=800, layers=1200, vision=0, audio=0, state=0.0)
    shape = BatchShape(batch_size=2, tokens=64, patches=0, chunks=0)
    scores = 3 * 2 * (2 * 128 * 32 * 8) * 2  # backward twice; two products of 8 wide for half of 64 keys; two layers
    assert model_flops(c, sizes, shape) == 6 * 128 * 2000 + scores


def test_the_mesh_is_searched_and_read():
    run, c = member("nano_2")
    found = plan.meshes(c, run.pretrain.shape, parse_machine("v5e:4x4"))
    assert Mesh(1, 4, 4) in found and all(m.chips == 16 and 20 % m.model == 0 for m in found)
    with pytest.raises(ValueError, match="no mesh divides 8 rows"):
        plan.meshes(c, run.pretrain.shape, parse_machine("h100:64"))
    with pytest.raises(ValueError, match="a slice v5e:4x4 has 16"):
        plan.read_mesh("data=4,model=2", parse_machine("v5e:4x4"))


def test_gpus_are_planned_without_a_compiler_and_what_does_not_fit_is_told():
    run, c = member("nano_2")
    t = run.pretrain.with_batch_size(64)
    fits = plan.make_plan("nano-2", c, t, parse_machine("h100:64"), None)
    assert not fits.compiled and fits.over == 0 and 0.2 < fits.mfu < 0.8
    assert fits.tokens == pytest.approx(run.pretrain.steps * 8 * 32_768, rel=1e-3)
    asked = plan.make_plan("nano-2", c, t, parse_machine("h100:64"), Mesh(data=16, model=4))
    assert asked.mesh == Mesh(data=16, model=4) and asked.others[0] == fits.mesh and fits.mesh not in fits.others
    few = plan.make_plan("nano-2", c, t, parse_machine("a100:1"), Mesh(1, 1, 1))
    assert few.over > 100 * GIB
    cells = [str(cell) for column in plan.as_table(few).columns for cell in column.cells]
    assert any("does not fit" in cell and "GiB too much" in cell for cell in cells)
    assert "a cost model, not a compiler" in str(plan.as_table(few).title)


def test_links_of_rings_and_lines():
    """A group uses both links of each ring that it fills; a line, or a part of a ring, has ends with one."""
    links = lambda on, group: parse_machine(on).link_speed(group) / 50e9  # noqa: E731
    assert [links("v5e:4x4", n) for n in (2, 4, 16)] == [1, 1, 2]
    assert [links("v5e:16x16", n) for n in (8, 16, 256)] == [1, 2, 4]
    assert [links("v4:8x16x16", n) for n in (16, 128, 2048)] == [2, 4, 6]


def test_unknown_machines_say_what_is_known():
    for on in ("v9:4x4", "v5e", "v5e:4x4x4", "h100:8x8"):
        with pytest.raises(ValueError, match="--on"):
            parse_machine(on)
