"""Weights in and out: a pytree of frozen dataclasses as one safetensors file, named by its fields.

    layers.gate            float32 [layers, D, F]      a plain weight
    layers.gate.packed     uint8   [layers, D/2, F]    a 4-bit weight
    layers.gate.scales     float32 [layers, D/G, F]

Nothing is unpickled and nothing is executed; every name and shape is checked against the configuration.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from alhena.artifacts import read_json, write_atomically, write_json
from alhena.model import config, model
from alhena.model.einsum import Int4, Weight
from alhena.model.spec import WeightSpec, named

Tree = TypeVar("Tree")
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8", "int32": "I32"}


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a tree by the names under which they are stored."""
    return {name: np.asarray(array) for name, array in named(tree).items()}


def _weight(name: str, s: WeightSpec, arrays: dict[str, np.ndarray]) -> Weight:
    """The array of a weight, or its two where it is quantized."""
    if s.contracted is not None and name + ".packed" in arrays:
        packed, scales = arrays.pop(name + ".packed"), arrays.pop(name + ".scales")
        stored, transposed = (*packed.shape[:-2], 2 * packed.shape[-2], packed.shape[-1]), s.contracted == -1
        if (stored[:-2] + stored[:-3:-1] if transposed else stored) != s.shape:
            raise ValueError(f"{name} is a 4-bit {stored}, expected {s.shape}")
        return Int4(jax.numpy.asarray(packed), jax.numpy.asarray(scales), transposed)
    if name not in arrays:
        raise ValueError(f"it has no array {name}")
    array = arrays.pop(name)
    if array.shape != s.shape:
        raise ValueError(f"{name} is {array.shape}, expected {s.shape}")
    return jax.numpy.asarray(array, s.dtype)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """One safetensors file, array by array: nothing is copied whole. Metadata says ``format: pt``, as readers of it expect."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (place, place + array.nbytes),
        }
        place += array.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    pieces = (np.ascontiguousarray(array).data.cast("B") for array in arrays.values() if array.size)
    write_atomically(path, itertools.chain((len(head).to_bytes(8, "little"), head), pieces))


def write_tree(path: Path, tree: Any) -> None:
    write_arrays(path, flatten(tree))


def read_tree(path: Path, specs: Tree) -> Tree:
    """The weights that ``specs`` describes, plain or 4-bit. Raises ValueError naming file and array."""
    try:
        arrays = load_file(path)
        weights = [_weight(name, s, arrays) for name, s in named(specs).items()]
        if arrays:
            raise ValueError(f"it holds {len(arrays)} unknown arrays, such as {min(arrays)}")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: these are not the weights of this model: {error}") from None
    return jax.tree.unflatten(jax.tree.structure(specs), weights)


def save_model(folder: Path, params: model.Params, c: config.Model, facts: dict[str, Any]) -> None:
    """Writes ``weights.safetensors`` and ``model.json`` (configuration and facts about the training)."""
    write_tree(folder / "weights.safetensors", params)
    write_json(folder / "model.json", {"config": asdict(c), "facts": facts})


def read_config(folder: Path) -> tuple[config.Model, dict[str, Any]]:
    """The configuration of a model folder and the facts kept with it."""
    stored = read_json(folder / "model.json")
    try:
        parts = dict(stored["config"])
        kinds: dict[str, Callable[..., Any]] = {
            "decoder": lambda fields: config.Decoder(**fields),
            "vision": lambda fields: config.Vision(**fields),
            "audio": config.audio,
        }
        parts |= {name: parts[name] and read(parts[name]) for name, read in kinds.items()}
        parts["code_factors"] = parts["code_factors"] and tuple(parts["code_factors"])
        return config.Model(**parts), stored["facts"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'model.json'}: not a model of Alhena ({error})") from None


def load_model(folder: Path) -> tuple[model.Params, config.Model]:
    """Reads what :func:`save_model` wrote, plain or 4-bit."""
    c, _ = read_config(folder)
    return read_tree(folder / "weights.safetensors", model.weights(c)), c
