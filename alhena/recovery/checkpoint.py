"""Checkpoints by Orbax: training state as arrays, data state as JSON; written in the background, complete or absent.

FOLDER/400/state/…  FOLDER/400/data/…      the last two steps are retained

Each holds the fingerprint of the training that it belongs to (:mod:`alhena.recovery.identity`); another training refuses it.

A complete checkpoint may still be damaged: a disk may return other bits than were written, and Orbax does not detect most of them.
So the JSON holds the checksum of every array, and one of itself. A checkpoint that does not match them is renamed
(``400.damaged``), and the previous one is used.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from alhena.files import fingerprint
from alhena.recovery.checksum import checksums

Tree = TypeVar("Tree")


class AnotherTraining(ValueError):
    """The checkpoint is intact, but belongs to another training."""


class Checkpoints:
    """Saves and restores ``(state, data state)`` by step, of the training with this fingerprint."""

    def __init__(self, folder: Path, training: str) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=True)
        self.folder, self._training = folder, training
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, data: Any) -> None:
        """Returns at once; files are written in the background and renamed to their final name when complete."""
        leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        content = {"data": data, "checksums": checksums(state).tolist(), "training": self._training}
        json = ocp.args.JsonSave(content | {"fingerprint": fingerprint(content)})
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(leaves), data=json))

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, like: Tree, max_step: int | None = None) -> tuple[int, Tree, Any]:
        """The newest intact checkpoint, of step ``max_step`` at most: its step, the state (structured as ``like``), the data state.

        A damaged one is renamed, with a warning. Raises ValueError when there is none, or it belongs to another training.
        """
        self._manager.wait_until_finished()
        damage: Exception | None = None
        for step in self.steps():
            if max_step is None or step <= max_step:
                try:
                    return step, *self._read(step, like)
                # Not caused by the file.
                except (AnotherTraining, MemoryError, jax.errors.JaxRuntimeError):
                    raise
                # Damaged files may cause any exception.
                except Exception as error:
                    damage = error
                    self._set_aside(step, error)
        reason = (
            "no checkpoint to restore"
            if damage is None
            else "no intact checkpoint is left; delete the folder to start from the beginning"
        )
        raise ValueError(f"{self.folder}: {reason}") from damage

    def _read(self, step: int, like: Tree) -> tuple[Tree, Any]:
        leaves, structure = jax.tree.flatten(like)
        stored = self._manager.item_metadata(step)["state"]
        shapes = {key: tuple(meta.shape) for key, meta in stored.items()}
        if shapes != {str(i): tuple(leaf.shape) for i, leaf in enumerate(leaves)}:
            raise AnotherTraining(
                f"{self.folder / str(step)}: this checkpoint is of another model ({len(shapes)} arrays, {len(leaves)} expected, "
                "or other shapes); restore it with the recipe it was trained by, or choose another run folder"
            )
        abstract = {
            str(i): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for i, leaf in enumerate(leaves)
        }
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        content = {key: value for key, value in restored["data"].items() if key != "fingerprint"}
        if restored["data"]["fingerprint"] != fingerprint(content):
            raise ValueError("data/metadata does not match its fingerprint")
        if content.get("training") != self._training:
            raise AnotherTraining(
                f"{self.folder / str(step)}: this checkpoint is of another training (other settings, seed, model or data); "
                "choose another run folder, or move this one away to start from the beginning"
            )
        state = jax.tree.unflatten(structure, [restored["state"][str(i)] for i in range(len(leaves))])
        sums = checksums(state).tolist()
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]
        changed = [n for n, a, b in zip(names, sums, content["checksums"], strict=True) if a != b]
        if changed:
            raise ValueError(f"state{changed[0]} and {len(changed) - 1} more arrays do not match their checksums")
        return state, content["data"]

    def _set_aside(self, step: int, error: Exception) -> None:
        path = self.folder / str(step)
        renamed = path.with_name(f"{step}.damaged")
        if jax.process_index() == 0:
            path.rename(renamed)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(str(renamed))
        self._manager.reload()
        reason = str(error).partition("\n")[0][:300] or type(error).__name__
        warnings.warn(
            f"{path}: damaged checkpoint, renamed to {renamed.name}; the previous one is used ({reason})", stacklevel=3
        )

    def close(self) -> None:
        """Waits until everything has been written."""
        self._manager.wait_until_finished()
        self._manager.close()
