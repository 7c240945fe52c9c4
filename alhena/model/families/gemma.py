"""Reads and writes weights of Gemma 1, 2 and 3 (text) in Hugging Face's layout; all three are configurations of our decoder.

    config.json, model-00001-of-00002.safetensors, …  ── read ──►  Params, config.Model  ── write ──►  the same files

    gemma    norms before each sub-layer                                          Gemma Team 2024, arXiv:2403.08295
    gemma2   norms before and after, soft caps, every other layer local           Gemma Team 2024, arXiv:2408.00118
    gemma3   QK-norm, five local layers per global one, two RoPE bases            Gemma Team 2025, arXiv:2503.19786

A matrix is ``[out, in]`` in the files and ``[in, out]`` here. Tensors are read one at a time into the stacked arrays of the result,
so the weights are in memory once. Pickles are never opened.
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
from alhena.model.families.gemma_config import Family, family_of, to_hf_config, to_model_config
from alhena.model.linear import dense
from alhena.model.model import Params
from alhena.model.tensors import INDEX, SINGLE_FILE, Tensors, read_settings
from alhena.model.weights import check_size, write_arrays
from alhena.shapes import Float

__all__ = ["Family", "family_of", "read", "write"]

PREFIXES = ("model.", "model.language_model.", "language_model.model.")  # text models; the decoder of image models
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
# Name of the output matrix, where a file has one, by the prefix of the other tensors.
OUTPUT_MATRICES = dict(
    zip(PREFIXES, ("lm_head.weight", "lm_head.weight", "language_model.lm_head.weight"), strict=True)
)
# Prefixes of an image model's other tensors, which are not read.
VISION_PREFIXES = tuple(p + part for p in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))
MAX_SHARD_BYTES = 4 * 2**30


def _check_tied(tensors: Tensors, embedding: Float[np.ndarray, "V D"], tied: bool) -> None:
    """Raises ValueError when the output matrix is not the embedding."""
    name = OUTPUT_MATRICES[tensors.prefix]
    head = tensors.take(name)
    if head is None and not tied:
        raise ValueError(f"{tensors.folder / 'config.json'}: tie_word_embeddings is false, but there is no {name}")
    if head is not None and not (head.shape == embedding.shape and np.array_equal(head.read(), embedding)):
        raise ValueError(f"{head.path}: {name} differs from the embedding; only tied embeddings are supported")


def read(folder: Path, family: Family) -> tuple[Params, config.Model]:
    """Parameters in float32 and the configuration. The ``family`` of the files must be known.

    Raises ValueError that names the file when the folder holds no model of that family, or tensors that are not understood.
    """
    path = folder / "config.json"
    stored = read_settings(path)
    c, tied = to_model_config(stored, family, path)
    tensors = Tensors(folder, PREFIXES, "embed_tokens.weight")
    check_size(folder, tensors.nbytes, c.min_bytes)
    fields = {**MATRICES, **NORMS[family]}
    like = jax.eval_shape(lambda: decoder.init(jax.random.key(0), c.decoder))
    shapes = {field: getattr(like, field).shape for field in fields}
    layer_tensors = [
        (field, i, f"layers.{i}.{name}.weight") for field, name in fields.items() for i in range(c.decoder.layers)
    ]
    # All shapes are checked before anything is allocated.
    for field, _, name in layer_tensors:
        tensors.check(name, tuple(reversed(shapes[field][1:])))
    embedding = tensors.read("embed_tokens.weight", (c.vocabulary, c.decoder.width))
    norm = tensors.read("norm.weight", (c.decoder.width,))
    _check_tied(tensors, embedding, tied)
    stacked: dict[str, Any] = {field: np.empty(shape, np.float32) for field, shape in shapes.items()}
    for field, i, name in layer_tensors:
        stacked[field][i] = tensors.read(name, tuple(reversed(shapes[field][1:]))).T
    unread = tensors.finish(VISION_PREFIXES if "text_config" in stored else ())
    if unread:
        logging.getLogger(__name__).warning(
            "%s: the decoder is read; left out: %s",
            folder,
            ", ".join(f"{count} tensors of {prefix[:-1]}" for prefix, count in unread.items()),
        )
    arrays: dict[str, Any] = {field: jnp.asarray(stacked[field]) if field in stacked else None for field in vars(like)}
    return Params(jnp.asarray(embedding), None, None, decoder.Layers(**arrays), jnp.asarray(norm)), c


def _tensors(params: Params, c: config.Model) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of all tensors, as the reference stores them."""
    yield "model.embed_tokens.weight", np.asarray(lookup(params.embedding, jnp.arange(c.vocabulary), c.code_factors))
    yield "model.norm.weight", np.asarray(params.norm)
    for field, name in {**MATRICES, **NORMS[family_of(c.decoder)]}.items():
        stacked = np.asarray(dense(getattr(params.layers, field)))
        for i, array in enumerate(stacked):
            yield f"model.layers.{i}.{name}.weight", array.T


def _shards(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The tensors split into files of at most ``MAX_SHARD_BYTES``, in order."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in arrays.items():
        if size and size + array.nbytes > MAX_SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][name] = array
        size += array.nbytes
    return shards


def write(folder: Path, params: Params, c: config.Model) -> None:
    """Writes the decoder and its embedding so that ``transformers`` opens them. The encoders are not written.

    Raises ValueError for a decoder that no family has, and for a folder that holds another model.
    """
    settings, shards = to_hf_config(c), _shards(dict(_tensors(params, c)))
    names = (
        [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        if shards[1:]
        else [SINGLE_FILE]
    )
    existing = {path.name for path in folder.glob("*.safetensors")} | {p.name for p in [folder / INDEX] if p.exists()}
    if others := existing - set(names) - ({INDEX} if shards[1:] else set()):
        raise ValueError(f"{folder / min(others)}: a file of another model; write to an empty folder")
    for name, arrays in zip(names, shards, strict=True):
        write_arrays(folder / name, arrays)
    if shards[1:]:
        weight_map = {tensor: name for name, arrays in zip(names, shards, strict=True) for tensor in arrays}
        size = sum(array.nbytes for arrays in shards for array in arrays.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    write_json(folder / "config.json", settings)
