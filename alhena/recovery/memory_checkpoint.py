"""Copies of the training state in the memory of every host, far more often than checkpoints reach a disk.

    step 40   host 0 ▤  host 1 ▤        every host keeps its own shards of the last two copies, in memory that outlives the process
    step 43   host 0 ╳                  host 0 is lost, and with it what it kept
    restart   host 0 ◄─ ▤ ─ host 1      a pod whose hosts all have the step gives it to the others, over the network

Pods hold whole copies of the state (alhena/model/sharding.py), so one intact pod is enough; without one, the last checkpoint is used.
"In comparison to both PaLM and PaLM-2 ... this provided a substantial speedup in recovery time", says the Gemini 1.0 report of its
redundant in-memory copies. A copy carries a checksum: one that was cut off or changed is not used. Its name carries the fingerprint of
the training and of its run folder: copies of another training, or of a folder that was deleted, are never restored, and are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from safetensors.numpy import load, save

from alhena.files import write_atomically
from alhena.shapes import Array

Tree = TypeVar("Tree")
SLOT = "ALHENA_SLOT"
_RUN = "run"  # a file beside the copies: the path of the run folder they belong to
KEPT = 2  # copies: while one is written, the one before it is whole
MEMORY = Path("/dev/shm" if os.path.isdir("/dev/shm") else os.environ.get("TMPDIR", "/tmp"))
DATA = "data"  # the name of the array that holds the JSON of what is no array


def memory_folder(run: Path, process: int) -> Path:
    """Where a process keeps its copies of a run: its host's memory. A host that goes on under another number says which was its own."""
    process = int(os.environ.get(SLOT, process))
    named = hashlib.blake2b(str(run.absolute()).encode(), digest_size=6).hexdigest()
    return _memory() / f"alhena-{named}" / str(process)


def _memory() -> Path:
    return Path(os.environ.get("ALHENA_MEMORY", MEMORY))


def _shards(x: Array) -> list[Any]:
    """The shards that this process holds, in the order of its devices."""
    return sorted(x.addressable_shards, key=lambda shard: shard.device.id)


class MemoryCheckpoints:
    """Saves and restores ``(state, data)`` of one process; every process of a run has to call the same at the same step.

    Opened for the training with this fingerprint, it removes the copies of every other from its folder, and tells it.
    """

    def __init__(self, run: Path, process: int, training: str, tell: Callable[[str], None]) -> None:
        self.folder, self._run, self._training = memory_folder(run, process), run, training
        _remove_of_deleted_runs(tell)
        own = {self._path(step) for step in self._steps()}
        others = [path for path in self.folder.glob("*.copy*") if path not in own]
        for path in others:
            path.unlink()
        if others:
            tell(f"{self.folder}: in-memory copies of another training removed ({len(others)})")

    def _path(self, step: int) -> Path:
        return self.folder / f"{self._training}-{step}.copy"

    def save(self, step: int, state: Any, data: Any) -> None:
        leaves = enumerate(jax.tree.leaves(state))
        arrays = {f"{i}.{k}": np.asarray(s.data) for i, leaf in leaves for k, s in enumerate(_shards(leaf))}
        payload = save({**arrays, DATA: np.frombuffer(json.dumps(data).encode(), np.uint8)})
        write_atomically(self.folder / _RUN, str(self._run.absolute()))
        write_atomically(self._path(step), hashlib.blake2b(payload, digest_size=16).digest() + payload)
        for old in self._steps()[KEPT:]:
            self._path(old).unlink()

    def clear(self) -> None:
        """Nothing is kept any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # other processes still have copies there, or none ever had
            self.folder.parent.rmdir()

    def _steps(self) -> list[int]:
        names = (path.stem.removeprefix(f"{self._training}-") for path in self.folder.glob(f"{self._training}-*.copy"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _read(self, step: int) -> bytes | None:
        content = self._path(step).read_bytes()
        whole = hashlib.blake2b(content[16:], digest_size=16).digest() == content[:16]
        return content[16:] if whole else None

    def restore(self, like: Tree, least: int = 0) -> tuple[int, Tree, Any] | None:
        """The newest step, ``least`` at least, that all hosts of some pod have whole: step, state, data. None when there is none."""
        mine = {}
        for step in self._steps():
            payload = self._read(step)
            if payload is not None and _shapes_of(payload) == _shapes(like):
                mine[step] = payload
            else:
                # Damaged, or of another mesh. Were it kept, it would count as newer than the copies that are now written.
                self._path(step).unlink()
        table = np.full(KEPT, -1, np.int64)
        table[: len(mine)] = list(mine)[:KEPT]
        table = multihost_utils.process_allgather(table).reshape(-1, KEPT)  # [processes, copies]
        mesh = jax.tree.leaves(like)[0].sharding.mesh
        pods = [{device.process_index for device in pod.flat} for pod in mesh.devices]
        for step in sorted({int(s) for s in table.flat if s >= max(least, 0)}, reverse=True):
            whole = [k for k, pod in enumerate(pods) if all(step in table[process] for process in pod)]
            if whole:
                state, data = self._assemble(like, mine.get(step))
                if any(step not in there for there in table):
                    state, data = _from_pod(state, whole[0]), gather_from_processes(data)[min(pods[whole[0]])]
                return step, state, data
        return None

    def _assemble(self, like: Tree, payload: bytes | None) -> tuple[Tree, Any]:
        """This process's shards as parts of whole arrays; zeros where it has no copy."""
        arrays = None if payload is None else load(payload)
        leaves, structure = jax.tree.flatten(like)
        whole = []
        for i, leaf in enumerate(leaves):
            held = _shards(leaf)
            parts = [
                np.zeros(s.data.shape, leaf.dtype) if arrays is None else arrays[f"{i}.{k}"] for k, s in enumerate(held)
            ]
            put = [jax.device_put(part, s.device) for part, s in zip(parts, held, strict=True)]
            whole.append(jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, put))
        return jax.tree.unflatten(structure, whole), None if arrays is None else json.loads(arrays[DATA].tobytes())


