"""Context extension: a stage for each extension, of the model before it, with the RoPE base of its sequences."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from alhena.model.storage.folders import load_model
from alhena.model.storage.weights import read_config
from alhena.pipeline import make_extended
from alhena.recipe import Extension
from alhena.tokens.examples.padding import BatchShape
from alhena.train.mixture import Phase
from recipes import long_context, starter


def test_each_extension_starts_from_the_model_before_it(smoke: Path, tmp_path: Path):
    """With a learning rate of almost nothing the weights stay; the RoPE base is that of the last extension."""
    for name in ("tokens", "pretrain", "models/base"):
        shutil.copytree(smoke / name, tmp_path / name)
    run = starter.smoke()
    idle = replace(run.pretrain.optimizer, learning_rate=1e-12, weight_decay=0.0)
    t = replace(run.pretrain, phases=(Phase(1, {"retrieval": 1.0}),), optimizer=idle)
    long, longer = (replace(t, shape=BatchShape(1, tokens, 0, 0)) for tokens in (320, 512))
    run = replace(run, extensions=(Extension(long, 20_000.0), Extension(longer, 50_000.0)))
    make_extended(run, tmp_path)
    (before, c), (after, extended) = (load_model(tmp_path / "models" / name) for name in ("base", "base-512"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), before, after)
    assert extended == replace(c, decoder=replace(c.decoder, rope_base=50_000.0))
    assert load_model(tmp_path / "models" / "base-320")[1].decoder.rope_base == 20_000.0
    seen = [read_config(tmp_path / "models" / name)[1]["tokens_seen"] for name in ("base", "base-320", "base-512")]
    assert np.diff(seen).tolist() == [320, 512]
    assert (run.window, run.max_tokens) == (512, max(512, run.tune.shape.tokens))


def test_extensions_become_longer():
    run = long_context.run()
    with pytest.raises(ValueError, match=r"sequences of \[256, 8192, 2048, 32768\] tokens"):
        replace(run, extensions=(run.extensions[1], run.extensions[0], run.extensions[2]))


def test_another_rope_base_needs_global_layers_with_rope_and_one_of_the_local_layers():
    run = long_context.run()
    extended = replace(run.extensions[0], rope_base=50_000.0)
    with pytest.raises(ValueError, match=r"Decoder.local_rope_base is None.*set it to 10000"):
        replace(run, extensions=(extended,))
    decoder = replace(run.decoder, local_rope_base=10_000.0)
    with pytest.raises(ValueError, match=r"Extension.rope_base has no effect.*leave it out"):
        replace(run, extensions=(extended,), decoder=decoder)
    with pytest.raises(ValueError, match=r"Extension.rope_base has no effect.*leave it out"):
        replace(run, extensions=(extended,), decoder=replace(run.decoder, window=None))
    assert replace(run, extensions=(extended,), decoder=replace(decoder, global_rope_fraction=0.5)).extensions
