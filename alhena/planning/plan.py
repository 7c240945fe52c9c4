"""Plans a training run on hardware that is not available: memory per chip, time of a step, days of the run.

    recipe ─ eval_shape ─ the training step, optimizer included ─ the TPU compiler ─► HBM by its memory analysis
                                                                  simulator.py     ─► FLOPs, bytes sent, time of a step

The TPU compiler runs on any Linux machine (``libtpu``; ``pip install 'alhena[plan]'``) and needs no TPU. For GPUs the same table comes
from the cost model (cost_model.py), and its title says so. Times are lower bounds, those of an ideal chip: every operation at its roofline
(hardware.py), transfers in the compiler's order.
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
from alhena.model.sharding import Mesh
from alhena.model.transformer.embedding import embedding_rows
from alhena.planning.cost_model import Costs, Sizes, estimate, model_flops
from alhena.planning.hardware import GIB, Machine
from alhena.planning.hlo import parse
from alhena.planning.simulator import Simulator, Speeds
from alhena.tokens.examples.padding import BatchShape
from alhena.train.mixture import Training
from alhena.train.optimizer import optimizer
from alhena.train.step import State, initial_state, train_step

MAX_COMPILED = 4  # meshes that are compiled until one fits


@dataclass(frozen=True)
class Plan:
    """Result of :func:`make_plan`."""

    recipe: str
    machine: str
    chips: int
    mesh: Mesh
    others: tuple[Mesh, ...]  # other meshes that fit by the cost model, the fastest first
    compiled: bool  # by the TPU compiler; else from the cost model alone
    parameters: int
    tokens_per_step: int
    tokens: int  # of the complete run
    hbm: dict[str, float]  # bytes per chip, by purpose
    hbm_limit: float
    over: float  # bytes that do not fit; 0: it fits
    flops: float  # per chip and step
    model_flops: float  # per step over all chips, without recomputation
    within_pod: dict[str, float]  # bytes that each chip sends within its pod, by collective
    between_pods: dict[str, float]  # and to other pods
    largest: dict[str, int]  # bytes of the largest unsharded array, by collective
    seconds: dict[str, float]
    mfu: float | None  # model FLOPs over peak FLOPs; None: it does not fit
    days: float | None


def abstract_batch(c: config.Model, shape: BatchShape) -> Batch:
    """A Batch of ShapeDtypeStructs."""
    of: Callable[..., Any] = jax.ShapeDtypeStruct
    batch_size, per_token = shape.batch_size, (shape.batch_size, shape.tokens)
    patches, values = (batch_size, shape.patches), c.vision.patch_values if c.vision else 1
    frames = (c.audio.chunk, c.audio.frame_values) if c.audio else (1, 1)
    tokens = {name: of(per_token, jnp.int32) for name in ("tokens", "targets", "modality", "segments", "positions")}
    return Batch(
        **tokens,
        weights=of(per_token, jnp.float32),
        patches=of((*patches, values), jnp.uint8),
        patch_positions=of((*patches, 2), jnp.int32),
        patch_images=of(patches, jnp.int32),
        frames=of((batch_size, shape.chunks, *frames), jnp.float32),
        frame_lengths=of((batch_size, shape.chunks), jnp.int32),
    )


def abstract_state(c: config.Model, t: Training) -> State:
    """Parameters and optimizer state as ShapeDtypeStructs."""
    transform = optimizer(t.optimizer, t.steps, model.weights(c))
    return jax.eval_shape(lambda: initial_state(model.init(jax.random.key(0), c), c, transform))


def lower(c: config.Model, t: Training, mesh: jax.sharding.Mesh | AbstractMesh) -> jax.stages.Lowered:
    """The training step lowered for a mesh, from abstract arrays: nothing is allocated."""
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
    """Parameter counts by part, and bytes of one chip's shard of the training state."""
    state, weights = abstract_state(c, t), model.weights(c)
    chips = dict(vars(mesh))

    def shard_bytes(leaf: Any, partition: Any) -> float:
        axes = [a for entry in partition if entry for a in ((entry,) if isinstance(entry, str) else entry)]
        return leaf.size * leaf.dtype.itemsize / np.prod([chips[a] for a in axes])

    def count(part: Any) -> int:
        return sum(w.size for w in jax.tree.leaves(part))

    held = jax.tree.map(shard_bytes, state, spec.shardings(state, weights))
    return Sizes(
        embedding=count(weights.embedding),
        layers=count((weights.layers, weights.norm)),
        vision=count(weights.vision),
        audio=count(weights.audio),
        state=float(sum(jax.tree.leaves(held))),
    )


