"""The loss equals a reference; resumed = uninterrupted, bit for bit, also after kill -9; checkpoints of another model are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.files import read_json
from alhena.model import config, model
from alhena.tokens.examples.padding import BatchShape, padded_batch
from alhena.train.loss import Z_LOSS, LossOptions, batch_loss, weighted_loss
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import accumulated_gradient, initial_state, loss_and_gradient, train_step
from alhena.train.trainer import Folders, Hooks, train


def test_fused_loss_equals_the_reference():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2100, 16)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(50, 16)), jnp.float32)
    targets, weights = jnp.asarray(rng.integers(0, 50, 2100)), jnp.asarray(rng.random(2100), jnp.float32)

    def reference(hidden, table):
        logits = hidden @ table.T
        log_z = jax.nn.logsumexp(logits, -1)
        nats = log_z - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
        return jnp.sum(weights * (nats + Z_LOSS * log_z**2))

    ours = lambda h, e: weighted_loss(h, e, targets, weights, LossOptions("float32"))[0]  # noqa: E731
    np.testing.assert_allclose(ours(hidden, table), reference(hidden, table), rtol=1e-5)
    for a, b in zip(jax.grad(ours, (0, 1))(hidden, table), jax.grad(reference, (0, 1))(hidden, table), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_packed_loss_is_the_mean_of_separate_losses(tiny, encoder, documents):
    examples = [e for d in documents for e in encoder.encode(d, 256)]
    loss_of = jax.jit(batch_loss, static_argnums=1)
    total, weight = 0.0, 0.0
    for example in examples:
        _, sums = loss_of(*tiny, jax.tree.map(jnp.asarray, padded_batch([example], 64, 64, 4)))
        total, weight = total + float(sums.nats.sum()), weight + float(sums.weight.sum())
    _, sums = loss_of(*tiny, jax.tree.map(jnp.asarray, padded_batch(examples, 64, 64, 4)))
    assert float(sums.nats.sum()) / float(sums.weight.sum()) == pytest.approx(total / weight, rel=1e-5)


def test_a_step_with_a_nan_gradient_changes_nothing(tiny, encoder, documents):
    params, c = tiny
    transform = optimizer(Optimizer(), 10, model.weights(c))
    batch = jax.tree.map(jnp.asarray, padded_batch(encoder.encode(documents[0], 256), 64, 0, 0))
    nan_batch = replace(batch, weights=batch.weights * jnp.nan)
    state, measured = train_step(initial_state(jax.tree.map(jnp.copy, params), c, transform), nan_batch, c, transform)
    assert not np.isfinite(measured.loss)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert int(state.step) == 1


def test_accumulating_four_parts_of_two_sequences_equals_a_batch_of_eight(encoder, documents):
    """Parts of very different loss weight, one of none: the gradient is that of the complete batch."""
    c = config.Model(encoder.vocabulary.size, 1, 2, config.Decoder(16, 2, 2, 8, 24), None, None)
    params = model.init(jax.random.key(0), c)
    batch = padded_batch(encoder.encode(documents[0], 256) * 8, 32, 0, 0)
    noise = np.random.default_rng(0).random(batch.weights.shape, np.float32)
    factors = np.array([1, 0, 0.1, 1, 1, 0, 2, 0.3], np.float32)  # parts have sequences 0 and 4, 1 and 5, …
    batch = replace(batch, weights=batch.weights * noise * factors[:, None])
    complete = jax.jit(loss_and_gradient, static_argnums=1)(params, c, batch)
    parts = jax.jit(accumulated_gradient, static_argnums=(1, 3))(params, c, batch, 4)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(complete), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * max(1, float(jnp.abs(b).max())))
    assert float(jnp.abs(complete[1].layers.gate).max()) > 1e-5


PHASES = (Phase(4, {"a": 1.0, "b": 1.0}), Phase(4, {"b": 1.0}))
TRAINING = Training(PHASES, BatchShape(2, 128, 96, 4), Optimizer(warmup=2), save_every=2, log_every=2, evaluate_every=4)


def equal(a: model.Params, b: model.Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def copy(params: model.Params) -> model.Params:
    return jax.tree.map(jnp.copy, params)


def test_resumed_equals_uninterrupted_bit_for_bit(tiny, data, tmp_path):
    params, c = tiny
    first = tmp_path / "uninterrupted"
    uninterrupted = train(copy(params), c, TRAINING, Folders(data, first, data), "uninterrupted")
    for stop in (3, 5):  # inside the first phase, and just after the mixture has changed
        out = tmp_path / f"stopped{stop}"
        train(copy(params), c, TRAINING, Folders(data, out), "stopped", Hooks(stop_after=stop))
        equal(train(copy(params), c, TRAINING, Folders(data, out), "resumed"), uninterrupted)
    lines = (first / "metrics.jsonl").read_text().splitlines()
    assert [line.count('"kind": "validation"') for line in lines].count(1) == 2
    with pytest.raises(AssertionError):
        equal(uninterrupted, params)


def test_a_checkpoint_of_another_model_is_refused(tiny, data, tmp_path):
    params, c = tiny
    train(copy(params), c, TRAINING, Folders(data, tmp_path / "out"), "first", Hooks(stop_after=2))
    other = replace(c, decoder=replace(c.decoder, hidden=56))
    with pytest.raises(
        ValueError, match=r"checkpoints .* are of another training: other settings, seed, model or data"
    ):
        train(model.init(jax.random.key(0), other), other, TRAINING, Folders(data, tmp_path / "out"), "other")


def test_killed_with_sigkill_a_run_resumes_with_the_same_weights(smoke, tmp_path):
    """A run that is killed during pre-training ends with the weights of one that was not killed, in another process and folder."""
    script = textwrap.dedent("""
        import os, signal, sys
        from functools import partial
        from pathlib import Path
        from alhena import pipeline
        from alhena.train.trainer import Hooks
        from recipes import starter
        kill = int(sys.argv[2])
        on_step = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == kill else None
        pipeline.train = partial(pipeline.train, hooks=Hooks(on_step=on_step))
        run, folder = starter.smoke(), Path(sys.argv[1])
        for stage in pipeline.STAGES[:5]:
            stage(run, folder)
    """)
    (tmp_path / "run.py").write_text(f"if __name__ == '__main__':\n{textwrap.indent(script, '    ')}")

    def run(folder: Path, kill: int) -> int:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(
            [sys.executable, str(tmp_path / "run.py"), str(folder), str(kill)], env=environment, capture_output=True
        ).returncode

    assert run(tmp_path / "killed", 7) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "pretrain" / "stage.json").exists()
    manifest = read_json(tmp_path / "killed" / "tokens" / "stage.json")
    assert run(tmp_path / "killed", 0) == 0
    assert read_json(tmp_path / "killed" / "tokens" / "stage.json") == manifest  # a finished stage is not repeated
    weights = [(r / "models" / "base" / "weights.safetensors").read_bytes() for r in (tmp_path / "killed", smoke)]
    assert weights[0] == weights[1]
