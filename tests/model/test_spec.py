"""A weight is declared once: what is initialized, sharded, trained, counted, quantized and stored follows from its specification."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from alhena.compress.quantize import quantize_model
from alhena.model import config, image_tokenizer, model, spec
from alhena.model.quantized.layout import Int4, is_quantized
from alhena.model.quantized.types import type_table
from alhena.model.spec import Normal, WeightSpec, matrix, stacked, vector, within
from alhena.model.storage.weights import read_tree, write_tree
from alhena.shapes import pytree
from alhena.train.optimizer import Optimizer, optimizer
from recipes import nano_1, nano_2, pro, starter, two_pods, ultra

DECODER = config.Decoder(width=32, layers=3, heads=4, head_dim=8, hidden=64)
VISION = config.Vision(width=16, layers=2, heads=2, hidden=24, side=16)
AUDIO = config.Conformer(width=16, layers=2, heads=2, hidden=24)
USM = config.Usm(width=16, layers=2, heads=2, hidden=32, mels=8, chunk=64, channels=(4, 4), block=3, left=4, right=1)
CONFIGS = {
    "all": config.Model(500, 1, 2, DECODER, VISION, AUDIO, (16, 4)),
    "plain, usm": config.Model(500, 1, 2, replace(DECODER, qk_norm=False), replace(VISION, plain=True), USM),
    "text": config.Model(500, 1, 2, replace(DECODER, qk_norm=False, post_norm=False), None, None),
}


# ── a module defined in this test ────────────────────────────────────────────────────


@pytree
@dataclass(frozen=True)
class Adapter:
    norm: Any
    side: Any
    positions: Any
    bias: Any = None


@pytree
@dataclass(frozen=True)
class Network:
    adapter: Adapter
    head: Any


def weights() -> Network:
    adapter = Adapter(
        norm=vector(8, 0.5),
        side=matrix(0, (32, 16), ("width", "hidden"), gain=0.5, quantize=True),
        positions=WeightSpec((4, 8), (None, None), Normal(1), "adam", decay=True),
    )
    return Network(within(3, stacked(2, adapter)), matrix(0, (8, 4), ("width", None)))


def test_a_weight_declared_once_is_initialized_counted_sharded_trained_quantized_and_stored(tmp_path):
    specs = weights()
    params = spec.init(jax.random.key(0), specs)
    assert params.adapter.side.shape == (2, 32, 16) and params.adapter.bias is None
    assert float(params.adapter.side.std()) == pytest.approx(0.5 / 32**0.5, rel=0.1)
    np.testing.assert_array_equal(params.adapter.norm, np.full((2, 8), 0.5, np.float32))
    # Each module has its own key.
    assert not np.array_equal(params.adapter.side[0, :, :4], params.head)
    assert model.count(specs) == model.count(params) == model.count(spec.shapes(specs)) == 2 * (8 + 512 + 32) + 32

    transform = optimizer(Optimizer(warmup=1), 10, specs)
    state = {"params": params, "optimizer": transform.init(params), "step": jnp.zeros(())}
    parts = spec.shardings(state, specs)
    assert parts["params"].adapter.side == PartitionSpec(None, "data", "model")
    moments = [part for part in jax.tree.leaves(parts["optimizer"]) if part == PartitionSpec(None, "data", "model")]
    # Muon has one moment, Adam would have two.
    assert len(moments) == 1 and parts["step"] == PartitionSpec()

    quantized = quantize_model(params, specs)
    assert isinstance(quantized.adapter.side, Int4) and not isinstance(quantized.adapter.positions, Int4)
    for tree, names in ((params, {"adapter.side"}), (quantized, {"adapter.side.packed", "adapter.side.scales"})):
        assert names <= spec.named(tree).keys()
        write_tree(tmp_path / "w.safetensors", tree)
        jax.tree.map(np.testing.assert_array_equal, read_tree(tmp_path / "w.safetensors", specs), tree)


def test_the_optimizer_follows_the_specification_not_the_name_of_a_weight():
    """``positions`` has Adam with weight decay, ``side`` Muon without; with gradients of 0 only weight decay changes a weight."""
    specs = weights()
    specs = replace(specs, adapter=replace(specs.adapter, side=replace(specs.adapter.side, decay=False)))
    params = spec.init(jax.random.key(0), specs)
    transform = optimizer(
        Optimizer(learning_rate=1.0, warmup=1, weight_decay=0.25, schedule="cosine", final_learning_rate_fraction=1.0),
        10,
        specs,
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    # The first learning rate of a warm-up is 0.
    _, state = transform.update(zero, transform.init(params), params)
    updates, _ = transform.update(zero, state, params)
    after = optax.apply_updates(params, updates)
    for name, before in spec.named(params).items():
        share = 0.75 if name in ("adapter.positions", "head") else 1.0
        np.testing.assert_allclose(spec.named(after)[name], share * before, rtol=1e-6, err_msg=name)
    assert spec.groups(specs).adapter == Adapter("adam", "muon", "adam")


def test_a_wrong_declaration_is_refused():
    with pytest.raises(ValueError, match="no logical axis is named 'hiden'"):
        matrix(0, (8, 16), ("width", "hiden"))
    with pytest.raises(ValueError, match=r"shape \(8, 16\) has 1 logical axes"):
        WeightSpec((8, 16), ("width",), Normal(0), "muon", decay=True)
    with pytest.raises(ValueError, match="no matrix: Muon"):
        WeightSpec((8,), (None,), Normal(0), "muon", decay=True)
    with pytest.raises(ValueError, match="optimizer group 'muno'"):
        WeightSpec((8, 8), (None, None), Normal(0), "muno", decay=True)
    # A declaration without a field.
    with pytest.raises(TypeError, match="unexpected keyword argument 'down'"):
        Adapter(norm=vector(8), side=vector(8), positions=vector(8), down=vector(8))  # type: ignore[call-arg]
    # A field without a declaration.
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'side'"):
        Adapter(norm=vector(8), positions=vector(8))  # type: ignore[call-arg]


def test_arrays_without_a_specification_are_refused_by_name():
    specs, shapes = weights(), spec.shapes(weights())
    biased = replace(shapes, adapter=replace(shapes.adapter, bias=jax.ShapeDtypeStruct((2, 8), jnp.float32)))
    with pytest.raises(ValueError, match=r"adapter\.bias \(2, 8\) has no specification"):
        spec.shardings([biased], specs)
    with pytest.raises(ValueError, match=r"head is \(3,\), its specification is \(8, 4\)"):
        spec.shardings([replace(shapes, head=jax.ShapeDtypeStruct((3,), jnp.float32))], specs)
    with pytest.raises(ValueError, match="there is no Network in a tree of type Params"):
        spec.shardings(spec.shapes(model.weights(CONFIGS["text"])), specs)


# ── the weights of the model ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CONFIGS)
def test_arrays_are_those_of_the_specifications(name):
    c = CONFIGS[name]
    specs = model.weights(c)
    actual = jax.eval_shape(lambda: model.init(jax.random.key(0), c))
    assert actual == spec.shapes(specs)
    # Specifications are a key of the optimizer's cache.
    assert hash(specs) == hash(model.weights(c)) and specs == model.weights(c)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_decoder_of_any_kind_is_quantized(name):
    c = CONFIGS[name]
    params, specs = model.init(jax.random.key(0), c), model.weights(c)
    leaves = jax.tree.leaves(quantize_model(params, specs), is_leaf=is_quantized)
    four_bit = [name for name, w in zip(spec.named(specs), leaves, strict=True) if isinstance(w, Int4)]
    matrices = {f"layers.{n}" for n in ("query", "key", "value", "output", "gate", "up", "down")}
    assert matrices <= {*four_bit} and "embedding" not in four_bit
    assert four_bit == [name for name, entry in type_table(specs).items() if entry.type == "int4"]


def test_random_weights_of_a_module_have_different_keys():
    image = config.ImageTokenizer((8, 5), (3,), 16, encoder_blocks=2)
    for specs in (*map(model.weights, CONFIGS.values()), image_tokenizer.weights(image)):
        drawn = {n: (s.scope, s.initializer.key) for n, s in spec.named(specs).items() if hasattr(s.initializer, "key")}
        shared = {key for key, count in Counter(drawn.values()).items() if count > 1}
        assert {n for n, key in drawn.items() if key in shared} == set()


@pytest.mark.parametrize("recipe", [starter, two_pods, nano_1, nano_2, pro, ultra])
def test_muon_trains_the_matrices_of_linear_layers_and_nothing_else(recipe):
    run = recipe.run()
    c = config.Model(4096, 1, 2, run.decoder, run.vision, run.audio)
    for name, s in spec.named(model.weights(c)).items():
        no_matrix = len(s.shape) - ("layers" in s.axes) < 2
        other = name in ("embedding", "vision.stem.rows", "vision.stem.columns", "audio.layers.depthwise")
        assert (s.group, s.decay) == (("adam", False) if no_matrix or other else ("muon", True)), name
        large = s.size > 2**24 and len([n for n in s.shape if n > 64]) > 1
        assert not large or any(axis not in (None, "layers") for axis in s.axes), f"{name} {s.shape} is not sharded"
