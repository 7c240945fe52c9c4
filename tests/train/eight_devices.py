"""Run by test_sharded.py in a separate process, with eight simulated CPU devices; prints one line of JSON.

For each mesh: the difference of loss and gradients from those of one device, and the weight stacks that the compiled step gathers.
"""

from __future__ import annotations

import json
import os

# Before JAX is imported. Where the suite merely collects this module, its own process keeps one device.
if __name__ == "__main__":
    # Optimization level 0 compiles sooner.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["JAX_PLATFORMS"] = "cpu"

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from alhena.batch import Batch
from alhena.compress.distill import Distill, Distillation, Teacher
from alhena.model import config, model, sharding, spec
from alhena.model.sharding import Mesh
from alhena.planning import hlo
from alhena.recovery.checkpoint import Checkpoints
from alhena.train.chunk_loss import Labels, LossOptions, Mix
from alhena.train.loss import batch_loss, labeled_loss
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import initial_state, train_step

BATCH_SIZE, TOKENS, PATCHES, FACTORS = 8, 32, 8, (8, 16)
VOCABULARY = 64 + 8 * 16 - (8 + 16)  # 64 embedding rows; those of the image codes are spread over several devices
CONFIG = config.Model(
    VOCABULARY,
    1,
    2,
    # More layers than are unrolled: the loop over them must not gather the stack.
    config.Decoder(width=16, layers=14, heads=4, head_dim=8, hidden=24, final_logit_softcap=3.0, remat=True),
    config.Vision(width=16, layers=2, heads=2, hidden=16, patch=2, remat=True),
    config.Conformer(width=16, layers=2, heads=2, hidden=16, remat=True),
    FACTORS,
)
# All at once: the complete step, whose moments are the gradients.
MESHES = {"fsdp": Mesh(data=8), "tensor": Mesh(data=2, model=4), "pods": Mesh(pod=8)}
LOSS = jax.jit(jax.value_and_grad(lambda params, batch: batch_loss(params, CONFIG, batch)[0]))
SPECS = model.weights(CONFIG)
TRANSFORM = optimizer(Optimizer(warmup=1), 10, SPECS)


def random_batch() -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCABULARY, (BATCH_SIZE, TOKENS))
    tokens[:, :2], tokens[:, 4:12] = 1, 2
    int32 = lambda values: np.asarray(values, np.int32)  # noqa: E731
    return Batch(
        tokens=int32(tokens),
        targets=int32(rng.integers(0, VOCABULARY, (BATCH_SIZE, TOKENS))),
        weights=np.float32(rng.random((BATCH_SIZE, TOKENS)) * (rng.random((BATCH_SIZE, TOKENS)) < 0.7)),
        modality=int32(rng.integers(0, 5, (BATCH_SIZE, TOKENS))),
        segments=int32(np.sort(rng.integers(1, 3, (BATCH_SIZE, TOKENS)), 1)),
        positions=int32(np.tile(np.arange(TOKENS), (BATCH_SIZE, 1))),
        patches=np.uint8(rng.integers(0, 256, (BATCH_SIZE, PATCHES, 12))),
        patch_positions=int32(rng.integers(0, 4, (BATCH_SIZE, PATCHES, 2))),
        patch_images=int32(np.ones((BATCH_SIZE, PATCHES))),
        frames=np.float32(rng.normal(size=(BATCH_SIZE, 1, 64, 128))),
        frame_lengths=int32(np.full((BATCH_SIZE, 1), 50)),
    )


