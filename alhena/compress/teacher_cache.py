"""Cache of a teacher's outputs on the disk: one file a batch, named by the content of the batch.

    FOLDER / hash of the batch .safetensors     arrays [m, …] of the m positions that have a loss weight

A file is complete or absent, so an interrupted run resumes with what it has; trainings that read the same batches share a folder. At
its limit of bytes nothing more is written, and the outputs of further batches are computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alhena.batch import Batch
from alhena.files import make_folder
from alhena.model.storage.tensor_writer import write_arrays
from alhena.model.storage.tensors import open_file
from alhena.shapes import Array, Float

SUFFIX = ".safetensors"


class TeacherCache:
    """Outputs of one teacher under one folder, of at most ``max_bytes``."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        make_folder(folder)
        self._folder, self._max_bytes = folder, max_bytes
        self._bytes = sum(path.stat().st_size for path in folder.glob("*" + SUFFIX))

    def key(self, batch: Batch) -> str:
        """Hash of every array of a batch."""
        digest = hashlib.blake2b(digest_size=20)
        for name, array in vars(batch).items():
            values = np.ascontiguousarray(array)
            digest.update(f"{name} {values.dtype} {values.shape};".encode())
            digest.update(values.data)
        return digest.hexdigest()

    def read(self, key: str, weights: Float[Array, "B L"]) -> dict[str, np.ndarray] | None:
        """Arrays ``[B, L, …]``, zero where there is no loss weight; None when they are not stored.

        Raises ValueError that names the file when it does not belong to this batch.
        """
        path, chosen = self._folder / (key + SUFFIX), np.asarray(weights) > 0
        if not path.exists():
            return None
        out = {}
        for name, stored in open_file(path).items():
            if not stored.shape or stored.shape[0] != chosen.sum():
                raise ValueError(
                    f"{path}: {name} has shape {stored.shape}, of {chosen.sum()} positions; delete the file"
                )
            values = stored.read()
            out[name] = np.zeros((*chosen.shape, *values.shape[1:]), values.dtype)
            out[name][chosen] = values
        return out

    def write(self, key: str, weights: Float[Array, "B L"], arrays: Mapping[str, np.ndarray]) -> None:
        """Stores arrays ``[B, L, …]``, if they fit into the limit."""
        chosen = np.asarray(weights) > 0
        stored = {name: array[chosen] for name, array in arrays.items()}
        if self._bytes + sum(array.nbytes for array in stored.values()) > self._max_bytes:
            return
        path = self._folder / (key + SUFFIX)
        write_arrays(path, stored)
        self._bytes += path.stat().st_size
