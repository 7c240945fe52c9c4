"""Checkpoints by Orbax: training state as arrays, the data iterator's state as JSON; written in the background, complete or absent.

FOLDER/400/state/…  FOLDER/400/data/…      the last two steps are kept
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

Tree = TypeVar("Tree")


class Checkpoints:
    """Saves and restores ``(state, data)`` by step."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=True)
        self.folder = folder
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, data: Any) -> None:
        """Returns at once; the files appear in the background, under their final name only when whole."""
        leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), data=ocp.args.JsonSave({"data": data}))
        self._manager.save(step, args=args)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, like: Tree) -> tuple[int, Tree, Any]:
        """The newest checkpoint, in the shape of ``like``. Raises ValueError when it is of another model."""
        step = self.latest()
        if step is None:
            raise ValueError(f"{self.folder}: no checkpoint to restore")
        leaves, structure = jax.tree.flatten(like)
        wanted = {str(i): leaf for i, leaf in enumerate(leaves)}
        stored = self._manager.item_metadata(step)["state"]
        shapes = {key: tuple(meta.shape) for key, meta in stored.items()}
        if shapes != {key: tuple(leaf.shape) for key, leaf in wanted.items()}:
            raise ValueError(
                f"{self.folder / str(step)}: this checkpoint is of another model ({len(shapes)} arrays, {len(wanted)} expected, "
                "or other shapes); restore it with the recipe it was trained by, or choose another run folder"
            )
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=args)
        ordered = [found["state"][str(i)] for i in range(len(leaves))]
        return step, jax.tree.unflatten(structure, ordered), found["data"]["data"]

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
