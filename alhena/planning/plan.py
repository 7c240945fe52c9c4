"""What training a member of the family needs on a machine that is not at hand: does it fit, how long does a step take, how long the whole?

    recipe ─ shapes (eval_shape) ─ the true training step, optimizer included ─ the TPU's own compiler ─► HBM by its account,
                                                                             the program played (walk.py) ─► FLOPs, bytes, a step's time

The compiler for TPUs runs on any Linux machine (``libtpu``; ``pip install 'alhena[plan]'``); no TPU is asked for anything. Without it, for
GPUs, the same table comes from arithmetic (cost.py), and says so. Times are those of an ideal chip: every operation at the peak of its
bound, the compiler's own order of transfers, published speeds (machines.py). They say what is in the way, not what a clock would show.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from rich.table import Table

from alhena.batch import Batch
from alhena.model import config, model, sharding, spec
from alhena.model.embedding import embedding_rows
from alhena.model.sharding import Mesh
from alhena.planning.cost_model import Costs, Sizes, estimate, model_flops
from alhena.planning.hardware import GIB, Machine
from alhena.planning.hlo import parse
from alhena.planning.simulator import Simulator, Speeds
from alhena.tokens.loader import BatchShape
from alhena.train.mixture import Training
from alhena.train.optimizer import optimizer
from alhena.train.step import State, initial_state, train_step

TRIES = 4  # meshes that are compiled before giving up


@dataclass(frozen=True)
class Plan:
    recipe: str
    machine: str
    chips: int
    mesh: Mesh
    others: tuple[Mesh, ...]  # that the cost model believes to fit, the fastest first
    compiled: bool  # by the TPU's compiler; else from the cost model alone
    parameters: int
    tokens_per_step: int
    tokens: int  # of the whole training
    hbm: dict[str, float]  # bytes of each chip, by what they are for
    hbm_limit: float
    over: float  # bytes that do not fit; 0: it fits
    flops: float  # products of each chip and step
    model_flops: float  # those that the model needs, of all chips
    within_pod: dict[str, float]  # bytes that each chip sends in its pod, by collective
    between_pods: dict[str, float]  # and to other pods
    largest: dict[str, int]  # bytes of the largest array that a collective puts together
    seconds: dict[str, float]
    mfu: float | None  # of the model's products alone; None: it does not fit
    days: float | None


def abstract_batch(c: config.Model, shape: BatchShape) -> Batch:
    """The shapes of a Batch."""
    of: Callable[..., Any] = jax.ShapeDtypeStruct
    rows, per = shape.batch_size, (shape.batch_size, shape.tokens)
    patches, values = (rows, shape.patches), c.vision.patch_values if c.vision else 1
    frames = (c.audio.chunk, c.audio.mels) if c.audio else (1, 1)
    tokens = {name: of(per, jnp.int32) for name in ("tokens", "targets", "modality", "segments", "positions")}
    return Batch(
        **tokens,
        weights=of(per, jnp.float32),
        patches=of((*patches, values), jnp.uint8),
        patch_positions=of((*patches, 2), jnp.int32),
        patch_images=of(patches, jnp.int32),
        frames=of((rows, shape.chunks, *frames), jnp.float32),
        frame_lengths=of((rows, shape.chunks), jnp.int32),
    )


def abstract_state(c: config.Model, t: Training) -> State:
    """The shapes of parameters and optimizer."""
    transform = optimizer(t.optimizer, t.steps, model.weights(c))
    return jax.eval_shape(lambda: initial_state(model.init(jax.random.key(0), c), c, transform))


def lower(c: config.Model, t: Training, mesh: jax.sharding.Mesh | AbstractMesh) -> jax.stages.Lowered:
    """The true training step, lowered for a mesh: abstract arrays, nothing is allocated."""
    state, batch = abstract_state(c, t), abstract_batch(c, t.shape)
    state = sharding.abstract_arrays(state, mesh, spec.shardings(state, model.weights(c)))
    batch = sharding.abstract_arrays(batch, mesh, sharding.batch_specs(batch))
    abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
    with jax.sharding.use_abstract_mesh(abstract):
        traced = train_step.trace(
            state, batch, c, optimizer(t.optimizer, t.steps, model.weights(c)), t.gradient_accumulation
        )
        return traced.lower(lowering_platforms=(abstract.abstract_device.platform,))


def sizes(c: config.Model, t: Training, mesh: Mesh) -> Sizes:
    """Parameters by part, and the bytes of one chip's share of the state."""
    state = abstract_state(c, t)
    per = dict(vars(mesh))

    def held(leaf: Any, part: Any) -> float:
        axes = [a for entry in part if entry for a in ((entry,) if isinstance(entry, str) else entry)]
        return leaf.size * leaf.dtype.itemsize / np.prod([per[a] for a in axes])

    p, parts = state.params, jax.tree.map(held, state, spec.shardings(state, model.weights(c)))
    counts = [
        sum(x.size for x in jax.tree.leaves(part)) for part in (p.embedding, (p.layers, p.norm), p.vision, p.audio)
    ]
    return Sizes(*counts, state=float(sum(jax.tree.leaves(parts))))


