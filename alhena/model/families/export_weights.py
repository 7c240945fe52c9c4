"""Exports a model in Hugging Face's layout, one tensor at a time, so that ``transformers`` opens it.

A model with bfloat16 matrices is written in bfloat16, bit for bit as it was imported; any other in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from alhena.files import write_json
from alhena.model import config, model
from alhena.model.families.model_config import described, write_config
from alhena.model.families.open_weights import tensor_table
from alhena.model.families.tensor_map import Source
from alhena.model.linear import Plain, dense
from alhena.model.quantized.layout import Quantized, is_quantized, to_gguf_blocks
from alhena.model.spec import named
from alhena.model.storage.tensor_writer import Declared, write_tensors
from alhena.model.storage.tensors import INDEX, SINGLE_FILE
from alhena.model.storage.weights import write_tree
from alhena.model.transformer.embedding import Factors
from alhena.shapes import Float, UInt8

MAX_SHARD_BYTES = 4 * 2**30


def _by_name(params: model.Params, c: config.Model) -> dict[str, Plain]:
    """The weights by their dotted names; a quantized weight is one."""
    leaves = jax.tree.leaves(params, is_leaf=is_quantized)
    return dict(zip(named(model.weights(c)), leaves, strict=True))


def expanded(embedding: Plain, factors: Factors) -> Float[np.ndarray, "V D"]:
    """An embedding with a row for each id, float32, from one with rows for the factors of image codes."""
    A, B = factors
    rows = np.asarray(dense(embedding)).astype(np.float32)
    text, structure, color = np.split(rows, [len(rows) - A - B, len(rows) - B])
    return np.concatenate([text, (color[:, None] + structure[None]).reshape(A * B, -1)])


@dataclass(frozen=True)
class Part:
    """A weight, or an index of a stacked one, and the tensors that it becomes."""

    source: Source
    weight: Plain
    index: int | None

    @property
    def is_half(self) -> bool:
        """Whether the values are stored in bfloat16."""
        return not isinstance(self.weight, Quantized) and self.weight.dtype == jnp.bfloat16

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return self.weight.bits if isinstance(self.weight, Quantized) else 8 * self.weight.dtype.itemsize

    def tensors(self) -> tuple[np.ndarray, ...]:
        """The values of the tensors, dequantized."""
        w = self.weight
        if isinstance(w, Quantized):
            return self.source.to_theirs(np.asarray(dense(self._slice(w))))
        array = np.asarray(w)
        return self.source.to_theirs(array if self.index is None else np.asarray(array[self.index]))

    def _slice(self, w: Quantized) -> Quantized:
        """The quantized weight at the index."""
        if self.index is None:
            return w
        # NumPy's indices are views, and need no compilation.
        return replace(w, packed=np.asarray(w.packed)[self.index], scales=np.asarray(w.scales)[self.index])

    def blocks(self) -> UInt8[np.ndarray, "*experts O groups bytes"]:
        """The blocks of a quantized weight in GGUF's layout: Q4_0 or Q8_0."""
        assert isinstance(self.weight, Quantized)
        return to_gguf_blocks(self._slice(self.weight))


def parts(params: model.Params, c: config.Model) -> Iterator[Part]:
    """All weights that files of the family hold."""
    weights: dict[str, Any] = {**_by_name(params, c)}
    if c.code_factors:
        # Files have a row for each id.
        weights["embedding"] = expanded(weights["embedding"], c.code_factors)
    for name, sources in tensor_table(described(c)).items():
        if isinstance(sources, Source):
            yield Part(sources, weights[name], None)
            continue
        for index, source in enumerate(sources):
            yield Part(source, weights[name], index)


def _is_exact(array: np.ndarray) -> bool:
    """Whether bfloat16 holds all values of an array."""
    return array.dtype == ml_dtypes.bfloat16 or np.array_equal(
        array.astype(ml_dtypes.bfloat16).astype(array.dtype), array
    )


def _declared(parts: list[Part], half: bool) -> dict[str, Declared]:
    """The tensors that will be written, in order. With ``half`` those that bfloat16 holds are bfloat16."""
    out: dict[str, Declared] = {}
    for part in parts:
        exact = [True] * len(part.source.names)
        if half and not (isinstance(part.weight, Quantized) or part.weight.dtype == jnp.bfloat16):
            exact = [_is_exact(tensor) for tensor in part.tensors()]
        for name, fits in zip(part.source.names, exact, strict=True):
            other = out.get(name)
            is_half = (
                half and fits and not isinstance(part.weight, Quantized) and (other is None or other.dtype == "BF16")
            )
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


def _write_shard(path: Path, declared: dict[str, Declared], parts: list[Part]) -> None:
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
    return c if kind in ("gemma3", "gemma4", "gemma4_unified") else without_encoders(c)


def without_encoders(c: config.Model) -> config.Model:
    """The decoder alone."""
    return replace(c, vision=None, audio=None, image_token=-1, audio_token=-1, video_token=-1, special_rows=0)


def lost_encoders(c: config.Model, kept: config.Model) -> tuple[str, ...]:
    """The encoders of a model that an export does not hold."""
    return tuple(name for name in ("vision", "audio") if getattr(c, name) and not getattr(kept, name))


def write_encoders(folder: Path, params: model.Params, c: config.Model, names: Collection[str]) -> None:
    """Writes encoders as they are here, in a folder of their own: arrays by our names, dequantized, and the configuration.

    ``config.json`` has a section for each encoder, and the ids of the placeholders that their output vectors stand for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trees = {name: getattr(params, name) for name in names}
    arrays = jax.tree.map(lambda w: np.asarray(dense(w) if is_quantized(w) else w), trees, is_leaf=is_quantized)
    write_tree(folder / SINGLE_FILE, arrays)
    ids = {name: getattr(c, name) for name in ("image_token", "audio_token", "video_token")}
    sections = {name: asdict(getattr(c, name)) for name in names}
    write_json(folder / "config.json", {"width": c.decoder.width, **ids, **sections})


def write(folder: Path, params: model.Params, c: config.Model) -> None:
    """Writes the model so that ``transformers`` opens it, without the encoders where its family has others or none.

    Raises ValueError for a decoder that no family has, and for a folder that holds another model.
    """
    half = isinstance(params.embedding, jax.Array) and params.embedding.dtype == jnp.bfloat16
    settings = write_config(exported(c), "bfloat16" if half else "float32")
    kept = exported(c)
    vision, audio = params.vision if kept.vision else None, params.audio if kept.audio else None
    params = replace(params, vision=vision, audio=audio, special=params.special if kept.special_rows else None)
    all_parts = list(parts(params, kept))
    shards = _shards(_declared(all_parts, half))
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if shards[1:] else [SINGLE_FILE]
    existing = {path.name for path in folder.glob("*.safetensors")} | {p.name for p in [folder / INDEX] if p.exists()}
    if others := existing - set(names) - ({INDEX} if shards[1:] else set()):
        raise ValueError(f"{folder / min(others)}: a file of another model; write to an empty folder")
    for name, declared in zip(names, shards, strict=True):
        _write_shard(folder / name, declared, all_parts)
    if shards[1:]:
        weight_map = {tensor: name for name, declared in zip(names, shards, strict=True) for tensor in declared}
        size = sum(d.nbytes for declared in shards for d in declared.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    write_json(folder / "config.json", settings)
