"""The table of types follows from the specifications; settings override it; wrong ones are refused by name."""

from __future__ import annotations

import pytest

from alhena.model import config, model
from alhena.model.quantized.types import read_types, summary, type_table
from alhena.tokens.vocabulary import Vocabulary
from recipes import starter

C = config.Model(
    300,
    1,
    2,
    config.Decoder(width=64, layers=2, heads=2, head_dim=32, hidden=96),
    config.Vision(width=32, layers=1, heads=2, hidden=64, patch=8),
    config.Conformer(width=32, layers=1, heads=2, hidden=64, mels=40),
)
SPECS = model.weights(C)


def test_matrices_have_4_bits_the_embedding_8_and_everything_else_is_float():
    table = type_table(SPECS)
    assert table["embedding"].type == "int8"
    quantized = {name.rpartition(".")[2] for name, entry in table.items() if entry.type == "int4"}
    assert {"query", "down", "qkv", "patch", "window_in", "first_up", "convolution_in", "project"} <= quantized
    floats = {name: entry.reason for name, entry in table.items() if entry.bits is None}
    assert floats["layers.mlp_norm"] == floats["vision.stem.rows"] == floats["audio.layers.depthwise"]
    # 3 frames of 40 mels.
    assert floats["audio.subsample_1"] == "120 inputs are not whole groups of 32"
    assert table["layers.gate"].bytes == 2 * 64 * 96 // 2 + 2 * 64 * 96 // 32 * 2


def test_the_table_says_what_every_method_only_rounds():
    """Of a decoder with experts and per-layer inputs."""
    experts, inputs = config.Experts(number=2, chosen=1, hidden=32), config.PerLayerInputs(64, 32)
    decoder = config.Decoder(
        width=64, layers=2, heads=2, head_dim=32, hidden=96, experts=experts, per_layer_inputs=inputs
    )
    table = type_table(model.weights(config.Model(300, 1, 2, decoder, None, None)))
    notes = {name: entry.reason for name, entry in table.items() if entry.bits}
    assert (
        notes["layers.experts.gate"] == notes["layers.experts.down"] == "rounded to nearest: few tokens for each expert"
    )
    assert notes["embedding"] == notes["per_layer.table"] == "rounded to nearest: each row is a token's own"
    assert notes["layers.gate"] == ""
    assert ("layers.experts.gate", "int4", notes["layers.experts.gate"]) in {(r[0], r[1], r[4]) for r in summary(table)}


def test_no_quantized_model_is_smaller_than_the_bound_of_its_files():
    recipe = starter.run()
    own = recipe.model(Vocabulary(recipe.text_vocabulary_size, recipe.image_tokenizer.num_codes))
    for c in (C, own):
        sizes = [entry.bytes for entry in type_table(model.weights(c), {"embedding": "int4"}).values()]
        assert 0.3 * sum(sizes) < c.min_bytes <= sum(sizes)


def test_the_last_setting_that_matches_holds():
    table = type_table(SPECS, read_types(["vision=bfloat16", "*.down=int8", "vision.project=int4", "embedding=int4"]))
    types = {name: entry.type for name, entry in table.items()}
    assert types["vision.layers.qkv"] == types["vision.norm"] == "bfloat16"
    assert types["layers.down"] == types["vision.layers.down"] == "int8"
    assert types["vision.project"] == types["embedding"] == types["layers.up"] == "int4"
    rows = {(name, kind) for name, kind, *_ in summary(table)}
    assert {("layers.down", "int8"), ("vision.project", "int4")} <= rows


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("layers.dwon=int8", "no tensor of that name; names begin with embedding, vision, audio, layers, norm"),
        ("layers.down=int3", "choose one of int4, int8, bfloat16, float"),
        ("audio.subsample_1=int4", "audio.subsample_1 cannot be quantized: 120 inputs"),
        ("layers.mlp_norm=int8", "layers.mlp_norm cannot be quantized: no matrix of a matmul"),
        ("layers.down", "write NAME=TYPE"),
    ],
)
def test_a_wrong_setting_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        type_table(SPECS, read_types([setting]))