def meshes(c: config.Model, shape: BatchShape, where: Machine) -> list[Mesh]:
    """Every mesh on which heads, rows and vocabulary divide; pods hold whole copies of the parameters."""
    chips, found = where.chips // where.pods, []
    divide = [c.decoder.heads, embedding_rows(c.vocabulary, c.code_factors), shape.tokens, *(c.code_factors or ())[1:]]
    for cut in range(1, chips + 1):
        if all(size % cut == 0 for size in (chips, *divide)) and shape.batch_size % (where.pods * chips // cut) == 0:
            found.append(Mesh(where.pods, chips // cut, cut))
    if not found:
        raise ValueError(
            f"{where.topology} × {where.pods}: no mesh divides {shape.batch_size} rows and {c.decoder.heads} heads over "
            f"{chips} chips a pod; change the rows of the recipe, or the slice"
        )
    return found


def topology_mesh(where: Machine, mesh: Mesh) -> jax.sharding.Mesh:
    """The machine's devices as the compiler describes them. Raises ValueError without libtpu, or for a slice it does not know."""
    if find_spec("libtpu") is None:
        raise ValueError("planning for TPUs needs their compiler: pip install 'alhena[plan]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks the network whether this is a TPU machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # two plans may be made at once: no device is taken
    from jax.experimental import mesh_utils, topologies

    try:
        described = topologies.get_topology_desc(
            where.topology, platform="tpu", num_slices=where.pods, chip_config_name=where.chip.tpu_config
        )
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        if not said.startswith("INVALID_ARGUMENT"):
            raise ValueError(f"the TPU's compiler does not start: {said}") from None
        raise ValueError(f"--on {where.topology}: the compiler knows no such slice ({said})") from None
    shape = (mesh.data, mesh.model)
    if where.pods == 1:
        devices = mesh_utils.create_device_mesh((1, *shape), described.devices, allow_split_physical_axes=True)
    else:
        devices = mesh_utils.create_hybrid_device_mesh(
            (1, *shape), (where.pods, 1, 1), described.devices, allow_split_physical_axes=True
        )
    return sharding.make_mesh(mesh, devices)


def _visited(c: config.Model, shape: BatchShape) -> float:
    """Share of the scores that a causal kernel computes, of all layers."""
    d = c.decoder
    near = 0 if d.window is None else (d.layers - d.layers // d.global_every) / d.layers
    return (1 - near) * 0.5 + near * min(0.5, (d.window or 0) / shape.tokens)


def _too_much(error: Exception) -> tuple[float, float]:
    """Bytes of HBM that a program wanted and had, from the compiler's refusal; any other error goes on."""
    said = re.search(r"\(([\d.]+)([GM])\) exceeds available HBM \(([\d.]+)([GM])\)", str(error)) or re.search(
        r"Used ([\d.]+)([GM]) of ([\d.]+)([GM]) hbm", str(error)
    )
    if said is None:
        raise error
    unit = {"G": GIB, "M": 2**20}
    return float(said[1]) * unit[said[2]], float(said[3]) * unit[said[4]]


def compile_costs(c: config.Model, t: Training, where: Machine, mesh: Mesh) -> tuple[Costs, dict[str, int], float]:
    """Costs as the TPU's compiler has them, the largest array of each collective, and the bytes that do not fit."""
    lowered = lower(c, t, topology_mesh(where, mesh))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        wanted, room = _too_much(error)
        return Costs({"what the compiler wants": wanted}, 0.0, {}, {}), {}, wanted - room
    m, text = compiled.memory_analysis(), compiled.as_text()
    assert m is not None and text is not None, "the TPU's compiler tells both"
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    hbm = {"state and batch": kept, "temporaries": m.temp_size_in_bytes, "program": m.generated_code_size_in_bytes}
    speeds = Speeds(where.chip.flops, where.chip.hbm_speed, where.transfer_seconds)
    total = Simulator(parse(text), speeds, where.chips // where.pods, _visited(c, t.shape)).total()
    seconds = {"products and memory": total.busy, "links": total.links, "network": total.network, "step": total.seconds}
    costs = Costs(hbm, total.flops, total.within_pod, total.between_pods, seconds)
    return costs, total.largest, max(0.0, costs.bytes - where.chip.hbm)


def make_plan(
    name: str,
    c: config.Model,
    t: Training,
    where: Machine,
    mesh: Mesh | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The plan on ``mesh``, or on the first that fits of those the cost model ranks best."""
    guesses = {m: estimate(c, sizes(c, t, m), t.shape, m, where) for m in {mesh, *meshes(c, t.shape, where)} if m}
    ranked = sorted(guesses, key=lambda m: (guesses[m].bytes > where.chip.hbm, guesses[m].seconds["step"]))
    for m in [mesh] if mesh else ranked[: TRIES if where.is_tpu else 1]:
        costs, over = guesses[m], max(0.0, guesses[m].bytes - where.chip.hbm)
        largest: dict[str, int] = {}
        if where.is_tpu:
            tell(f"compiling the training step of {name} for {where.chips:,} chips, {m} …")
            costs, largest, over = compile_costs(c, t, where, m)
        if not over:
            break
        tell(f"{m} does not fit: {over / GIB:.2f} GiB too much")
    counted, tokens, step = sizes(c, t, m), t.shape.batch_size * t.shape.tokens, costs.seconds.get("step")
    needed = model_flops(c, counted, t.shape)
    return Plan(
        recipe=name,
        machine=f"{where.topology} × {where.pods}" if where.pods > 1 else where.topology,
        chips=where.chips,
        mesh=m,
        others=tuple(other for other in ranked if other != m and guesses[other].bytes <= where.chip.hbm)[:3],
        compiled=where.is_tpu,
        parameters=counted.all,
        tokens_per_step=tokens,
        tokens=tokens * t.steps,
        hbm=costs.hbm,
        hbm_limit=where.chip.hbm,
        over=over,
        flops=costs.flops,
        model_flops=needed,
        within_pod=costs.within_pod,
        between_pods=costs.between_pods,
        largest=largest,
        seconds=costs.seconds,
        mfu=step and needed / (step * where.chip.flops * where.chips),
        days=step and step * t.steps / 86_400,
    )


def read_mesh(text: str, where: Machine) -> Mesh:
    """``data=4,model=4`` on a machine; an axis that is left out is what remains. Raises ValueError when the chips do not agree.

    >>> from alhena.planning.hardware import machine
    >>> read_mesh("model=8", machine("v5e:16x16", pods=2))
    Mesh(pod=2, data=32, model=8)
    """
    if not re.fullmatch(r"(data|model)=\d+(,(data|model)=\d+)?", text):
        raise ValueError(f"--mesh {text!r}: write data=…,model=…; pods are given by --pods")
    given = {name: int(n) for name, n in (part.split("=") for part in text.split(","))}
    chips = where.chips // where.pods
    rest = chips // max(int(np.prod(list(given.values()))), 1)
    mesh = Mesh(where.pods, *(given.get(name, rest if len(given) == 1 else 1) for name in ("data", "model")))
    if mesh.chips != where.chips:
        raise ValueError(
            f"--mesh {text}: that is {mesh.data} × {mesh.model} chips; a slice {where.topology} has {chips}"
        )
    return mesh


def as_json(plan: Plan) -> dict[str, Any]:
    return asdict(plan) | {"fits": plan.over == 0, "jax": jax.__version__}


def as_table(plan: Plan) -> Table:
    """The plan for people."""
    how = "the TPU's own compiler, no TPU" if plan.compiled else "a cost model, not a compiler"
    table = Table(title=f"{plan.recipe} on {plan.machine}: {plan.chips:,} chips, by {how}", show_header=False)
    row = table.add_row
    row(
        "model",
        f"{plan.parameters / 1e9:.2f} B parameters; {plan.tokens / 1e12:.2f} T tokens, {plan.tokens_per_step:,} a step",
    )
    also = f"   (should fit too, fastest first: {'; '.join(map(str, plan.others))})" if plan.others else ""
    row("mesh", f"{plan.mesh}{also}")
    fits = "fits" if not plan.over else f"[bold red]does not fit: {plan.over / GIB:.2f} GiB too much[/]"
    row("HBM a chip", f"{sum(plan.hbm.values()) / GIB:.2f} of {plan.hbm_limit / GIB:.0f} GiB, {fits}")
    for name, size in plan.hbm.items():
        row("", f"{size / GIB:7.2f} GiB  {name}")
    if plan.mfu is None or plan.days is None:
        return table
    row("FLOPs a step", f"{plan.flops * plan.chips:.3g}, of which the model needs {plan.model_flops:.3g}")
    for where, sent in (("inside its pod", plan.within_pod), ("to other pods", plan.between_pods)):
        kinds = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(sent.items(), key=lambda item: -item[1]))
        row(f"GB a chip sends {where}", f"{sum(sent.values()) / 1e9:.2f}" + (f"  ({kinds})" if kinds else ""))
    row("seconds, ideal chip", ", ".join(f"{name} {value:.2f}" for name, value in plan.seconds.items()))
    row("MFU, ideal chip", f"{100 * plan.mfu:.1f} %")
    row("whole training", f"{plan.days:,.1f} days at {plan.tokens_per_step / plan.seconds['step']:,.0f} tokens/s")
    return table
