"""Weight files: a pytree of frozen dataclasses as one safetensors file, with arrays named by their fields.

    layers.gate            float32 [layers, D, F]      a weight of full precision; bfloat16 in most imported models
    layers.gate.packed     uint8   [layers, F/16, D/32, 4, 16, 4]   a 4-bit weight; int8 […, 8, 16, 4]: an 8-bit one
    layers.gate.scales     float16 [layers, F/16, D/32, 16]         (alhena/model/quantized/layout.py)

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
from alhena.model.quantized.layout import GROUP, Int4, Int8, Quantized, packed_shapes
from alhena.model.spec import WeightSpec, named
from alhena.model.storage.tensor_writer import write_arrays
from alhena.model.storage.tensors import FLOATS, Stored, check_finite, open_file, read_settings, regular
from alhena.schema import parsed_whole, shown

Tree = TypeVar("Tree")
WEIGHTS = "weights.safetensors"
# Smaller arrays are read.
MIN_MAPPED_BYTES = 2**20


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a tree by the names under which they are stored."""
    return {name: np.asarray(array) for name, array in named(tree).items()}


def _quantized(name: str, s: WeightSpec, arrays: dict[str, Stored]) -> Quantized:
    """A stored quantized weight. Shapes and dtypes are checked, values are not read."""
    packed, scales = arrays.pop(name + ".packed"), arrays.pop(name + ".scales", None)
    if scales is None:
        raise ValueError(f"it has no array {name}.scales")
    if packed.dtype == "U8" and len(packed.shape) == len(s.shape):
        raise ValueError(
            f"{name} has the 4-bit layout of an older version; quantize the model again (alhena compress), or import it again"
        )
    transposed = s.contracted == -1
    inner, outputs = s.shape[:-3:-1] if transposed else s.shape[-2:]
    kinds: dict[str, Any] = {"U8": Int4, "I8": Int8}
    kind = kinds.get(packed.dtype)
    if kind is None or scales.dtype != "F16" or inner % GROUP:
        raise ValueError(
            f"{name} is not a quantized weight: {packed.dtype} {shown(packed.shape)}, scales of {scales.dtype}"
        )
    for stored, shape in zip((packed, scales), packed_shapes(kind.bits, inner, outputs), strict=True):
        if stored.shape != (*s.shape[:-2], *shape):
            raise ValueError(f"{stored.name} is {shown(stored.shape)}, expected {(*s.shape[:-2], *shape)}")
    # Stored tensors stand in for the arrays until they are read.
    return kind(packed, scales, outputs, transposed)


def _weight(name: str, s: WeightSpec, arrays: dict[str, Stored]) -> Stored | Quantized:
    """The stored array of a weight, or a quantized weight of stored arrays."""
    if s.contracted is not None and name + ".packed" in arrays:
        return _quantized(name, s, arrays)
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
    """The weights of ``specs``, quantized or of the float dtype that is stored. Raises ValueError naming file and array.

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
        # asarray would compile a program for each shape.
        return jax.device_put(stored.read())
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
