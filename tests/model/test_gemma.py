"""Logits of tiny random Gemma models equal the reference implementation: full forward, cached decode, and after export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from alhena.batch import Batch
from alhena.model import config, model
from alhena.model.families.export_weights import write
from alhena.model.families.open_weights import read
from alhena.model.storage.weights import load_model, save_model
from alhena.train.loss import Z_LOSS, batch_loss
from tests.model.cached import decode, prefill

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("gemma", "gemma2", "gemma3")
TOLERANCE = 1e-4  # absolute, float32


def text_batch(tokens: np.ndarray) -> Batch:
    batch_size, length = tokens.shape
    empty = np.zeros((batch_size, 0), np.int32)
    return Batch(
        tokens=tokens.astype(np.int32),
        targets=np.zeros_like(tokens),
        weights=np.zeros(tokens.shape, np.float32),
        modality=np.zeros_like(tokens),
        segments=np.ones(tokens.shape, np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (batch_size, 1)),
        patches=np.zeros((batch_size, 0, 192), np.uint8),
        patch_positions=np.zeros((batch_size, 0, 2), np.int32),
        patch_images=empty,
        frames=np.zeros((batch_size, 0, 128, 128), np.float32),
        frame_lengths=empty,
    )


def full_forward(params: model.Params, c: config.Model, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda p, b: model.logits(p, c, model.forward(p, c, b)))(params, text_batch(tokens)))


def cached(params: model.Params, c: config.Model, tokens: np.ndarray, prompt: int) -> np.ndarray:
    """Logits from position ``prompt - 1``: one prefill, then one token per step."""
    step, batch = jax.jit(decode, static_argnums=1), text_batch(tokens[:, :prompt])
    hidden, cache = jax.jit(prefill, static_argnums=(1, 3))(params, c, batch, tokens.shape[1])
    out = [model.logits(params, c, hidden)]
    for i in range(prompt, tokens.shape[1]):
        hidden, cache = step(params, c, jnp.asarray(tokens[:, i]), jnp.full(len(tokens), i), cache)
        out.append(model.logits(params, c, hidden))
    return np.stack(out, 1)


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request):
    folder = GOLDEN / request.param
    params, c = read(folder)
    with np.load(folder / "golden.npz") as arrays:
        return folder, params, c, arrays["tokens"], arrays["logits"]


def test_prefill_and_cached_decode_equal_the_reference(golden) -> None:
    _, params, c, tokens, logits = golden
    np.testing.assert_allclose(full_forward(params, c, tokens), logits, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(cached(params, c, tokens, 5), logits[:, 4:], atol=TOLERANCE, rtol=0)


def test_written_models_read_back(golden, tmp_path: Path) -> None:
    _, params, c, tokens, logits = golden
    write(tmp_path, params, c)
    stored, stored_config = read(tmp_path)
    assert stored_config == c
    np.testing.assert_allclose(full_forward(stored, c, tokens), logits, atol=TOLERANCE, rtol=0)
    save_model(tmp_path / "ours", params, c, {})
    np.testing.assert_array_equal(full_forward(*load_model(tmp_path / "ours"), tokens), full_forward(params, c, tokens))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def test_written_tensors_equal_those_of_the_reference(golden, tmp_path: Path) -> None:
    folder, params, c, _, _ = golden
    write(tmp_path, params, c)
    ours, expected = tensors(tmp_path), tensors(folder)
    expected.pop("lm_head.weight", None)  # tied
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_an_exported_model_has_the_same_logits_in_the_reference(tmp_path: Path) -> None:
    """``exported`` was written by this code, and its logits by the reference implementation that opened it."""
    folder = GOLDEN / "exported"
    with np.load(folder / "logits.npz") as arrays:
        tokens, logits = arrays["tokens"], arrays["logits"]
    params, c = read(folder)
    np.testing.assert_allclose(full_forward(params, c, tokens), logits, atol=TOLERANCE, rtol=0)
    write(tmp_path, params, c)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    ours, expected = tensors(tmp_path), tensors(folder)
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_the_loss_of_a_model_with_soft_caps_equals_that_of_its_logits(golden) -> None:
    _, params, c, tokens, _ = golden
    batch = text_batch(tokens)
    batch = jax.tree.map(jnp.asarray, batch)
    targets, weights = (
        jnp.roll(batch.tokens, -1, 1),
        jnp.asarray(np.arange(tokens.size).reshape(tokens.shape) % 3, jnp.float32),
    )
    batch = Batch(**{**vars(batch), "targets": targets, "weights": weights})

    def reference_loss(p: model.Params) -> jax.Array:
        scores = model.logits(p, c, model.forward(p, c, batch))
        log_z = jax.nn.logsumexp(scores, -1)
        nats = log_z - jnp.take_along_axis(scores, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * (nats + Z_LOSS * log_z**2)) / weights.sum()

    ours = jax.jit(jax.value_and_grad(lambda p: batch_loss(p, c, batch)[0]))(params)
    for a, b in zip(
        jax.tree.leaves(ours), jax.tree.leaves(jax.jit(jax.value_and_grad(reference_loss))(params)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_a_folder_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "gemma3", tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    stored = json.loads(index.read_text())
    first = next(iter(stored["weight_map"]))
    for file, message in (
        ("../secret.safetensors", "must be a .safetensors file in the same folder"),
        ("gone.safetensors", "gone"),
    ):
        index.write_text(json.dumps({"weight_map": {**stored["weight_map"], first: file}}))
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "m")
