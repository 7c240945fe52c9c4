"""Identity of a training: a fingerprint of everything that its parameters depend on, stored in its checkpoints.

It covers the settings, the model, the data, and the fingerprint of the stage if the folder has one. It does not cover the mesh, nor
how often something is saved, copied or logged: a training may be resumed on fewer devices.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alhena.files import BEGUN, fingerprint, read_json, write_json

_RUN = "run.json"
_BLOCK, _MAX_BLOCKS = 2**16, 64


def training_fingerprint(out: Path, *parts: Any) -> str:
    """Fingerprint of a training in the folder ``out``: of ``parts``, and of the stage that the folder belongs to."""
    begun = out / BEGUN
    return fingerprint(read_json(begun) if begun.exists() else None, *parts)


def run_fingerprint(out: Path, training: str, checkpoint: int | None) -> str:
    """Fingerprint of a training and of its start: the same until ``out`` is deleted or another training starts there.

    Raises ValueError when ``out`` has a checkpoint, and belongs to another training.
    """
    path = out / _RUN
    run = read_json(path) if path.exists() else None
    if not isinstance(run, dict) or run.get("training") != training:
        if isinstance(run, dict) and checkpoint is not None:
            raise ValueError(
                f"{out}: its checkpoints (the newest of step {checkpoint}) are of another training: other settings, seed, model "
                "or data; choose another run folder, or move this one away to start from the beginning"
            )
        run = {"training": training, "begun": os.urandom(8).hex()}
        write_json(path, run)
    return fingerprint(run)


def data_fingerprint(files: Iterable[Path]) -> str:
    """Fingerprint of files of encoded examples: names, sizes, content (of a file over 4 MiB: evenly spaced blocks)."""
    return fingerprint([(path.name, path.stat().st_size, _sample_digest(path)) for path in sorted(files)])


def _sample_digest(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    blocks = min(_MAX_BLOCKS, -(-size // _BLOCK))
    with open(path, "rb") as file:
        for k in range(blocks):
            # The last block ends where the file ends.
            file.seek(max(size - _BLOCK, 0) * k // max(blocks - 1, 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
