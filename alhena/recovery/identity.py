"""What a training is: a fingerprint of everything that its parameters depend on. Its checkpoints and copies carry it.

The settings, the model, the data, and the fingerprint of the stage if the folder has one. Not the mesh, and nothing that only says how
often something is saved, copied or logged: a training may be resumed on fewer devices.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alhena.files import fingerprint, read_json, write_json

BEGUN = "begun.json"  # of a stage: written when it begins, with its fingerprint
_RUN = "run.json"
_BLOCK, _BLOCKS = 2**16, 64


def training_fingerprint(out: Path, *parts: Any) -> str:
    """Of a training in the folder ``out``: of its parts, and of the stage that the folder belongs to."""
    begun = out / BEGUN
    return fingerprint(read_json(begun) if begun.exists() else None, *parts)


def run_fingerprint(out: Path, training: str, checkpoint: int | None) -> str:
    """Of a training and of this beginning of it: the same until ``out`` is deleted or another training begins there.

    Raises ValueError when ``out`` has a checkpoint, and belongs to another training.
    """
    path = out / _RUN
    found = read_json(path) if path.exists() else None
    if not isinstance(found, dict) or found.get("training") != training:
        if isinstance(found, dict) and checkpoint is not None:
            raise ValueError(
                f"{out}: its checkpoints (the newest of step {checkpoint}) are of another training: other settings, seed, model "
                "or data; choose another run folder, or move this one away to begin anew"
            )
        found = {"training": training, "begun": os.urandom(8).hex()}
        write_json(path, found)
    return fingerprint(found)


def data_fingerprint(files: Iterable[Path]) -> str:
    """Of files of encoded examples: names, sizes, and the content (of a file over 4 MiB a sample of blocks, spread evenly)."""
    return fingerprint([(path.name, path.stat().st_size, _sample(path)) for path in sorted(files)])


def _sample(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    blocks = min(_BLOCKS, -(-size // _BLOCK))
    with open(path, "rb") as file:
        for k in range(blocks):
            # The last block ends where the file ends.
            file.seek(max(size - _BLOCK, 0) * k // max(blocks - 1, 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
