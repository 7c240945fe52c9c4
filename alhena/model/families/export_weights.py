"""Exports a model in Hugging Face's layout, one tensor at a time, so that ``transformers`` opens it.

A model with bfloat16 matrices is written in bfloat16, bit for bit as it was imported; any other in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from alhena.files import write_json
from alhena.model import config, model
from alhena.model.embedding import lookup
from alhena.model.families.model_config import described, write_config
from alhena.model.families.open_weights import tensor_table
from alhena.model.families.tensor_map import Source
from alhena.model.int4 import Int4
from alhena.model.linear import Plain, dense
from alhena.model.spec import named
from alhena.model.tensor_writer import Declared, write_tensors
from alhena.model.tensors import INDEX, SINGLE_FILE

MAX_SHARD_BYTES = 4 * 2**30


def _by_name(params: model.Params, c: config.Model) -> dict[str, Plain]:
    """The weights by their dotted names; a 4-bit weight is one."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Int4))
    return dict(zip(named(model.weights(c)), leaves, strict=True))


@dataclass(frozen=True)
class _Part:
    """A weight, or an index of a stacked one, and the tensors that it becomes."""

    source: Source
    weight: Plain
    index: int | None

    def tensors(self) -> tuple[np.ndarray, ...]:
        w = self.weight
        if isinstance(w, Int4):
            w = w if self.index is None else Int4(w.packed[self.index], w.scales[self.index], w.transposed)
            return self.source.to_theirs(np.asarray(dense(w)))
        array = np.asarray(w)
        return self.source.to_theirs(array if self.index is None else np.asarray(array[self.index]))


def _parts(params: model.Params, c: config.Model) -> Iterator[_Part]:
    """All weights that files of the family hold."""
    weights = _by_name(params, c)
    if c.code_factors:
        # Files have a row for each id.
        weights["embedding"] = lookup(params.embedding, jnp.arange(c.vocabulary), c.code_factors)
    for name, sources in tensor_table(described(c)).items():
        if isinstance(sources, Source):
            yield _Part(sources, weights[name], None)
            continue
        for index, source in enumerate(sources):
            yield _Part(source, weights[name], index)


def _is_exact(array: np.ndarray) -> bool:
    """Whether bfloat16 holds all values of an array."""
    return array.dtype == ml_dtypes.bfloat16 or np.array_equal(
        array.astype(ml_dtypes.bfloat16).astype(array.dtype), array
    )


def _declared(parts: list[_Part], half: bool) -> dict[str, Declared]:
    """The tensors that will be written, in order. With ``half`` those that bfloat16 holds are bfloat16."""
    out: dict[str, Declared] = {}
    for part in parts:
        exact = [True] * len(part.source.names)
        if half and not (isinstance(part.weight, Int4) or part.weight.dtype == jnp.bfloat16):
            exact = [_is_exact(tensor) for tensor in part.tensors()]
        for name, fits in zip(part.source.names, exact, strict=True):
            other = out.get(name)
            is_half = half and fits and not isinstance(part.weight, Int4) and (other is None or other.dtype == "BF16")
            out[name] = Declared("BF16" if is_half else "F32", part.source.shape)
    return out


def _shards(tensors: dict[str, Declared]) -> list[dict[str, Declared]]:
    """The tensors split into files of at most ``MAX_SHARD_BYTES``, in order."""
    shards: list[dict[str, Declared]] = [{}]
    size = 0
    for name, declared in tensors.items():
        if size and size + declared.nbytes > MAX_SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][name] = declared
        size += declared.nbytes
    return shards


def _write_shard(path: Path, declared: dict[str, Declared], parts: list[_Part]) -> None:
    with write_tensors(path, declared) as file:
        for part in parts:
            if declared.keys().isdisjoint(part.source.names):
                continue
            for name, tensor in zip(part.source.names, part.tensors(), strict=True):
                if name in declared:
                    with file.open(name) as target:
                        target[part.source.part or ...] = tensor


def exported(c: config.Model) -> config.Model:
    """The part of a model that a file of its family holds: without encoders that the family does not have."""
    kind = described(c).model_type
    keep = kind in ("gemma3", "gemma4", "gemma4_unified")
    return (
        c
        if keep
        else replace(c, vision=None, audio=None, image_token=-1, audio_token=-1, video_token=-1, special_rows=0)
    )


def write(folder: Path, params: model.Params, c: config.Model) -> None:
    """Writes the model so that ``transformers`` opens it, without the encoders where its family has others or none.

    Raises ValueError for a decoder that no family has, and for a folder that holds another model.
    """
    half = isinstance(params.embedding, jax.Array) and params.embedding.dtype == jnp.bfloat16
    settings = write_config(exported(c), "bfloat16" if half else "float32")
    kept = exported(c)
    vision, audio = params.vision if kept.vision else None, params.audio if kept.audio else None
    params = replace(params, vision=vision, audio=audio, special=params.special if kept.special_rows else None)
    parts = list(_parts(params, kept))
    shards = _shards(_declared(parts, half))
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if shards[1:] else [SINGLE_FILE]
    existing = {path.name for path in folder.glob("*.safetensors")} | {p.name for p in [folder / INDEX] if p.exists()}
    if others := existing - set(names) - ({INDEX} if shards[1:] else set()):
        raise ValueError(f"{folder / min(others)}: a file of another model; write to an empty folder")
    for name, declared in zip(names, shards, strict=True):
        _write_shard(folder / name, declared, parts)
    if shards[1:]:
        weight_map = {tensor: name for name, declared in zip(names, shards, strict=True) for tensor in declared}
        size = sum(d.nbytes for declared in shards for d in declared.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    write_json(folder / "config.json", settings)