def _shapes_of(payload: bytes) -> dict[str, tuple[int, ...]]:
    """Of every stored shard, by its name."""
    return {name: array.shape for name, array in load(payload).items() if name != DATA}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Of every shard that this process holds, by the name that it is stored under."""
    leaves = enumerate(jax.tree.leaves(tree))
    return {f"{i}.{k}": s.data.shape for i, leaf in leaves for k, s in enumerate(_shards(leaf))}


def _remove_of_deleted_runs(tell: Callable[[str], None]) -> None:
    """Removes from this host's memory what belongs to run folders that are no longer there."""
    for marker in _memory().glob(f"alhena-*/*/{_RUN}"):
        run = marker.read_text()
        if not Path(run).exists():
            shutil.rmtree(marker.parent, ignore_errors=True)
            tell(f"{marker.parent}: in-memory copies of {run}, which was deleted, removed")


def _from_pod(tree: Tree, source: int) -> Tree:
    """What pod ``source`` holds, everywhere, to the bit: all others add zeros to its bits."""

    def one(x: Array) -> Array:
        assert isinstance(x.sharding, NamedSharding)

        def local(part: Array) -> Array:
            bits = jax.lax.bitcast_convert_type(part, jnp.uint32) if part.dtype == jnp.float32 else part
            bits = jnp.where(jax.lax.axis_index("pod") == source, bits, jnp.zeros_like(bits))
            return jax.lax.bitcast_convert_type(jax.lax.psum(bits, "pod"), part.dtype)

        spec = x.sharding.spec
        return jax.jit(jax.shard_map(local, mesh=x.sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False))(x)

    return jax.tree.map(one, tree)


def gather_from_processes(said: Any) -> list[Any]:
    """What every process says (JSON values), in the order of processes."""
    own = np.frombuffer(json.dumps(said).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(own)])).reshape(-1)
    room = np.zeros(int(sizes.max()), np.uint8)
    room[: len(own)] = own
    heard = multihost_utils.process_allgather(room).reshape(len(sizes), -1)
    return [json.loads(line[:size].tobytes()) for line, size in zip(heard, sizes, strict=True)]
