"""Models written as GGUF and read again: the same configuration, bits and logits; what an architecture lacks is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config, model
from alhena.model.families import open_weights
from alhena.model.families.export_weights import without_encoders
from alhena.model.families.gguf import gemma3n, reader
from alhena.model.families.gguf.file import GgufTensor, Q, open_gguf
from alhena.model.families.gguf.writer import write_decoder
from alhena.model.families.import_weights import import_weights
from alhena.model.quantized.layout import is_quantized
from alhena.model.quantized.rounding import quantize
from alhena.model.storage.weights import load_model

GOLDEN = Path(__file__).parent / "golden"
NONE = {"tokenizer.ggml.model": "none"}
SMALL = config.Decoder(32, 4, 2, 32, 64, window=4, global_every=3, local_rope_base=5000.0, rope_scaling_factor=8.0)
# All that llama.cpp fixes, and small sizes elsewhere.
GEMMA3N = config.Decoder(
    32, 22, 2, 16, 64, kv_heads=1, window=4, global_every=5, local_rope_base=1e4, rope_base=1e6, query_pre_attn_scalar=1.0,
    final_logit_softcap=30.0, value_norm=True, kv_sharing_layers=2, per_layer_inputs=config.PerLayerInputs(256, 40),
    altup=config.AltUp(4, 64, 10, 0.95),
)  # fmt: skip


def random_model(d: config.Decoder, seed: int = 0, **fields: Any) -> tuple[model.Params, config.Model]:
    c = config.Model(48, -1, -1, d, None, None, **fields)
    rng = np.random.default_rng(seed)
    make = lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32) / s.shape[-1])  # noqa: E731
    return jax.tree.map(make, model.weights(c)), c


def quantized(params: model.Params, c: config.Model, bits: Any) -> model.Params:
    def one(s: Any, w: Any) -> Any:
        return w if s.contracted is None or s.shape[s.contracted] % 32 else quantize(w, bits, s.contracted == -1)

    return jax.tree.map(one, model.weights(c), params)


def as_used(params: model.Params) -> model.Params:
    """Scales of norms as the model uses them, with one added: their offsets are rounded in the file."""
    return jax.tree.map(lambda w: np.asarray(w) if w.ndim > 2 else np.float32(1) + np.asarray(w, np.float32), params)


@pytest.mark.parametrize(
    "name",
    ["gemma", "gemma2", "gemma3", "open/gemma3_text", "open/gemma4_small", "open/gemma4_large", "open/gemma4_moe"],
)
def test_a_written_model_is_read_again(name, tmp_path):
    params, c = open_weights.read(GOLDEN / name)
    if "4" not in name:
        # The architectures have the score scale of the published models.
        c = replace(c, decoder=replace(c.decoder, query_pre_attn_scalar=None))
    c, params = without_encoders(c), replace(params, vision=None, audio=None, special=None)
    assert write_decoder(tmp_path / "model.gguf", params, c, NONE) == name.removeprefix("open/").split("_")[0]
    read, read_c = open_weights.read_all(reader.open_file(tmp_path / "model.gguf"))
    assert read_c.vocabulary == c.vocabulary and read_c.decoder.embedding_scale == c.decoder.embedding_scale
    for a, b in zip(jax.tree.leaves(as_used(params)), jax.tree.leaves(as_used(read)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gemma3n_is_read_again_with_a_row_of_per_layer_inputs_for_every_id(tmp_path):
    params, c = random_model(GEMMA3N)
    assert write_decoder(tmp_path / "model.gguf", params, c, NONE) == "gemma3n"
    opened = reader.open_file(tmp_path / "model.gguf")
    # Keys, values and norms of keys of two layers, which nothing reads.
    assert opened.left_out == ["6 tensors of keys and values of layers that share those of others"]
    read, _ = open_weights.read_all(opened)
    table = np.asarray(params.per_layer.table)
    np.testing.assert_array_equal(read.per_layer.table, np.concatenate([table, np.tile(table[:1], (8, 1))]))
    read = replace(read, per_layer=replace(read.per_layer, table=params.per_layer.table))
    for a, b in zip(jax.tree.leaves(as_used(params)), jax.tree.leaves(as_used(read)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_sharing_layers": 4}, "layers with keys of their own: 18; llama.cpp's gemma3n has 20"),
        ({"altup": config.AltUp(4, 32, 10, 0.95)}, "altup.laurel_rank 32; llama.cpp's gemma3n has 64"),
        ({"altup": config.AltUp(4, 64, 8, 0.95)}, "altup.sparse_layers 8; llama.cpp's gemma3n has 10"),
        ({"final_logit_softcap": None}, "final_logit_softcap None; llama.cpp's gemma3n has 30.0"),
    ],
)
def test_a_gemma3n_of_other_sizes_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gemma3n.check(replace(GEMMA3N, **changes))


@pytest.mark.parametrize("shape", [(2**20,), (65, 8, 8), (3, 8, 8, 8)])
def test_a_stack_of_another_form_is_refused(shape):
    tensor = GgufTensor(Path("model.gguf"), "altup_proj.weight", shape, "F32", 0)
    with pytest.raises(ValueError, match=r"altup_proj\.weight is .*; a matrix for each of a few streams is needed"):
        gemma3n.unstacked(tensor.name, tensor)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_keep_their_bits(bits, tmp_path):
    """Through the file into a model folder; a stack of experts too, whose gate and up are one tensor there."""
    experts = replace(
        SMALL, value_norm=True, global_every=2, layer_scalar=True, query_pre_attn_scalar=1.0, rope_scaling_factor=1.0,
        final_logit_softcap=30.0, experts=config.Experts(3, 2, 32),
    )  # fmt: skip
    whole_table = replace(GEMMA3N, per_layer_inputs=config.PerLayerInputs(256, 48))
    decoders = {"gemma3": SMALL, "gemma4": experts} | ({"gemma3n": whole_table} if bits == 4 else {})
    for name, decoder in decoders.items():
        params, c = random_model(decoder)
        params = quantized(params, c, bits)
        path = tmp_path / f"{name}.gguf"
        assert write_decoder(path, params, c, NONE) == name
        kinds = {tensor.kind for tensor in open_gguf(path).tensors.values() if len(tensor.shape) > 1}
        assert kinds - {Q.F32} == {Q.Q4_0 if bits == 4 else Q.Q8_0}
        import_weights(reader.open_file(path), tmp_path / name)
        read, read_c = load_model(tmp_path / name)
        assert jax.tree.structure(read) == jax.tree.structure(params)
        pairs = zip(*(jax.tree.leaves(p, is_leaf=is_quantized) for p in (params, read)), strict=True)
        count = 0
        for ours, theirs in pairs:
            if is_quantized(ours):
                count += 1
                np.testing.assert_array_equal(ours.packed, theirs.packed)
                np.testing.assert_array_equal(ours.scales, theirs.scales)
        assert count >= 8 and read_c.decoder.layers == decoder.layers


def test_image_codes_have_a_row_each(tmp_path):
    """The model's own rows are factors; in the file the logits of all ids are those of one matrix."""
    params, c = random_model(replace(SMALL, window=None, global_every=1, rope_scaling_factor=1.0), code_factors=(4, 3))
    write_decoder(tmp_path / "model.gguf", params, c, NONE)
    read, read_c = open_weights.read_all(reader.open_file(tmp_path / "model.gguf"))
    assert read.embedding.shape == (48, 32) and read_c.code_factors is None
    hidden = jnp.asarray(np.random.default_rng(1).standard_normal((5, 32), np.float32))
    expected, found = model.logits(params, c, hidden), model.logits(read, read_c, hidden)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_types_of_matrices_that_are_not_quantized(tmp_path):
    params, c = random_model(SMALL)
    for floats, kind in (("f32", Q.F32), ("bf16", Q.BF16), ("f16", Q.F16), (None, Q.F32)):
        path = tmp_path / f"{floats}.gguf"
        write_decoder(path, params, c, NONE, floats)
        kinds = {len(t.shape): t.kind for t in open_gguf(path).tensors.values()}
        assert kinds == {1: Q.F32, 2: kind}
    large = replace(params, embedding=params.embedding.at[0, 0].set(1e6))
    with pytest.raises(ValueError, match=r"token_embd\.weight holds values that are not finite"):
        write_decoder(tmp_path / "large.gguf", large, c, NONE, "f16")
    assert not (tmp_path / "large.gguf").exists() and len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_pre_attn_scalar": 20.0}, "query_pre_attn_scalar 20.0, a gemma3 file would have 32.0"),
        ({"attention_softcap": 20.0}, "attention_softcap 20.0, a gemma3 file would have None"),
        ({"embedding_scale": 7.0}, "embedding_scale 7.0; llama.cpp scales by"),
        ({"layer_scalar": True}, "its architecture has no model.layers.0.layer_scalar"),
        ({"log_scaling_start": 64}, "log_scaling_start 64, a gemma3 file would have None"),
        ({"kv_sharing_layers": 1}, "kv_sharing_layers 1, a gemma3 file would have 0"),
        ({"qk_norm": False}, "gemma2 in llama.cpp always has soft caps"),
        ({"qk_norm": False, "post_norm": False}, "a gemma file would have"),
        ({"post_norm": False}, "QK-norm but without norms after its sub-layers"),
        ({"value_norm": True}, "cannot be exported as gemma4: layer_types"),
        (
            {"altup": GEMMA3N.altup, "per_layer_inputs": config.PerLayerInputs(32, 48), "value_norm": True},
            "per_layer_inputs.width 32; llama.cpp's gemma3n has 256",
        ),
    ],
)
def test_what_an_architecture_lacks_is_refused_by_name(changes, message, tmp_path):
    params, c = random_model(replace(SMALL, **changes))
    with pytest.raises(ValueError, match=message):
        write_decoder(tmp_path / "model.gguf", params, c, NONE)
    assert not list(tmp_path.iterdir())
