"""Open weights in and out: Gemma 1, 2 and 3 (text) are configurations of our decoder, in the layout of Hugging Face.

    config.json, model-00001-of-00002.safetensors, …  ── read ──►  Params, config.Model  ── write ──►  the same again

    gemma    norms before each sub-layer                                          Gemma Team 2024, arXiv:2403.08295
    gemma2   norms before and after, capped scores, every other layer local       Gemma Team 2024, arXiv:2408.00118
    gemma3   QK-norm, five local layers to a global one, two RoPE bases           Gemma Team 2025, arXiv:2503.19786

A matrix is ``[out, in]`` there and ``[in, out]`` here. Files are read one tensor at a time into the stacked arrays of the result,
so the weights are in memory once; a pickle is never opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.files import write_json
from alhena.model import config, decoder
from alhena.model.embedding import lookup
from alhena.model.families.gemma_config import Family, configured, described, family_of
from alhena.model.linear import dense
from alhena.model.model import Params
from alhena.model.tensors import INDEX, SINGLE_FILE, Tensors, read_settings
from alhena.model.weights import check_size, write_arrays

__all__ = ["Family", "family_of", "read", "write"]

PREFIXES = ("model.", "model.language_model.", "language_model.model.")  # text models; the text half of image models
MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS: Mapping[Family, Mapping[str, str]] = {
    "gemma": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "gemma2": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
NORMS = {**NORMS, "gemma3": {**NORMS["gemma2"], "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}}
# The output matrix, where a file has it, by the prefix of the rest; and the image half of a larger model.
HEADS = dict(zip(PREFIXES, ("lm_head.weight", "lm_head.weight", "language_model.lm_head.weight"), strict=True))
IMAGE_HALF = tuple(p + part for p in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))
MOST_SHARD = 4 * 2**30  # bytes of one file that is written


def _check_head(tensors: Tensors, embedding: np.ndarray, tied: bool) -> None:
    """Raises ValueError when the model has an output matrix of its own: ours has none."""
    name = HEADS[tensors.prefix]
    head = tensors.take(name)
    if head is None and not tied:
        raise ValueError(f"{tensors.folder / 'config.json'}: tie_word_embeddings is false, but there is no {name}")
    if head is not None and not (head.shape == embedding.shape and np.array_equal(head.read(), embedding)):
        raise ValueError(f"{head.path}: {name} differs from the embedding; only a head tied to it can be read")


def read(folder: Path, family: Family) -> tuple[Params, config.Model]:
    """A model of Hugging Face's layout, in float32.

    Raises ValueError that names the file when the folder does not hold a ``family`` model, or more than that.
    """
    path = folder / "config.json"
    stored = read_settings(path)
    c, tied = configured(stored, family, path)
    tensors = Tensors(folder, PREFIXES, "embed_tokens.weight")
    check_size(folder, tensors.nbytes, c.min_bytes)
    like = jax.eval_shape(lambda: decoder.init(jax.random.key(0), c.decoder))
    shapes = {name: getattr(like, name).shape for name in {**MATRICES, **NORMS[family]}}
    places = [(name, i, f"layers.{i}.{there}.weight") for name, there in {**MATRICES, **NORMS[family]}.items()
              for i in range(c.decoder.layers)]  # fmt: skip
    for name, _, there in places:  # all shapes are right before anything is allocated
        tensors.check(there, tuple(reversed(shapes[name][1:])))
    embedding = tensors.read("embed_tokens.weight", (c.vocabulary, c.decoder.width))
    norm = tensors.read("norm.weight", (c.decoder.width,))
    _check_head(tensors, embedding, tied)
    stacked: dict[str, Any] = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for name, i, there in places:
        stacked[name][i] = tensors.read(there, tuple(reversed(shapes[name][1:]))).T
    left = tensors.finish(IMAGE_HALF if "text_config" in stored else ())
    if left:
        logging.getLogger(__name__).warning(
            "%s: the decoder is read; left out: %s",
            folder,
            ", ".join(f"{n} tensors of {p[:-1]}" for p, n in left.items()),
        )
    arrays: dict[str, Any] = {name: jnp.asarray(stacked[name]) if name in stacked else None for name in vars(like)}
    return Params(jnp.asarray(embedding), None, None, decoder.Layers(**arrays), jnp.asarray(norm)), c


def _tensors(params: Params, c: config.Model) -> Iterator[tuple[str, np.ndarray]]:
    yield "model.embed_tokens.weight", np.asarray(lookup(params.embedding, jnp.arange(c.vocabulary), c.code_factors))
    yield "model.norm.weight", np.asarray(params.norm)
    for field, there in {**MATRICES, **NORMS[family_of(c.decoder)]}.items():
        stacked = np.asarray(dense(getattr(params.layers, field)))
        for i, array in enumerate(stacked):
            yield f"model.layers.{i}.{there}.weight", array.T


def _shards(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in arrays.items():
        if size and size + array.nbytes > MOST_SHARD:
            shards, size = [*shards, {}], 0
        shards[-1][name] = array
        size += array.nbytes
    return shards


def write(folder: Path, params: Params, c: config.Model) -> None:
    """Writes what ``transformers`` opens: the decoder and its embedding. Encoders of images and sound have no place there."""
    settings, shards = described(c), _shards(dict(_tensors(params, c)))
    names = (
        [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        if shards[1:]
        else [SINGLE_FILE]
    )
    there = {path.name for path in folder.glob("*.safetensors")} | {p.name for p in [folder / INDEX] if p.exists()}
    if others := there - set(names) - ({INDEX} if shards[1:] else set()):
        raise ValueError(f"{folder / min(others)}: a file of another model; write to an empty folder")
    for name, arrays in zip(names, shards, strict=True):
        write_arrays(folder / name, arrays)
    if shards[1:]:
        places = {tensor: name for name, arrays in zip(names, shards, strict=True) for tensor in arrays}
        size = sum(array.nbytes for arrays in shards for array in arrays.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    write_json(folder / "config.json", settings)
