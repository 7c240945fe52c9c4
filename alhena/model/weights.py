"""Weight files: a pytree of frozen dataclasses as one safetensors file, with arrays named by their fields.

    layers.gate            float32 [layers, D, F]      a weight of full precision; bfloat16 in most imported models
    layers.gate.packed     uint8   [layers, D/2, F]    a 4-bit weight
    layers.gate.scales     float32 [layers, D/G, F]

Nothing is unpickled or executed; every name and shape is checked against the configuration.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from alhena.files import write_json
from alhena.model import config, model
from alhena.model.int4 import Int4
from alhena.model.spec import WeightSpec, named
from alhena.model.tensor_writer import write_arrays
from alhena.model.tensors import FLOATS, Stored, check_finite, open_file, read_settings, regular
from alhena.schema import parsed_whole, shown

Tree = TypeVar("Tree")
WEIGHTS = "weights.safetensors"
# Smaller arrays are read.
MIN_MAPPED_BYTES = 2**20


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a tree by the names under which they are stored."""
    return {name: np.asarray(array) for name, array in named(tree).items()}


def _int4(name: str, s: WeightSpec, arrays: dict[str, Stored]) -> Int4:
    """A stored 4-bit weight. Shapes and dtypes are checked, values are not read."""
    packed, scales = arrays.pop(name + ".packed"), arrays.pop(name + ".scales", None)
    if scales is None:
        raise ValueError(f"it has no array {name}.scales")
    if packed.dtype != "U8" or scales.dtype not in FLOATS or len(packed.shape) != len(s.shape):
        raise ValueError(
            f"{name} is not a 4-bit weight: {packed.dtype} {shown(packed.shape)}, scales of {scales.dtype}"
        )
    transposed = s.contracted == -1
    *layers, half, outer = packed.shape
    stored = (*layers, 2 * half, outer)
    if (stored[:-2] + stored[:-3:-1] if transposed else stored) != s.shape:
        raise ValueError(f"{name} is a 4-bit {stored}, expected {s.shape}")
    groups = scales.shape[-2] if len(scales.shape) == len(stored) else 0
    if scales.shape != (*layers, groups, outer) or not groups or 2 * half % groups:
        raise ValueError(f"{name}.scales is {shown(scales.shape)}; that does not fit a 4-bit {stored}")
    # Stored tensors stand in for the arrays until they are read.
    return Int4(packed, scales, transposed)  # type: ignore[arg-type]


def _weight(name: str, s: WeightSpec, arrays: dict[str, Stored]) -> Stored | Int4:
    """The stored array of a weight, or an Int4 of stored arrays where it is quantized."""
    if s.contracted is not None and name + ".packed" in arrays:
        return _int4(name, s, arrays)
    if name not in arrays:
        raise ValueError(f"it has no array {name}")
    array = arrays.pop(name)
    if array.shape != s.shape:
        raise ValueError(f"{name} is {shown(array.shape)}, expected {s.shape}")
    if (array.dtype in FLOATS) != jax.numpy.issubdtype(s.dtype, jax.numpy.floating):
        raise ValueError(f"{name} is of dtype {array.dtype}, expected {s.dtype}")
    return array


def write_tree(path: Path, tree: Any) -> None:
    """Writes the arrays of a tree as one safetensors file."""
    write_arrays(path, flatten(tree))


def read_tree(path: Path, specs: Tree) -> Tree:
    """The weights of ``specs``, 4-bit or of the float dtype that is stored. Raises ValueError naming file and array.

    Names, shapes and dtypes are checked before any array is read.
    """
    arrays = open_file(path)
    try:
        stored = [_weight(name, s, arrays) for name, s in named(specs).items()]
        if arrays:
            raise ValueError(f"it holds {len(arrays)} unknown arrays, such as {shown(min(arrays))}")
    except ValueError as error:
        raise ValueError(f"{path}: these are not the weights of this model: {error}") from None
    tree = jax.tree.unflatten(jax.tree.structure(specs), stored)
    return jax.tree.map(_load, tree)


def _load(stored: Stored) -> jax.Array:
    """A weight. A large one is memory-mapped: on a CPU its pages are read when they are used, and are in memory once."""
    if stored.nbytes < MIN_MAPPED_BYTES:
        return jax.numpy.asarray(stored.read())
    array = stored.map()
    check_finite(stored.path, stored.name, array)
    return jax.device_put(array)


def check_size(path: Path, size: int, min_bytes: int) -> None:
    """Raises ValueError when weights of ``size`` bytes are too few for their configuration, before arrays of its shapes are allocated."""
    if size < min_bytes:
        raise ValueError(
            f"{path}: these are not the weights of this model: {size:,} bytes, "
            f"where the configuration needs {shown(min_bytes)} or more"
        )


def save_model(folder: Path, params: model.Params, c: config.Model, facts: dict[str, Any]) -> None:
    """Writes ``weights.safetensors`` and ``model.json``: configuration, and facts about the training."""
    write_tree(folder / WEIGHTS, params)
    write_config(folder, c, facts)


def write_config(folder: Path, c: config.Model, facts: dict[str, Any]) -> None:
    """Writes ``model.json``."""
    write_json(folder / "model.json", {"config": asdict(c), "facts": facts})


@dataclass(frozen=True)
class _ModelFile:
    """Schema of ``model.json``."""

    config: dict[str, Any]
    facts: dict[str, Any]


def read_config(folder: Path) -> tuple[config.Model, dict[str, Any]]:
    """The configuration of a model folder and the facts stored with it. Raises ValueError that names file and field."""
    path = folder / "model.json"
    stored = parsed_whole(_ModelFile, read_settings(path), path)
    vision, audio = stored.config.get("vision"), stored.config.get("audio")
    rest = {name: None if name in ("vision", "audio") else value for name, value in stored.config.items()}
    c = parsed_whole(config.Model, rest, path, "config")
    if vision is not None:
        c = replace(c, vision=parsed_whole(config.vision_class(vision), vision, path, "config.vision"))
    if audio is not None:
        c = replace(c, audio=parsed_whole(config.audio_class(audio), audio, path, "config.audio"))
    return c, stored.facts


def load_model(folder: Path) -> tuple[model.Params, config.Model]:
    """Reads the files of :func:`save_model`, with weights in the dtypes that are stored. Raises ValueError that names the file."""
    c, _ = read_config(folder)
    weights = regular(folder / WEIGHTS)
    check_size(weights, weights.stat().st_size, c.min_bytes)
    return read_tree(weights, model.weights(c)), c
