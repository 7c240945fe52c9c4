"""Run by test_sharded.py in a process of its own, where the CPU stands for eight devices; prints one line of JSON.

For each mesh: how far loss and gradients are from those of one device, and which weight stacks the compiled step gathers whole.
"""

from __future__ import annotations

import json
import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"  # compiles sooner
)
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from alhena.batch import Batch
from alhena.model import config, model, sharding, spec
from alhena.model.sharding import Mesh
from alhena.planning import hlo
from alhena.recovery.checkpoint import Checkpoints
from alhena.train.loss import batch_loss
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import initial_state, train_step

ROWS, TOKENS, PATCHES, FACTORS = 8, 32, 8, (8, 16)
VOCABULARY = 64 + 8 * 16 - (8 + 16)  # 64 rows; those of image codes are on several chips, not all their own
CONFIG = config.Model(
    VOCABULARY,
    1,
    2,
    # More layers than are unrolled: the loop over them is what must not gather the stack.
    config.Decoder(width=16, layers=14, heads=4, head_dim=8, hidden=24, final_logit_softcap=3.0, remat=True),
    config.Vision(width=16, layers=2, heads=2, hidden=16, patch=2, remat=True),
    config.Conformer(width=16, layers=2, heads=2, hidden=16, remat=True),
    FACTORS,
)
MESHES = {"fsdp": Mesh(data=8), "tensor": Mesh(data=2, model=4), "pods": Mesh(pod=8), "all": Mesh(2, 2, 2)}
LOSS = jax.jit(jax.value_and_grad(lambda params, batch: batch_loss(params, CONFIG, batch)[0]))
SPECS = model.weights(CONFIG)
TRANSFORM = optimizer(Optimizer(warmup=1), 10, SPECS)


def random_batch() -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCABULARY, (ROWS, TOKENS))
    tokens[:, :2], tokens[:, 4:12] = 1, 2
    rows = lambda values: np.asarray(values, np.int32)  # noqa: E731
    return Batch(
        tokens=rows(tokens),
        targets=rows(rng.integers(0, VOCABULARY, (ROWS, TOKENS))),
        weights=np.float32(rng.random((ROWS, TOKENS)) * (rng.random((ROWS, TOKENS)) < 0.7)),
        modality=rows(rng.integers(0, 5, (ROWS, TOKENS))),
        segments=rows(np.sort(rng.integers(1, 3, (ROWS, TOKENS)), 1)),
        positions=rows(np.tile(np.arange(TOKENS), (ROWS, 1))),
        patches=np.uint8(rng.integers(0, 256, (ROWS, PATCHES, 12))),
        patch_positions=rows(rng.integers(0, 4, (ROWS, PATCHES, 2))),
        patch_images=rows(np.ones((ROWS, PATCHES))),
        frames=np.float32(rng.normal(size=(ROWS, 1, 64, 128))),
        frame_lengths=rows(np.full((ROWS, 1), 50)),
    )


def random_params() -> model.Params:
    leaves, structure = jax.tree.flatten(model.init(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(structure, [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def far(a: Any, b: Any) -> float:
    """Largest difference, where 1 is the largest value of an array (or 1)."""
    parts = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max() / max(1, np.abs(y).max()), a, b)
    return float(max(jax.tree.leaves(parts)))


def stacks_gathered(text: str) -> list[str]:
    """What all-gathers put together that has all layers in it (no other dimension is as long)."""
    gathers = [op for ops in hlo.parse(text).computations.values() for op in ops if op.kind.startswith("all-gather")]
    assert gathers
    return sorted({str(shape.dims) for op in gathers for shape in op.shapes if CONFIG.decoder.layers in shape.dims})


def measure(shape: Mesh, params: model.Params, batch: Batch, one: tuple) -> dict[str, Any]:
    """Loss and gradients on a mesh against those of one device."""
    with sharding.use_mesh(shape):
        args = (
            sharding.shard(params, spec.shardings(params, SPECS)),
            sharding.shard(batch, sharding.batch_specs(batch)),
        )
        compiled = LOSS.lower(*args).compile()
        loss, gradient = compiled(*args)
    return {
        "loss": abs(float(loss) - float(one[0])) / float(one[0]),
        "gradient": far(gradient, one[1]),
        "gathered": stacks_gathered(compiled.as_text()),
    }


def kept(tree: Any) -> bool:
    """Whether every array is cut as the table says."""
    mesh = jax.sharding.get_mesh()
    right = lambda x, part: x.sharding.is_equivalent_to(NamedSharding(mesh, part), x.ndim)  # noqa: E731
    return all(jax.tree.leaves(jax.tree.map(right, tree, spec.shardings(tree, SPECS))))


def measure_step(shape: Mesh, params: model.Params, batch: Batch) -> dict[str, Any]:
    """Two whole training steps, optimizer included, on a mesh against one device; the first, of a warm-up, changes no parameter."""
    one = initial_state(jax.tree.map(jnp.copy, params), CONFIG, TRANSFORM)
    for _ in range(2):
        one, _ = train_step(one, batch, CONFIG, TRANSFORM)
    with sharding.use_mesh(shape), TemporaryDirectory() as folder:
        born = kept(model.init(jax.random.key(0), CONFIG))  # in parts, never whole
        state = initial_state(jax.tree.map(jnp.copy, params), CONFIG, TRANSFORM)
        rows = sharding.shard(batch, sharding.batch_specs(batch))
        compiled = train_step.lower(state, rows, CONFIG, TRANSFORM).compile()
        after, _ = compiled(state, rows)
        saved = Checkpoints(Path(folder), "one")
        saved.save(1, after, None)
        saved.close()
        _, restored, _ = Checkpoints(Path(folder), "one").restore(after)
        after, _ = compiled(restored, rows)
        all_kept = born and kept(restored) and kept(after)
    return {
        "moved": far(params, one.params),
        "params": far(after.params, one.params),
        "optimizer": far(after.optimizer, one.optimizer),
        "gathered": stacks_gathered(compiled.as_text()),
        "shardings_kept": all_kept,
    }


def main() -> None:
    params, batch = random_params(), random_batch()
    one = LOSS(params, batch)
    found: dict[str, Any] = {name: measure(shape, params, batch, one) for name, shape in MESHES.items()}
    found["step"] = measure_step(Mesh(2, 2, 2), params, batch)
    # A table that cuts the stack itself: the loop then needs all of it at once, and the search above has to find that.
    sharding.RULES |= {"layers": "model", "heads": None, "hidden": None}
    jax.clear_caches()
    found["wrong_table"] = measure(Mesh(data=4, model=2), params, batch, one)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
