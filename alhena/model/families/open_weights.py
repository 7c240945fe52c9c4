"""Opens a folder of open weights: configuration, table of tensors, every tensor accounted for. No values are read.

opened = open_folder(folder)          opened.c, opened.table, opened.tensors
params, c = read(folder)              all weights in memory, in the dtypes of the files
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from alhena.model import config, model
from alhena.model.families import decoder_tensors
from alhena.model.families.encoders import gemma3n_audio
from alhena.model.families.model_config import Described, read_config
from alhena.model.families.tensor_map import Table, read_arrays, sources, under
from alhena.model.spec import named
from alhena.model.storage import tensors
from alhena.model.storage.tensors import Stored
from alhena.model.storage.weights import check_size
from alhena.schema import shown


@dataclass(frozen=True)
class OpenWeights:
    """A model in files of a public family."""

    # Folder or file.
    path: Path
    # ``model_type`` of its configuration.
    model_type: str
    c: config.Model
    table: Table
    # By the names of the table.
    tensors: Mapping[str, Stored]
    # Weights that are computed from several tensors.
    derived: Mapping[str, Callable[[], np.ndarray]]
    # What is not read: a line for each kind of tensors.
    left_out: Sequence[str]

    @property
    def dtype(self) -> Literal["bfloat16", "float32"]:
        """Dtype of all matrices that keep no bits: ``bfloat16``, or ``float32`` where one has more precision."""
        matrices = {t.dtype for t in self.tensors.values() if len(t.shape) > 1 and t.bits is None}
        return "bfloat16" if matrices == {"BF16"} else "float32"


def _renamed(stored: Mapping[str, Stored], renames: Sequence[tuple[str, str]]) -> dict[str, Stored]:
    """The tensors by their names after the first rename that applies. Raises ValueError for two of the same name."""
    out: dict[str, Stored] = {}
    for name, tensor in stored.items():
        old, new = next(((old, new) for old, new in renames if name.startswith(old)), ("", ""))
        if (other := out.setdefault(new + name.removeprefix(old), tensor)) is not tensor:
            raise ValueError(f"{tensor.path}: {other.name} and {tensor.name} are two names of one weight")
    return out


def tensor_table(described: Described) -> Table:
    """Where each weight of a model is."""
    return {**under(described.decoder_prefix, decoder_tensors.table(described.c)), **described.encoders()}


def _check_tied(stored: Mapping[str, Stored], described: Described, path: Path) -> None:
    """Raises ValueError when the output matrix is not the embedding."""
    name = described.output_matrix
    head, embedding = stored.get(name), stored[described.decoder_prefix + "embed_tokens.weight"]
    if head is None and not described.tied:
        raise ValueError(f"{path / 'config.json'}: tie_word_embeddings is false, but there is no {name}")
    if head is None:
        return
    same = head.shape == embedding.shape
    if same:
        a, b = head.map(), embedding.map()
        same = all(np.array_equal(a[index], b[index]) for index in tensors.blocks(a))
    if not same:
        raise ValueError(f"{head.path}: {head.name} differs from the embedding; only tied embeddings are supported")


def _special_rows(stored: Mapping[str, Stored], described: Described, path: Path) -> np.ndarray:
    """Gemma 3n's embeddings of the ids after those of text."""

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return _read(tensors.checked(stored, "model." + name, shape, path))

    assert described.embedders is not None
    return gemma3n_audio.finished_rows(read, *described.embedders, described.c.decoder.width)


def _derived(
    stored: Mapping[str, Stored], described: Described, path: Path
) -> tuple[dict[str, Callable[[], np.ndarray]], set[str]]:
    """Weights that are computed from several tensors, and the names of these tensors."""
    if not described.embedders:
        return {}, set()
    rows = cache(partial(_special_rows, stored, described, path))
    # Now, so that damaged tensors are found before anything is written.
    rows()
    out: dict[str, Callable[[], np.ndarray]] = {"special": rows}
    if described.c.audio:
        out["audio.padding"] = lambda: rows()[-1]
    names = ("embedding", "hard_embedding_norm", "embedding_projection")
    return out, {f"model.embed_{kind}.{name}.weight" for kind in ("vision", "audio") for name in names}


