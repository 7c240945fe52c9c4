"""Extension of an imported text model: new ids after its own, and encoders of ours, around its decoder.

    base        embedding │ 0 … text V-1 │                                            decoder, norm
    extended    embedding │ 0 … text V-1 │ controls │ structures │ colors │           the same, and random encoders
                            never trained  random

Before training the logits of the old ids are those of the base.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import config, lora, model, spec
from alhena.model.quantized.layout import Quantized, is_quantized
from alhena.model.storage.folders import load_model
from alhena.model.storage.weights import read_config
from alhena.shapes import Array, Float

# Rows of the base from which the size of the new ones is estimated.
SAMPLE = 4096


def read_base(folder: Path) -> config.Model:
    """The configuration of the text model of a folder. Raises ValueError when it is missing, or no text model."""
    if not (folder / "model.json").exists():
        raise ValueError(
            f"{folder}: no such model; import one: alhena import FOLDER_OR_GGUF --out {folder} (docs/open-weights.md)"
        )
    c, _ = read_config(folder)
    parts = {"vision": c.vision, "audio": c.audio, "code_factors": c.code_factors, "special_rows": c.special_rows}
    if name := next((name for name, part in parts.items() if part), None):
        raise ValueError(f"{folder / 'model.json'}: it has {name}; only a model of text alone can be extended")
    return c


def _float32(name: str, w: Any) -> Array:
    if isinstance(w, Quantized):
        raise ValueError(f"{name} is quantized, which cannot be trained: import the model with --weights bfloat16")
    return jnp.asarray(w, jnp.float32)


def _scaled(rows: Float[Array, "R D"], like: Float[Array, "V D"], num_factors: int) -> Float[Array, "R D"]:
    """Rows of the root mean square of others; the last ``num_factors``, of which two are added, give sums of that size."""
    size = [jnp.sqrt(jnp.mean(jnp.square(x))) for x in (rows, like)]
    is_factor = jnp.arange(len(rows))[:, None] >= len(rows) - num_factors
    return rows * (size[1] / size[0]) * jnp.where(is_factor, 0.5**0.5, 1)


def extended(key: Array, c: config.Model, base: Path) -> model.Params:
    """The params of ``c`` before training, float32: random where the base has no weights, otherwise those of the base.

    Raises ValueError when the base does not have the decoder and the frozen rows of ``c``.
    """
    old_c = read_base(base)
    if (old_c.decoder, old_c.vocabulary) != (replace(c.decoder, remat=old_c.decoder.remat), c.frozen_rows):
        raise ValueError(f"{base}: not the model that the recipe extends: another decoder or vocabulary")
    old, specs = lora.merged(load_model(base)[0]), model.weights(c)
    new: Any = replace(specs, layers=(), per_layer=None, altup=None)
    rows, width = new.embedding.shape
    new = replace(new, embedding=replace(new.embedding, shape=(rows - c.frozen_rows, width)))
    new = jax.jit(lambda key: spec.init(key, new))(key)
    taken = jax.tree.map(lambda w: _float32(str(base), w), replace(old, embedding=jnp.zeros(0)), is_leaf=is_quantized)
    table = _float32(str(base), old.embedding)
    like = table[:: max(1, len(table) // SAMPLE)]
    embedding = jnp.concatenate([table, _scaled(new.embedding, like, sum(c.code_factors or (0,)))])
    return replace(taken, embedding=embedding, vision=new.vision, audio=new.audio)