def meshes(c: config.Model, shape: BatchShape, machine: Machine) -> list[Mesh]:
    """Every mesh whose axes divide heads, batch size, sequence length and vocabulary; each pod has a replica of the parameters."""
    chips, candidates = machine.chips // machine.pods, []
    divisible = [
        c.decoder.heads,
        embedding_rows(c.vocabulary, c.code_factors),
        shape.tokens,
        *(c.code_factors or ())[1:],
    ]
    for n in range(1, chips + 1):
        if all(size % n == 0 for size in (chips, *divisible)) and shape.batch_size % (machine.pods * chips // n) == 0:
            candidates.append(Mesh(machine.pods, chips // n, n))
    if not candidates:
        raise ValueError(
            f"{machine.topology} × {machine.pods}: no mesh divides a batch size of {shape.batch_size} and {c.decoder.heads} heads over "
            f"{chips} chips per pod; change the batch size of the recipe, or the slice"
        )
    return candidates


def topology_mesh(machine: Machine, mesh: Mesh) -> jax.sharding.Mesh:
    """A mesh of the compiler's descriptions of TPU devices. Raises ValueError without libtpu, or for an unknown slice."""
    if find_spec("libtpu") is None:
        raise ValueError("planning for TPUs needs the TPU compiler: pip install 'alhena[plan]'")
    # No query of the TPU metadata server; several processes may load libtpu, since none opens a device.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Imported after these variables are set.
    from jax.experimental import mesh_utils, topologies

    try:
        topology = topologies.get_topology_desc(
            machine.topology, platform="tpu", num_slices=machine.pods, chip_config_name=machine.chip.tpu_config
        )
    except jax.errors.JaxRuntimeError as error:
        message = str(error).splitlines()[0]
        if not message.startswith("INVALID_ARGUMENT"):
            raise ValueError(f"the TPU compiler does not start: {message}") from None
        raise ValueError(f"--on {machine.topology}: the compiler knows no such slice ({message})") from None
    shape = (mesh.data, mesh.model)
    if machine.pods == 1:
        devices = mesh_utils.create_device_mesh((1, *shape), topology.devices, allow_split_physical_axes=True)
    else:
        devices = mesh_utils.create_hybrid_device_mesh(
            (1, *shape), (machine.pods, 1, 1), topology.devices, allow_split_physical_axes=True
        )
    return sharding.make_mesh(mesh, devices)


def _computed_fraction(c: config.Model, shape: BatchShape) -> float:
    """Fraction of the attention scores that causal kernels compute, over all layers."""
    d = c.decoder
    local = 0 if d.window is None else (d.layers - d.layers // d.global_every) / d.layers
    return (1 - local) * 0.5 + local * min(0.5, (d.window or 0) / shape.tokens)


def _out_of_memory(error: Exception) -> tuple[float, float]:
    """Bytes of HBM that a program needs and that a chip has, from the compiler's error. Raises any other error."""
    match = re.search(r"\(([\d.]+)([GM])\) exceeds available HBM \(([\d.]+)([GM])\)", str(error)) or re.search(
        r"Used ([\d.]+)([GM]) of ([\d.]+)([GM]) hbm", str(error)
    )
    if match is None:
        raise error
    unit = {"G": GIB, "M": 2**20}
    return float(match[1]) * unit[match[2]], float(match[3]) * unit[match[4]]


def compile_costs(c: config.Model, t: Training, machine: Machine, mesh: Mesh) -> tuple[Costs, dict[str, int], float]:
    """Costs from the TPU compiler and the simulator, the largest array of each collective, and the bytes that do not fit."""
    lowered = lower(c, t, topology_mesh(machine, mesh))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = _out_of_memory(error)
        return Costs({"needed by the compiled program": needed}, 0.0, {}, {}), {}, needed - available
    m, text = compiled.memory_analysis(), compiled.as_text()
    assert m is not None and text is not None, "the TPU compiler provides both"
    held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    hbm = {"state and batch": held, "temporaries": m.temp_size_in_bytes, "program": m.generated_code_size_in_bytes}
    speeds = Speeds(machine.chip.flops, machine.chip.hbm_speed, machine.transfer_seconds)
    total = Simulator(parse(text), speeds, machine.chips // machine.pods, _computed_fraction(c, t.shape)).total()
    seconds = {"compute and memory": total.busy, "links": total.links, "network": total.network, "step": total.seconds}
    costs = Costs(hbm, total.flops, total.within_pod, total.between_pods, seconds)
    return costs, total.largest, max(0.0, costs.bytes - machine.chip.hbm)


def make_plan(
    name: str,
    c: config.Model,
    t: Training,
    machine: Machine,
    mesh: Mesh | None,
    log: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The plan on ``mesh``, or on the first mesh that fits of those with the lowest estimated time."""
    candidates = {mesh} if mesh else set()
    estimates = {
        m: estimate(c, sizes(c, t, m), t.shape, m, machine) for m in {*candidates, *meshes(c, t.shape, machine)}
    }
    ranked = sorted(estimates, key=lambda m: (estimates[m].bytes > machine.chip.hbm, estimates[m].seconds["step"]))
    for m in [mesh] if mesh else ranked[: MAX_COMPILED if machine.is_tpu else 1]:
        costs, over = estimates[m], max(0.0, estimates[m].bytes - machine.chip.hbm)
        largest: dict[str, int] = {}
        if machine.is_tpu:
            log(f"compiling the training step of {name} for {machine.chips:,} chips, {m} …")
            costs, largest, over = compile_costs(c, t, machine, m)
        if not over:
            break
        log(f"{m} does not fit: {over / GIB:.2f} GiB too much")
    counts, tokens, step = sizes(c, t, m), t.shape.batch_size * t.shape.tokens, costs.seconds.get("step")
    needed = model_flops(c, counts, t.shape)
    return Plan(
        recipe=name,
        machine=f"{machine.topology} × {machine.pods}" if machine.pods > 1 else machine.topology,
        chips=machine.chips,
        mesh=m,
        others=tuple(other for other in ranked if other != m and estimates[other].bytes <= machine.chip.hbm)[:3],
        compiled=machine.is_tpu,
        parameters=counts.all,
        tokens_per_step=tokens,
        tokens=tokens * t.steps,
        hbm=costs.hbm,
        hbm_limit=machine.chip.hbm,
        over=over,
        flops=costs.flops,
        model_flops=needed,
        within_pod=costs.within_pod,
        between_pods=costs.between_pods,
        largest=largest,
        seconds=costs.seconds,
        mfu=step and needed / (step * machine.chip.flops * machine.chips),
        days=step and step * t.steps / 86_400,
    )


def read_mesh(text: str, machine: Machine) -> Mesh:
    """Parses ``data=4,model=4`` for a machine; an omitted axis takes the remaining chips. Raises ValueError for another number of chips.

    >>> from alhena.planning.hardware import parse_machine
    >>> read_mesh("model=8", parse_machine("v5e:16x16", pods=2))
    Mesh(pod=2, data=32, model=8)
    """
    if not re.fullmatch(r"(data|model)=\d+(,(data|model)=\d+)?", text):
        raise ValueError(f"--mesh {text!r}: give data=…,model=…; pods are given by --pods")
    given = {name: int(n) for name, n in (part.split("=") for part in text.split(","))}
    chips = machine.chips // machine.pods
    remaining = chips // max(int(np.prod(list(given.values()))), 1)
    mesh = Mesh(machine.pods, *(given.get(name, remaining if len(given) == 1 else 1) for name in ("data", "model")))
    if mesh.chips != machine.chips:
        raise ValueError(
            f"--mesh {text}: that is {mesh.data} × {mesh.model} chips; a slice {machine.topology} has {chips}"
        )
    return mesh


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as a JSON object, with the version of JAX."""
    return asdict(plan) | {"fits": plan.over == 0, "jax": jax.__version__}


def as_table(plan: Plan) -> Table:
    """The plan as a table for the terminal."""
    method = "the TPU compiler, no TPU" if plan.compiled else "a cost model, not a compiler"
    table = Table(title=f"{plan.recipe} on {plan.machine}: {plan.chips:,} chips, by {method}", show_header=False)
    row = table.add_row
    row(
        "model",
        f"{plan.parameters / 1e9:.2f} B parameters; {plan.tokens / 1e12:.2f} T tokens, {plan.tokens_per_step:,} per step",
    )
    also = (
        f"   (others that fit by the cost model, fastest first: {'; '.join(map(str, plan.others))})"
        if plan.others
        else ""
    )
    row("mesh", f"{plan.mesh}{also}")
    fits = "fits" if not plan.over else f"[bold red]does not fit: {plan.over / GIB:.2f} GiB too much[/]"
    row("HBM per chip", f"{sum(plan.hbm.values()) / GIB:.2f} of {plan.hbm_limit / GIB:.0f} GiB, {fits}")
    for name, size in plan.hbm.items():
        row("", f"{size / GIB:7.2f} GiB  {name}")
    if plan.mfu is None or plan.days is None:
        return table
    row("FLOPs per step", f"{plan.flops * plan.chips:.3g}, of which the model needs {plan.model_flops:.3g}")
    for target, sent in (("within its pod", plan.within_pod), ("to other pods", plan.between_pods)):
        kinds = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(sent.items(), key=lambda item: -item[1]))
        row(f"GB a chip sends {target}", f"{sum(sent.values()) / 1e9:.2f}" + (f"  ({kinds})" if kinds else ""))
    row("seconds, ideal chip", ", ".join(f"{name} {value:.2f}" for name, value in plan.seconds.items()))
    row("MFU, ideal chip", f"{100 * plan.mfu:.1f} %")
    row("complete run", f"{plan.days:,.1f} days at {plan.tokens_per_step / plan.seconds['step']:,.0f} tokens/s")
    return table
