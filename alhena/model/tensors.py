"""Tensors by name out of a folder in the layout of Hugging Face: one safetensors file, or shards and their index.

    read = open_tensors(folder, ("", "model."), "norm.weight")
    read("norm.weight", (64,))            ─► float32 [64], shape checked; only this tensor is in memory

A pickle is never opened, and a shard must lie in the folder itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from alhena.artifacts import read_json

Read = Callable[[str, tuple[int, ...]], np.ndarray]


def _shards(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map", {})
        if any(Path(file).name != file or not file.endswith(".safetensors") for file in names.values()):
            raise ValueError(f"{index}: a shard must be a .safetensors file beside it")
        return {name: folder / file for name, file in names.items()}
    whole = folder / "model.safetensors"
    if not whole.exists():
        raise ValueError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there")
    with safe_open(whole, framework="numpy") as file:
        return dict.fromkeys(file.keys(), whole)


def open_tensors(folder: Path, prefixes: Sequence[str], known: str) -> Read:
    """A function that reads one tensor by its name behind the prefix, as float32, and checks its shape.

    ``known`` is a tensor that must be there: behind which of the prefixes it stands, all others do. Raises ValueError that names the
    file.
    """
    shards = _shards(folder)
    prefix = next((p for p in prefixes if p + known in shards), None)
    if prefix is None:
        raise ValueError(f"{folder}: no tensor {known} behind any of {', '.join(map(repr, prefixes))}: another model?")

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if prefix + name not in shards:
            raise ValueError(f"{folder}: it has no tensor {prefix + name}")
        path = shards[prefix + name]
        try:
            with safe_open(path, framework="flax") as file:
                found = tuple(file.get_slice(prefix + name).get_shape())
                if found != shape:
                    raise ValueError(f"{path}: {prefix + name} is {found}, expected {shape}")
                return np.asarray(file.get_tensor(prefix + name), np.float32)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None

    return read