def random_params() -> model.Params:
    leaves, structure = jax.tree.flatten(model.init(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(structure, [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def max_difference(a: Any, b: Any) -> float:
    """Largest difference, relative to the largest value of each array, or to 1 if that is larger."""
    differences = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max() / max(1, np.abs(y).max()), a, b)
    return float(max(jax.tree.leaves(differences)))


def stacks_gathered(text: str) -> list[str]:
    """Shapes of all-gather results that contain all layers (no other dimension has that size)."""
    gathers = [op for ops in hlo.parse(text).computations.values() for op in ops if op.kind.startswith("all-gather")]
    assert gathers
    return sorted({str(shape.dims) for op in gathers for shape in op.shapes if CONFIG.decoder.layers in shape.dims})


def measure(shape: Mesh, params: model.Params, batch: Batch, reference: tuple) -> dict[str, Any]:
    """Differences of loss and gradients on a mesh from those of one device."""
    with sharding.use_mesh(shape):
        args = (
            sharding.shard(params, spec.shardings(params, SPECS)),
            sharding.shard(batch, sharding.batch_specs(batch)),
        )
        compiled = LOSS.lower(*args).compile()
        loss, gradient = compiled(*args)
    return {
        "loss": abs(float(loss) - float(reference[0])) / float(reference[0]),
        "gradient": max_difference(gradient, reference[1]),
        "gathered": stacks_gathered(compiled.as_text()),
    }


def has_expected_shardings(tree: Any) -> bool:
    """Whether every array has the sharding of its specification."""
    mesh = jax.sharding.get_mesh()
    matches = lambda x, part: x.sharding.is_equivalent_to(NamedSharding(mesh, part), x.ndim)  # noqa: E731
    return all(jax.tree.leaves(jax.tree.map(matches, tree, spec.shardings(tree, SPECS))))


def measure_step(shape: Mesh, params: model.Params, batch: Batch) -> dict[str, Any]:
    """Two complete training steps on a mesh against one device; the first, of the warm-up, changes no parameter."""
    one = initial_state(jax.tree.map(jnp.copy, params), CONFIG, TRANSFORM)
    for _ in range(2):
        one, _ = train_step(one, batch, CONFIG, TRANSFORM)
    with sharding.use_mesh(shape), TemporaryDirectory() as folder:
        initialized = has_expected_shardings(model.init(jax.random.key(0), CONFIG))
        state = initial_state(jax.tree.map(jnp.copy, params), CONFIG, TRANSFORM)
        sharded = sharding.shard(batch, sharding.batch_specs(batch))
        compiled = train_step.lower(state, sharded, CONFIG, TRANSFORM).compile()
        after, _ = compiled(state, sharded)
        saved = Checkpoints(Path(folder), "one")
        saved.save(1, after, None)
        saved.close()
        _, restored, _ = Checkpoints(Path(folder), "one").restore(after)
        after, _ = compiled(restored, sharded)
        match = initialized and has_expected_shardings(restored) and has_expected_shardings(after)
    return {
        "moved": max_difference(params, one.params),
        "params": max_difference(after.params, one.params),
        "optimizer": max_difference(after.optimizer, one.optimizer),
        "gathered": stacks_gathered(compiled.as_text()),
        "shardings_match": match,
    }


def soft_loss(hidden: jax.Array, embedding: jax.Array, soft: Any, table: jax.Array | None, batch: Batch) -> jax.Array:
    """The loss of a student on soft targets alone."""
    how = LossOptions("float32", 5.0, FACTORS)
    options = LossOptions("float32", 3.0, FACTORS, mix=Mix(0.3, 0.7, 2.0), teacher=how)
    return labeled_loss(hidden, embedding, Labels(batch.targets, batch.weights, soft), table, options)[0]


def measure_distillation(shape: Mesh, batch: Batch, tokens: int | None, folder: Path) -> dict[str, float]:
    """Differences of a teacher's outputs, and of loss and gradients on them, on a mesh from those of one device."""
    decoder = config.Decoder(width=32, layers=1, heads=4, head_dim=8, hidden=32, final_logit_softcap=5.0)
    c = replace(CONFIG, decoder=decoder, vision=None, audio=None)
    teacher = Teacher(model.init(jax.random.key(5), c), c)
    distillation = Distillation(
        teacher, Distill(folder, Mix(temperature=2.0), tokens), replace(CONFIG, vision=None, audio=None)
    )
    rng = np.random.default_rng(2)
    hidden, embedding = (np.float32(rng.normal(size=shape)) for shape in ((BATCH_SIZE, TOKENS, 16), (64, 16)))
    run = jax.jit(jax.value_and_grad(soft_loss, (0, 1)))
    table, soft = distillation.constants(), distillation.outputs(batch, batch)
    reference = run(hidden, embedding, soft, table, batch)
    with sharding.use_mesh(shape):
        table, place = distillation.constants(), sharding.partition_spec
        sharded = sharding.shard(batch, sharding.batch_specs(batch))
        outputs = distillation.outputs(batch, sharded)
        args = sharding.shard((hidden, embedding), (place(("batch", "length", None)), place(("vocabulary", "width"))))
        loss, gradients = run(*args, outputs, table, sharded)
    return {
        "outputs": max_difference(outputs, soft),
        "loss": abs(float(loss) - float(reference[0])) / float(reference[0]),
        "gradient": max_difference(gradients, reference[1]),
    }


def main() -> None:
    params, batch = random_params(), random_batch()
    reference = LOSS(params, batch)
    results: dict[str, Any] = {name: measure(shape, params, batch, reference) for name, shape in MESHES.items()}
    results["step"] = measure_step(Mesh(2, 2, 2), params, batch)
    with TemporaryDirectory() as folder:
        for name, tokens in (("complete", None), ("sampled", 8)):
            results[name] = measure_distillation(Mesh(2, 2, 2), batch, tokens, Path(folder))
    # Rules that shard the stack along its layers: the loop then needs all of it at once, and stacks_gathered must find that.
    sharding.RULES |= {"layers": "model", "heads": None, "hidden": None}
    jax.clear_caches()
    results["wrong_rules"] = measure(Mesh(data=4, model=2), params, batch, reference)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