def _account(
    stored: Mapping[str, Stored], table: Table, known: set[str], described: Described, path: Path
) -> tuple[dict[str, Stored], list[str]]:
    """The tensors of the table, and a line for each kind of tensors that is not read; ``known`` are those that are read elsewhere.

    Raises ValueError for a tensor that is missing, of another shape, or unknown.
    """
    prefix = described.decoder_prefix
    unused = [replace(u, name=prefix + u.name) for u in decoder_tensors.unused(described.c.decoder)]
    used = {name: tensors.checked(stored, name, s.shape, path) for s in sources(table) for name in s.names}
    present = [tensors.checked(stored, u.name, u.shape, path) for u in unused if u.name in stored]
    counts = {"keys and values of layers that share those of others": len(present)} if present else {}
    for name in sorted(set(stored) - known - {described.output_matrix, *used, *(u.name for u in unused)}):
        part = next((part for part in described.left_out if name.startswith(part)), None)
        if part is None:
            tensor = stored[name]
            raise ValueError(f"{tensor.path}: unknown tensor {shown(tensor.name)}: this model has no such weight")
        kind = f"{part[:-1]}: {described.left_out[part]}"
        counts[kind] = counts.get(kind, 0) + 1
    return used, [f"{count} tensors of {kind}" for kind, count in counts.items()]


def bfloat16_scale(c: config.Model) -> config.Model:
    """The configuration with the factor of the embeddings that a reference running in bfloat16 has."""
    scale = float(np.asarray(c.decoder.width**0.5).astype(ml_dtypes.bfloat16))
    exact = scale == c.decoder.width**0.5
    return c if exact else replace(c, decoder=replace(c.decoder, embedding_scale=scale))


def account(path: Path, described: Described, stored: Mapping[str, Stored]) -> OpenWeights:
    """A model from its configuration and its tensors, by their names in the file ``path`` or in files of that folder."""
    stored = _renamed(stored, described.renames)
    size = sum(math.prod(t.shape) * np.dtype(tensors.DTYPES[t.dtype]).itemsize for t in stored.values())
    check_size(path, size, described.c.min_bytes)
    table = tensor_table(described)
    derived, known = _derived(stored, described, path)
    used, left_out = _account(stored, table, known, described, path)
    _check_tied(stored, described, path)
    half = used[described.decoder_prefix + "embed_tokens.weight"].dtype == "BF16"
    c = bfloat16_scale(described.c) if half else described.c
    return OpenWeights(path, described.model_type, c, table, used, derived, left_out)


def open_folder(folder: Path, without: Collection[str] = ()) -> OpenWeights:
    """The model of a folder in Hugging Face's layout, without the encoders of the modalities in ``without``.

    Raises ValueError that names the file when the folder holds no model of a known family, or tensors that are not understood.
    """
    path = folder / "config.json"
    described = read_config(tensors.read_settings(path), path, without)
    return account(folder, described, tensors.open_folder(folder))


def read(folder: Path, without: Collection[str] = ()) -> tuple[model.Params, config.Model]:
    """All weights of a folder in memory, in the dtypes of its files, and the configuration."""
    return read_all(open_folder(folder, without))


def read_all(opened: OpenWeights) -> tuple[model.Params, config.Model]:
    """All weights of a model in memory, in the dtypes of its files, and the configuration."""
    arrays = read_arrays(opened.table, lambda name, shape: _read(opened.tensors[name]))
    arrays |= {name: make() for name, make in opened.derived.items()}
    specs = model.weights(opened.c)
    weights: list[Any] = [jnp.asarray(arrays[name]) for name in named(specs)]
    return jax.tree.unflatten(jax.tree.structure(specs), weights), opened.c


def _read(tensor: Stored) -> np.ndarray:
    array = tensor.map()
    tensors.check_finite(tensor.path, tensor.name, array)
    return array
