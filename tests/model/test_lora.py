"""LoRA: nothing changes before the first step, merged weights are the same model, and only the adapters are trained and stored."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.compress.quantize import quantize_model
from alhena.files import read_json, write_json
from alhena.model import config, lora, model, spec
from alhena.model.families import peft
from alhena.train.loss import LossOptions, batch_loss, weighted_loss
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import initial_state, train_step
from tests.model.test_gemma import text_batch

DECODER = config.Decoder(
    width=32, layers=4, heads=2, head_dim=16, hidden=64, window=4, global_every=2, final_logit_softcap=30.0
)
C = config.Model(64, -1, -1, DECODER, None, None)
# Two segments of blocks, of layers with and without keys and values of their own.
SHARING = replace(C, decoder=replace(DECODER, value_norm=True, layer_scalar=True, kv_sharing_layers=2))
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12))


def adapted(c: config.Model, rank: int = 4, scale: float = 2.0) -> tuple[model.Params, lora.Adapters]:
    """Random params, and adapters before their first step."""
    params = model.init(jax.random.key(0), c)
    return params, spec.init(jax.random.key(1), lora.weights(model.weights(c), rank, scale))


def trained(adapters: lora.Adapters) -> lora.Adapters:
    """Adapters of which no part is zero."""
    leaves, structure = jax.tree.flatten(adapters)
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(structure, [leaf + 0.1 * rng.normal(size=leaf.shape).astype("f") for leaf in leaves])


def logits(params: model.Params, c: config.Model) -> np.ndarray:
    batch = text_batch(TOKENS)
    return np.asarray(jax.jit(lambda p: model.logits(p, c, model.forward(p, c, batch)))(params))


@pytest.mark.parametrize("c", [C, SHARING], ids=["uniform", "segments"])
def test_adapters_change_nothing_at_first_and_merge_into_the_same_model(c):
    params, adapters = adapted(c)
    before = logits(params, c)
    np.testing.assert_array_equal(logits(lora.attach(params, adapters), c), before)
    with_updates = lora.attach(params, trained(adapters))
    after = logits(with_updates, c)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(logits(lora.merged(with_updates), c), after, atol=1e-5 * np.abs(after).max(), rtol=0)


def test_adapters_beside_four_bit_weights_merge_into_the_dequantized_ones():
    params, adapters = adapted(C)
    # The matmul by a 4-bit weight rounds the activations.
    with_updates = lora.attach(quantize_model(params, model.weights(C)), trained(adapters))
    after = logits(with_updates, C)
    np.testing.assert_allclose(logits(lora.merged(with_updates), C), after, atol=0.03 * np.abs(after).max(), rtol=0)


def test_only_adapters_are_trained():
    params, adapters = adapted(C)
    frozen, batch = jax.tree.map(np.array, params), replace(text_batch(TOKENS), targets=np.roll(TOKENS, -1, 1))
    batch = replace(batch, weights=np.ones(TOKENS.shape, np.float32))
    transform = optimizer(Optimizer(learning_rate=1e-2, warmup=1), 10, lora.weights(model.weights(C), 4, 2.0))
    state, losses = initial_state(adapters, C, transform), []
    for _ in range(8):
        state, measured = train_step(state, batch, C, transform, 1, params)
        losses.append(float(measured.loss))
    assert losses[-1] < losses[0] - 0.5
    jax.tree.map(np.testing.assert_array_equal, params, frozen)
    complete = jax.jit(batch_loss, static_argnums=1)(lora.attach(params, state.params), C, batch)[0]
    assert float(complete) < losses[-1]


def test_a_frozen_embedding_has_no_gradient_and_changes_no_other():
    rng = np.random.default_rng(0)
    hidden, embedding = rng.normal(size=(6, 8)).astype("f"), rng.normal(size=(20, 8)).astype("f")
    targets, weights = jnp.arange(6), jnp.ones(6)
    loss = partial(weighted_loss, options=LossOptions("float32"))
    of_both = jax.grad(lambda h, e: loss(h, e, targets, weights)[0], (0, 1))(hidden, embedding)
    of_hidden = jax.make_jaxpr(jax.grad(lambda h: loss(h, embedding, targets, weights)[0]))(hidden)
    np.testing.assert_array_equal(jax.grad(lambda h: loss(h, embedding, targets, weights)[0])(hidden), of_both[0])
    # No matmul makes an array of the shape of the embedding.
    assert "f32[20,8] = dot_general" not in str(of_hidden)


@pytest.mark.parametrize("c", [C, SHARING], ids=["uniform", "segments"])
def test_adapters_in_the_layout_of_peft_read_back(c, tmp_path):
    adapters = trained(adapted(c)[1])
    peft.write(tmp_path, adapters, c, "../base")
    back = peft.read(tmp_path, c)
    assert back.names == adapters.names
    assert back.scale == adapters.scale
    jax.tree.map(np.testing.assert_array_equal, back, adapters)
    settings = read_json(tmp_path / peft.SETTINGS)
    assert settings["target_modules"] == sorted(f"{x}_proj" for x in "down gate k o q up v".split())
    write_json(tmp_path / peft.SETTINGS, settings | {"use_dora": True})
    with pytest.raises(ValueError, match=r"adapter_config\.json: use_dora is True"):
        peft.read(tmp_path, c)


def test_adapters_of_another_model_are_refused(tmp_path):
    peft.write(tmp_path, adapted(C)[1], C, "../base")
    with pytest.raises(
        ValueError, match=r"adapter_model\.safetensors: .* is no update of a linear layer of this model"
    ):
        peft.read(tmp_path, replace(C, decoder=replace(DECODER, layers=2)))
    with pytest.raises(ValueError, match=r"LoRA of rank 64: layers\.query is 32 × 32"):
        lora.weights(model.weights(C), 64, 1.0)
    with pytest.raises(ValueError, match="adapters are of another model"):
        lora.attach(adapted(SHARING)[0], adapted(C)[1])
